"""Stage 1: pretraining. The model reads text and learns to predict each next token.

reads    dataset/pretrain.bin   ids (data_process.py pretrain); or a folder of shards; or raw .jsonl, .csv, .txt
writes   out/pretrain_<dim>[_moe].pth   the base model, with a .json that describes it and a .jsonl log

    python 1-pretrain.py --data_path dataset/pretrain.bin --preset small
    torchrun --nproc_per_node 2 1-pretrain.py --use_wandb
    python 1-pretrain.py --preset tiny --dim 320 --max_steps 2000       every field of the model is a flag
    python 1-pretrain.py --schedule wsd --anneal_path dataset/pretrain_anneal.bin       ends on the best text

Stopped (ctrl-C, kill, power)? The same command continues where it was. Next: python 2-eval.py
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

import data_process
from cleaning.binfile import val_path_of
from model.bin_data import holds_ids, tokenizer_of
from model.chat import load_tokenizer
from model.dataset import Mixed, PretrainDataset, split_rows
from model.files import code_digest, digest_of, input_digest
from model.LMConfig import PRESETS, LMConfig, config_for
from model.model import Transformer
from trainer import args, parallel
from trainer.checkpoint import load_model, prepare_out_dir
from trainer.config import PretrainConfig
from trainer.loop import fit
from trainer.losses import language_model_loss
from trainer.run import Data

DEFAULTS = {"data_path": "dataset/pretrain.bin"}


def parse(argv):
    """The command line → (PretrainConfig, preset name, the LMConfig fields that were typed)."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "preset", default="small", help=f"model shape: {', '.join(PRESETS)} (default: small)")
    args.add_fields(parser.add_argument_group("training"), PretrainConfig, DEFAULTS)
    args.add_fields(parser.add_argument_group("model shape (default: the preset's)"), LMConfig, unset=True)
    typed = vars(parser.parse_args(argv))
    settings, shape = args.split(typed, PretrainConfig, LMConfig)
    config_for(typed["preset"], **shape)  # a wrong shape is told before anything is read
    return PretrainConfig(**settings), typed["preset"], shape


def packed(cfg, tokenizer, runtime):
    """The .bin (or folder of them) to train on; raw text is first turned into one, in out_dir/cache."""
    path = Path(cfg.data_path)
    if holds_ids(path) or not path.exists():
        return path
    made_from = digest_of([input_digest(path), code_digest(Path(__file__).parent / "cleaning")])
    name = f"{path.stem}_{tokenizer.hash}_{made_from}_{cfg.val_fraction}_{cfg.seed}.bin"
    file = Path(cfg.out_dir, "cache", name)
    if not file.is_file():
        if runtime.world > 1:
            raise ValueError(
                f"{path} is raw text; make a .bin of it first: python data_process.py pretrain --input {path}"
            )
        flags = ["--tokenizer", str(tokenizer.path), "--val_fraction", str(cfg.val_fraction), "--seed", str(cfg.seed)]
        data_process.main(["pretrain", "--input", str(path), "--output", str(file), *flags])
    return file


def load_data(cfg, lm, tokenizer, path):
    """Packed rows to train on, and the _val part beside them, or else a share of the rows, to validate on."""
    rows = partial(PretrainDataset, T=lm.max_seq_len, tokenizer=tokenizer, vocab_size=lm.vocab_size)
    rows = partial(rows, cache_dir=Path(cfg.out_dir) / "cache")
    train = rows(path, in_order=not cfg.shuffle)
    val_file = val_path_of(path)
    if val_file.is_file():
        val = rows(val_file)
        data = Data(train, np.arange(len(train)), val, np.arange(len(val)), shuffle=cfg.shuffle)
    else:
        train_rows, val_rows = split_rows(len(train), cfg.val_fraction, cfg.seed)
        data = Data(train, train_rows, train if len(val_rows) else None, val_rows, shuffle=cfg.shuffle)
    if cfg.anneal_path:
        data.train = Mixed(train, rows(cfg.anneal_path))
        data.tail_rows = np.arange(len(train), len(data.train))
    return data


def main(argv=None):
    cfg, preset, shape = parse(argv)
    tokenizer = load_tokenizer(cfg.tokenizer or tokenizer_of(cfg.data_path))
    prepare_out_dir(cfg.out_dir)
    with parallel.joined(cfg) as runtime:
        torch.manual_seed(cfg.seed)
        if cfg.init_from:
            model, about = load_model(cfg.init_from, **shape)
            tokenizer.check(about.get("tokenizer_hash"), model.cfg.vocab_size, cfg.init_from)
        else:
            model = Transformer(config_for(preset, **{"vocab_size": tokenizer.vocab_size, **shape}))
        with parallel.main_first(runtime):
            data = load_data(cfg, model.cfg, tokenizer, packed(cfg, tokenizer, runtime))
        loss = partial(language_model_loss, doc_mask=cfg.doc_mask)
        fit(model, runtime, cfg, "pretrain", tokenizer, data, loss)


if __name__ == "__main__":
    args.run(main)
