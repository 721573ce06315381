"""How fast instruction data become rows, and how full the rows are: packed, against one conversation a row.

    python benchmarks/data_speed.py --data_path dataset/demo/generated/sft.jsonl --max_seq_len 512

Prints one table. The share is of real tokens among all slots of the rows; a padded row holds one conversation, cut to
its length.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import data_process
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from model.dataset import SFTDataset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", nargs="+", required=True, help="files or folders of any schema")
    parser.add_argument("--max_seq_len", type=int, default=512, help="positions per row (default: 512)")
    parser.add_argument("--tokenizer", default=str(DEFAULT_TOKENIZER), help="tokenizer folder")
    cfg = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sft.jsonl")
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            data_process.main(["sft", "--input", *cfg.data_path, "--output", str(file)])
        cleaned = time.perf_counter() - start
        records = file.read_bytes().count(b"\n")
        start = time.perf_counter()
        rows = SFTDataset(file, cfg.max_seq_len, load_tokenizer(cfg.tokenizer), folder)
        encoded = time.perf_counter() - start
        lengths = rows.table[:, 1]
        padded = lengths.sum() / (len(lengths) * (cfg.max_seq_len + 1))
        print(f"{'records cleaned':<32} {records:>12,}  {records / cleaned:>10,.0f} a second")
        print(f"{'tokens encoded and packed':<32} {lengths.sum():>12,}  {lengths.sum() / encoded:>10,.0f} a second")
        for what, count in rows.counts.items():
            print(f"{what:<32} {count:>12,}")
        print(f"{f'rows of {cfg.max_seq_len}, packed':<32} {len(rows):>12,}  {rows.fill:>10.1%} real tokens")
        print(f"{f'rows of {cfg.max_seq_len}, padded':<32} {len(lengths):>12,}  {padded:>10.1%} real tokens")


if __name__ == "__main__":
    main()
