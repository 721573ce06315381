"""Stage 4: LoRA. The same as full fine-tuning, but only a thin adapter is trained; the base stays as it is.

reads    out/full_sft_<dim>[_moe].pth (else pretrain; or --init_from), dataset/lora.jsonl, or raw files of any schema
writes   out/lora_<name>_<dim>[_moe]/       the adapter in PEFT's format: adapter_model.safetensors, adapter_config.json
         out/lora_<name>_<dim>[_moe].pth    base and adapter merged, with a .json that describes it and a .jsonl log

    python 4-lora_sft.py --data_path persona.jsonl --lora_name persona
    python 2-eval.py --lora persona                                     the base with the adapter; /lora off in the chat
    python 4-lora_sft.py --rank 64 --alpha 64 --rslora --targets wq,wk,wv,wo

Stopped? The same command continues where it was. Next: python 2-eval.py --lora sft
"""

from functools import partial

import torch

import data_process
from model.lora import add_lora
from trainer import args, parallel
from trainer.chat_stage import load_conversations, save_adapter, start_from
from trainer.checkpoint import prepare_out_dir
from trainer.config import LoRAConfig
from trainer.loop import fit
from trainer.losses import language_model_loss, neftune

DEFAULTS = {
    "data_path": "dataset/lora.jsonl",
    "epochs": 10,  # adapters are trained on small sets: a persona of 750 chats is 40 rows of 512
    "batch_size": 8,
    "accumulation_steps": 1,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "wandb_project": "MiniMind-LoRA-SFT",
}


def parse(argv):
    """The command line → LoRAConfig."""
    parser = args.make_parser(__doc__)
    args.add_fields(parser, LoRAConfig, DEFAULTS)
    return LoRAConfig(**args.split(vars(parser.parse_args(argv)), LoRAConfig)[0])


def main(argv=None):
    cfg = parse(argv)
    prepare_out_dir(cfg.out_dir)
    with parallel.joined(cfg) as runtime:
        torch.manual_seed(cfg.seed)
        model, tokenizer = start_from(cfg, ["full_sft", "pretrain"], runtime)
        add_lora(model, cfg)
        with parallel.main_first(runtime):
            data = load_conversations(cfg, model.cfg.max_seq_len, tokenizer, runtime, data_process.clean_file)
        if cfg.neftune_alpha:
            model.tok_embeddings.register_forward_hook(neftune(cfg.neftune_alpha))
        loss = partial(language_model_loss, doc_mask=cfg.doc_mask)
        fit(model, runtime, cfg, f"lora_{cfg.lora_name}", tokenizer, data, loss, partial(save_adapter, cfg))


if __name__ == "__main__":
    args.run(main)
