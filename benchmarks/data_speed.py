"""How fast raw text becomes ids, against the plain recipe; and chats rows, and how full these are.

    python benchmarks/data_speed.py pretrain --data_path my_texts/ --rounds 3
    python benchmarks/data_speed.py sft --data_path my_chats/ --max_seq_len 512

`pretrain`: the plain recipe (read a line, json.loads, one tokenizer(text) call per document, append to a list,
np.array) in turns with `data_process.py pretrain` as a person starts it, which also cleans, leaves out duplicates and
holds texts back; ratios are of one round. --share reads that part of the data in the plain recipe only, which has the
same speed at any size. Then the same with flags that cost time.

`sft`: the share is of real tokens among all slots of the rows; a padded row holds one conversation, cut to its length.
"""

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import numpy as np

import data_process
from cleaning.readers import expand_inputs
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from model.dataset import SFTDataset
from trainer.args import make_parser, run

ROOT = Path(__file__).resolve().parent.parent


def plain(files, tokenizer, share):
    """MB/s of the plain recipe on the first `share` of each .jsonl file."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(tokenizer)
    done, ids, start = 0, [], time.perf_counter()
    for file in files:
        size = 0
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                size += len(line.encode("utf-8"))
                text = json.loads(line)["text"]
                ids += tokenize(f"<s>{text}</s>")["input_ids"]
                if size > share * file.stat().st_size:
                    break
        done += size
    np.array(ids, dtype=np.uint16)
    return done / 1e6 / (time.perf_counter() - start)


def ours(files, tokenizer, folder, flags):
    """MB/s of data_process.py pretrain, from the start of the process to its end."""
    command = [sys.executable, "data_process.py", "pretrain", "--output", str(Path(folder, "p.bin"))]
    command += ["--tokenizer", str(tokenizer), *flags, "--input", *(str(Path(f).resolve()) for f in files)]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return sum(f.stat().st_size for f in files) / 1e6 / (time.perf_counter() - start)


def measure_pretrain(cfg):
    files = [f for f in expand_inputs(cfg.data_path) if f.suffix == ".jsonl"]
    if not files:
        raise ValueError(f"no .jsonl file in {' '.join(cfg.data_path)}; the plain recipe reads nothing else")
    tokenizer = str(Path(cfg.tokenizer).resolve())
    more = {"": [], "--near_duplicates 0.8": ["--near_duplicates", "0.8"], "--rules web": ["--rules", "web"]}
    more |= {"one process": ["--num_workers", "0"]}
    rates = {name: [] for name in ("plain", *more)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(cfg.rounds):
            rates["plain"].append(plain(files, tokenizer, cfg.share))
            for name, flags in more.items():
                rates[name].append(ours(files, tokenizer, folder, flags))
    print(f"{'':<34} {'MB/s':>8} {'times the plain recipe':>24}   (each round)")
    for name, own in rates.items():
        title = "plain recipe" if name == "plain" else f"data_process.py pretrain {name}"
        each = [rate / base for rate, base in zip(own, rates["plain"])]
        shown = ", ".join(f"{x:.2f}" for x in each)
        print(f"{title:<48} {statistics.median(own):>8.2f} {statistics.median(each):>8.2f}   ({shown})")


def measure_sft(cfg):
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


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["pretrain", "sft"])
    parser.add_argument("--data_path", nargs="+", required=True, help="files or folders")
    parser.add_argument("--max_seq_len", type=int, default=512, help="sft: positions per row (default: 512)")
    parser.add_argument("--rounds", type=int, default=3, help="pretrain: how often each is run (default: 3)")
    parser.add_argument("--share", type=float, default=0.25, help="pretrain: see above (default: 0.25)")
    parser.add_argument("--tokenizer", default=str(DEFAULT_TOKENIZER), help="tokenizer folder")
    cfg = parser.parse_args(argv)
    {"pretrain": measure_pretrain, "sft": measure_sft}[cfg.what](cfg)


if __name__ == "__main__":
    run(main)
