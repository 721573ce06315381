"""Stage 5: preferences. The chat model learns which of two answers people like better.

reads    out/full_sft_<dim>[_moe].pth (else lora, else pretrain; or --init_from), dataset/dpo.jsonl (data_process.py
         dpo), or raw files of any schema that it knows
writes   out/dpo_<dim>[_moe].pth   the aligned model, with a .json that describes it and a .jsonl log

    python 5-dpo_train.py --data_path dataset/dpo.jsonl
    python 5-dpo_train.py --loss simpo                    also: sigmoid (DPO, the default), ipo, orpo
    python 5-dpo_train.py --use_lora --rank 16            trains an adapter only, and merges it

The reference's log-probs are computed once and kept in out/cache, so only one model is in memory. In the log: margin is
how much more reward the chosen answers earn than the rejected ones, accuracy how often they earn more, prefers how
often the model finds them the likelier text. Stopped? The same command continues where it was. Next: python 2-eval.py
"""

from functools import partial
from pathlib import Path

import torch

import data_process
from model.batch import collate_pairs
from model.dataset import DPODataset
from model.lora import add_lora
from trainer import args, parallel
from trainer.chat_stage import prepared, save_adapter, split, start_from
from trainer.checkpoint import prepare_out_dir, save_weights
from trainer.config import PreferenceConfig
from trainer.loop import fit
from trainer.preference import REFERENCE_FREE, preference_loss, reference_log_probs

DEFAULTS = {
    "data_path": "dataset/dpo.jsonl",
    "epochs": 2,
    "batch_size": 4,  # rows of about ten pairs each, run twice: chosen and rejected
    "accumulation_steps": 1,
    "learning_rate": 1e-5,
    "weight_decay": 0.0,
    "wandb_project": "MiniMind-DPO",
}


def parse(argv):
    """The command line → PreferenceConfig."""
    parser = args.make_parser(__doc__)
    args.add_fields(parser, PreferenceConfig, DEFAULTS)
    return PreferenceConfig(**args.split(vars(parser.parse_args(argv)), PreferenceConfig)[0])


def load_data(cfg, model, tokenizer, runtime):
    """Packed pairs, with the reference's log-probs where the loss needs them; all ranks share that work."""
    cache = Path(cfg.out_dir) / "cache"
    with parallel.main_first(runtime):
        file = prepared("dpo", cfg, data_process.clean_file)
        dataset = DPODataset(file, model.cfg.max_seq_len, tokenizer, cache)
    if cfg.loss not in REFERENCE_FREE:
        dataset.reference = reference_log_probs(model, dataset, runtime, cfg.batch_size, cache)
        runtime.say(
            "start     the model is still its own reference: margin 0, accuracy 50 %, and for DPO loss ln 2 = 0.693"
        )
    return split(dataset, cfg, runtime, collate=collate_pairs)


def main(argv=None):
    cfg = parse(argv)
    prepare_out_dir(cfg.out_dir)
    with parallel.joined(cfg) as runtime:
        torch.manual_seed(cfg.seed)
        # as the reference is scored: dropout would be a difference between the two that no pair explains (as in trl)
        model, tokenizer = start_from(cfg, ["full_sft", "lora", "pretrain"], runtime, dropout=0.0)
        if cfg.use_lora:  # now, on the CPU, where the seed alone decides; a new adapter leaves the reference as it is
            add_lora(model, cfg)
        data = load_data(cfg, model, tokenizer, runtime)
        save = partial(save_adapter, cfg) if cfg.use_lora else save_weights
        fit(model, runtime, cfg, "dpo", tokenizer, data, partial(preference_loss, cfg=cfg), save)


if __name__ == "__main__":
    args.run(main)
