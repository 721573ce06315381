"""Raw data → what the training scripts read.

    python data_process.py demo
        reads    dataset/demo/              fact tables and templates of this project
        writes   dataset/demo/generated/    a small corpus for every stage, so that the whole pipeline runs offline

    python data_process.py pretrain --input FILE_OR_FOLDER ... --output dataset/pretrain.bin
        reads    .jsonl .json .csv .txt .parquet, plain or .gz; UTF-8, GB18030 or UTF-16. The text is in the field
                 `text` or `content`, in the words of a chat or instruction record, or in --field NAME
        cleans   Unicode NFC, no control characters, nothing empty, no text twice
        writes   pretrain.bin               ids as uint16, `<s>text</s>` end to end
                 pretrain_val.bin           the same for about 1 % of the texts, which are not in pretrain.bin
                 pretrain.json, pretrain_val.json   counts, tokenizer, sources: what each .bin is made of

What cannot be used is counted by reason, and the first of each reason is shown with its file and line.
Next: python 1-pretrain.py --data_path dataset/pretrain.bin
"""

import argparse
import importlib.metadata
import os
import platform
import time
from functools import partial
from pathlib import Path

from cleaning.binfile import BinWriter, check_output, remove_bin, sha256_of, val_path_of
from cleaning.files import progress_meter
from cleaning.pieces import encode_texts, encoder_of
from cleaning.pretrain import clean_batches, encoded_batches, is_held_out
from cleaning.readers import Drops, expand_inputs
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from trainer import args

SMALL = 8 << 20  # bytes of input below which starting worker processes takes longer than they save


def parse(argv):
    """The command line → namespace; `command` names the subcommand."""
    parser = args.make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="write a small corpus for every stage")
    args.add_flag(demo, "output_dir", default="dataset/demo/generated", help="folder to write (default: %(default)s)")
    pretrain = commands.add_parser("pretrain", help="raw text files → packed ids")
    args.add_flag(pretrain, "input", nargs="+", required=True, metavar="PATH", help="files and folders")
    args.add_flag(pretrain, "output", required=True, metavar="FILE.bin", help="for example dataset/pretrain.bin")
    args.add_flag(pretrain, "tokenizer", default=str(DEFAULT_TOKENIZER), metavar="DIR", help="default: %(default)s")
    args.add_flag(pretrain, "field", metavar="NAME", help="field with the text (default: found by itself)")
    args.add_flag(
        pretrain, "val_fraction", type=float, default=0.01, help="share held out (default: %(default)s; 0: none)"
    )
    args.add_flag(pretrain, "num_workers", type=int, metavar="N", help="encoding processes (default: one per core)")
    for command in (demo, pretrain):
        args.add_flag(command, "seed", type=int, default=0, help="same seed, same result (default: %(default)s)")
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show a full traceback")
    return parser.parse_args(argv)


def demo(cfg):
    from cleaning.demo import generate

    for name, count in generate(cfg.output_dir, cfg.seed).items():
        print(f"{name:<24} {count:>9,}" if isinstance(count, int) else f"{name:<24} {count}")
    print(f"written to {cfg.output_dir}")


def pretrain(cfg):
    # 1. Everything that can be refused is refused before anything is read.
    if not 0 <= cfg.val_fraction < 1:
        raise ValueError(
            f"--val_fraction {cfg.val_fraction} is not a share of the texts; give 0 up to below 1, such as 0.01"
        )
    paths = expand_inputs(cfg.input)
    check_output(cfg.output, paths)
    tokenizer = load_tokenizer(cfg.tokenizer)
    encoder_of(load_tokenizer, cfg.tokenizer)  # V ≤ 65,536
    total, start, drops = sum(p.stat().st_size for p in paths), time.monotonic(), Drops()
    workers = cfg.num_workers if cfg.num_workers is not None else min(8, os.cpu_count() or 1) * (total > SMALL)

    # 2. Texts are read and cleaned here and encoded beside it, a few megabytes at a time.
    batches = clean_batches(paths, drops, cfg.field, progress_meter(total, "reading"))
    encode = partial(encode_texts, load_tokenizer, cfg.tokenizer)
    new_writer = partial(BinWriter, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    with new_writer(cfg.output) as train, new_writer(val_path_of(cfg.output)) as val:
        for texts, keys, encoded in encoded_batches(batches, encode, workers):
            held_out = [is_held_out(key, cfg.seed, cfg.val_fraction) for key in keys]
            for writer, part in ((train, False), (val, True)):
                chosen = [i for i, h in enumerate(held_out) if h == part]
                writer.add([texts[i] for i in chosen], [encoded[i] for i in chosen])

        # 3. All files are complete on the disk before the first one replaces an old one.
        if not train.documents:
            kept = (
                f"{val.documents} text(s) fell into the validation part, none is left to train on; lower --val_fraction"
            )
            nothing = f"no usable text in {', '.join(cfg.input)}; nothing written"
            raise ValueError(f"{kept if val.documents else nothing}\n{drops.table()}")
        description = {
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "tokenizer": os.path.relpath(tokenizer.path),
            "tokenizer_hash": tokenizer.hash,
            "seed": cfg.seed,
            "val_fraction": cfg.val_fraction,
            "sources": [{"path": str(p), "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths],
            "dropped": dict(sorted(drops.counts.items())),
            "versions": {"python": platform.python_version(), "tokenizers": importlib.metadata.version("tokenizers")},
        }
        writers = [train, val] if val.documents else [train]
        for writer in writers:
            writer.prepare(part="val" if writer is val else "train", **description)
        for writer in writers:
            writer.commit()
    if not val.documents:
        remove_bin(val.path)

    # 4. What came out.
    print(f"\n{'file':<24} {'documents':>11} {'tokens':>14} {'characters':>14} {'chars/token':>11} {'text bytes':>14}")
    for w in writers:
        print(f"{w.path.name:<24} {w.documents:>11,} {w.tokens:>14,} {w.characters:>14,}", end=" ")
        print(f"{w.characters / w.tokens:>11.2f} {w.text_bytes:>14,}")
    print(drops.table())
    megabytes, seconds = total / 1e6, time.monotonic() - start
    print(
        f"{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s; written to {Path(cfg.output).parent}"
    )


def main(argv=None):
    cfg = parse(argv)
    {"demo": demo, "pretrain": pretrain}[cfg.command](cfg)


if __name__ == "__main__":
    args.run(main)
