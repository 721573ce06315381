"""Stage 3: supervised fine-tuning. The base model learns to answer, from conversations.

reads    out/pretrain_<dim>[_moe].pth (or --init_from), dataset/sft.jsonl (data_process.py sft), or raw files of any
         schema that it knows
writes   out/full_sft_<dim>[_moe].pth   the chat model, with a .json that describes it and a .jsonl log

    python 3-full_sft.py --data_path dataset/sft.jsonl
    python 3-full_sft.py --data_path raw_folder --max_seq_len 1024 --neftune_alpha 5
    python 3-full_sft.py --replay 0.1 --replay_path dataset/pretrain.bin      every tenth row is pretraining text

Scored is what the assistant says, and the </s> that ends it; see it with: python data_process.py inspect FILE.
Stopped? The same command continues where it was. Next: python 2-eval.py, 4-lora_sft.py or 5-dpo_train.py
"""

from functools import partial

import torch

import data_process
from trainer import args, parallel
from trainer.chat_stage import load_conversations, start_from
from trainer.checkpoint import prepare_out_dir
from trainer.config import SFTConfig
from trainer.loop import fit
from trainer.losses import language_model_loss, neftune

DEFAULTS = {
    "data_path": "dataset/sft.jsonl",
    "epochs": 2,
    "batch_size": 16,  # full rows, each of many chats
    "accumulation_steps": 1,
    "learning_rate": 2e-4,  # at 5e-4 the demo forgot three facts in ten that its chats leave out
    "wandb_project": "MiniMind-Full-SFT",
}


def parse(argv):
    """The command line → SFTConfig."""
    parser = args.make_parser(__doc__)
    args.add_fields(parser, SFTConfig, DEFAULTS)
    return SFTConfig(**args.split(vars(parser.parse_args(argv)), SFTConfig)[0])


def main(argv=None):
    cfg = parse(argv)
    prepare_out_dir(cfg.out_dir)
    with parallel.joined(cfg) as runtime:
        torch.manual_seed(cfg.seed)
        model, tokenizer = start_from(cfg, ["pretrain"], runtime)
        with parallel.main_first(runtime):
            data = load_conversations(cfg, model.cfg.max_seq_len, tokenizer, runtime, data_process.clean_file)
        if cfg.neftune_alpha:
            model.tok_embeddings.register_forward_hook(neftune(cfg.neftune_alpha))
        fit(model, runtime, cfg, "full_sft", tokenizer, data, partial(language_model_loss, doc_mask=cfg.doc_mask))


if __name__ == "__main__":
    args.run(main)
