"""How much memory the data commands need on a corpus and on one ten times as large, made of the same texts.

    python benchmarks/data_memory.py --data_path my_texts/ --chats my_chats/ --megabytes 400 4096

Each corpus is written by going through the raw files again and again; every copy of a text gets a number, and three of
its characters are made others, the same for the same seed, so that no text occurs twice. Peak memory is the largest sum
of the resident sets of a command's processes, looked at every 50 ms; pages they share count in each.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from cleaning.conversations import conversation_of
from cleaning.readers import Drops, expand_inputs, read_records, read_texts
from trainer.args import make_parser, run

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "pretrain": ["pretrain", "--input", "{texts}", "--output", "{out}/p.bin"],
    "near-duplicates": ["pretrain", "--near_duplicates", "0.8", "--input", "{texts}", "--output", "{out}/n.bin"],
    "stats": ["stats", "--input", "{texts}"],
    "sft": ["sft", "--input", "{chats}", "--output", "{out}/s.jsonl"],
}


def varied(text, rng):
    """A text of the same kind that occurs nowhere else: a number in front, three of its characters made others."""
    for _ in range(3):
        text = text.replace(rng.choice(text or " "), chr(rng.randint(0x4E00, 0x9FA5)))
    return f"{rng.getrandbits(40)} {text}"


def write_corpus(path, records, vary, megabytes, seed=0):
    """Writes varied records until the file has that many megabytes."""
    rng, size = random.Random(seed), 0
    with open(path, "w", encoding="utf-8") as file:
        while True:
            for record in records:
                size += len((line := json.dumps(vary(record, rng), ensure_ascii=False) + "\n").encode())
                file.write(line)
                if size >= megabytes << 20:
                    return


def peak_of(command):
    """(largest sum of resident sets of a command and its children in bytes, seconds)."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        own = psutil.Process(process.pid)
        try:
            most = max(most, sum(p.memory_info().rss for p in [own, *own.children(recursive=True)]))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return most, time.perf_counter() - start


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--data_path", nargs="+", required=True, help="raw texts to vary")
    parser.add_argument("--chats", nargs="+", help="raw chats to vary, for sft")
    parser.add_argument("--megabytes", type=int, nargs=2, default=[400, 4096], help="sizes (default: 400 4096)")
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS), help="commands to run")
    parser.add_argument("--folder", help="where the corpora are made (default: the system's temporary folder)")
    cfg = parser.parse_args(argv)
    texts = list(read_texts(cfg.data_path, Drops()))
    chats = [r for p in (expand_inputs(cfg.chats) if cfg.chats else []) for _, r in read_records(p, Drops())]
    chats = [chat for chat in (conversation_of(record)[0] for record in chats) if chat]

    def vary_chat(chat, rng):
        turns = [{**turn, "content": varied(turn["content"], rng)} for turn in chat["conversations"]]
        return {**chat, "conversations": turns}

    print(f"{'command':<18} {'MB':>6} {'peak MiB':>9} {'seconds':>8} {'MB/s':>7} {'ratio':>6}", flush=True)
    before = {}
    for size in cfg.megabytes:
        with tempfile.TemporaryDirectory(dir=cfg.folder) as folder:
            names = {"texts": f"{folder}/texts.jsonl", "chats": f"{folder}/chats.jsonl", "out": folder}
            write_corpus(names["texts"], texts, lambda text, rng: {"text": varied(text, rng)}, size)
            if chats and "sft" in cfg.only:
                write_corpus(names["chats"], chats, vary_chat, size)
            for name in cfg.only:
                if name == "sft" and not chats:
                    continue
                words = [word.format(**names) for word in COMMANDS[name]]
                peak, seconds = peak_of([sys.executable, "data_process.py", *words])
                ratio = f"{peak / before[name]:.2f}" if name in before else ""
                before.setdefault(name, peak)
                print(
                    f"{name:<18} {size:>6,} {peak / 2**20:>9,.0f} {seconds:>8.1f} {size / seconds:>7.1f} {ratio:>6}",
                    flush=True,
                )


if __name__ == "__main__":
    run(main)
