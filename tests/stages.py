"""The stages after pretraining on a handful of records, started as a person starts them but in this process."""

import json
import runpy
from pathlib import Path

import torch

from model.chat import load_tokenizer
from model.LMConfig import LMConfig
from model.model import Transformer
from trainer.checkpoint import describe, save_weights

ROOT = Path(__file__).parent.parent
SCRIPTS = {"full_sft": "3-full_sft.py", "lora_sft": "4-lora_sft.py", "dpo": "5-dpo_train.py"}
WORDS = ["春天", "北京", "天气", "上海", "好", "我", "老师", "今天"]
QUICK = (
    "--device cpu --dtype float32 --compile off --num_workers 0 --log_interval 1 --eval_interval 0 --val_fraction 0.1"
).split()


def sentence(i, n):
    """A short text that differs for each i."""
    return "".join(WORDS[(i * (k + 3) + k) % len(WORDS)] for k in range(n)) + str(i)


def make_data(folder):
    """Writes sft.jsonl and dpo.jsonl of 60 records each."""
    chats = [{"q": sentence(i, 2), "a": sentence(i + 7, 2 + i % 4)} for i in range(60)]
    pairs = [
        {"prompt": sentence(i, 2), "chosen": "好" + sentence(i + 7, i % 4), "rejected": "老师" + sentence(i + 3, i % 3)}
        for i in range(60)
    ]
    for name, records in (("sft", chats), ("dpo", pairs)):
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def make_base(folder, tokenizer_dir, moe=False):
    """Writes a base model, pretrain_32[_moe].pth, that has learnt nothing; returns its path."""
    tokenizer = load_tokenizer(tokenizer_dir)
    torch.manual_seed(3)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 48, "dropout": 0.1}
    model = Transformer(LMConfig(**shape, use_moe=moe, vocab_size=tokenizer.vocab_size))
    path = folder / f"pretrain_32{'_moe' if moe else ''}.pth"
    save_weights(path, model, describe(model.cfg, "pretrain", tokenizer))
    return path


def flags_of(stage, data, base, out_dir, *more):
    """The command line of a stage."""
    file = data / ("dpo.jsonl" if stage == "dpo" else "sft.jsonl")
    words = ["--data_path", file, "--init_from", base, "--out_dir", out_dir, "--learning_rate", 3e-3, *QUICK, *more]
    return [str(word) for word in words]


def run_stage(stage, data, base, out_dir, *more):
    """Runs a stage's script here."""
    runpy.run_path(str(ROOT / SCRIPTS[stage]))["main"](flags_of(stage, data, base, out_dir, *more))
