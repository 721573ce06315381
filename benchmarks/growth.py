"""What growing costs: tokens/s against model size, row length and number of processes.

    python benchmarks/growth.py --data_path dataset/pretrain.bin --out_dir out

reads    a .bin (data_process.py pretrain)
runs     1-pretrain.py for a few steps, once per point
writes   growth.json in --out_dir, which `python -m evaluation.report` draws
prints   a Markdown table

One thing grows at a time; the others stay at the first value of their list. Every step has the same number of tokens.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from model.LMConfig import PRESETS, config_for
from model.model import Transformer
from trainer import args
from trainer.checkpoint import prepare_out_dir, save_json
from trainer.runtime import machine

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 3  # steps that are not counted


def tokens_per_second(typed, preset, T, processes, folder):
    """The median over steps of one short run."""
    rows = max(1, typed.tokens // T // processes)
    settings = {"data_path": typed.data_path, "preset": preset, "max_seq_len": T, "batch_size": rows, "out_dir": folder}
    settings |= {"accumulation_steps": 1, "max_steps": WARM_UP + typed.steps, "log_interval": 1, "compile": "off"}
    settings |= {"eval_interval": 0, "eval_batches": 1, "device": typed.device, "fresh": True}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "1-pretrain.py")]
    words += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    threads = str(max(1, (os.cpu_count() or 1) // processes))  # torchrun would give each process one
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": threads})
    if done.returncode:
        raise ValueError(f"{preset}, rows of {T}, {processes} processes failed: {done.stderr.strip()[-500:]}")
    (log,) = Path(folder).glob("pretrain_*.jsonl")
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return statistics.median(r["tokens_per_second"] for r in records if r["step"] > WARM_UP and "loss" in r)


def points_of(typed):
    """[(what grows, label, size as a multiple of the first, preset, T, processes)]."""
    first_preset, first_T, first_n = typed.presets[0], typed.lengths[0], typed.processes[0]
    params = {preset: Transformer(config_for(preset)).n_params() for preset in typed.presets}
    smallest = params[first_preset]
    points = [("parameters", f"{params[p] / 1e6:.1f} M", params[p] / smallest, p, first_T, first_n) for p in params]
    points += [("positions in a row", str(T), T / first_T, first_preset, T, first_n) for T in typed.lengths]
    return points + [("processes", str(n), n / first_n, first_preset, first_T, n) for n in typed.processes]


def parse(argv):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data_path", required=True, help="a .bin to train on")
    args.add_flag(parser, "out_dir", default="out", help="where growth.json goes (default: out)")
    args.add_flag(parser, "presets", nargs="+", default=["tiny", "small", "base"], choices=list(PRESETS), help="shapes")
    args.add_flag(parser, "lengths", nargs="+", type=int, default=[128, 256, 512, 1024], help="positions in a row")
    args.add_flag(parser, "processes", nargs="+", type=int, default=[1, 2], help="processes, a GPU each if there are")
    args.add_flag(parser, "tokens", type=int, default=4096, help="tokens in a step (default: 4096)")
    args.add_flag(parser, "steps", type=int, default=7, help="steps that are counted (default: 7)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser.parse_args(argv)


def main(argv=None):
    typed = parse(argv)
    prepare_out_dir(typed.out_dir)
    measured, found = {}, []
    for what, label, factor, *run in points_of(typed):
        key = tuple(run)
        if key not in measured:  # the first point is shared by all three
            with tempfile.TemporaryDirectory() as folder:
                measured[key] = tokens_per_second(typed, *run, folder)
            print(f"{', '.join(map(str, run))}: {measured[key]:,.0f} tokens/s", file=sys.stderr, flush=True)
        found.append({"what": what, "label": label, "factor": factor, "tokens_per_second": measured[key]})
    about = {"machine": machine(), "date": str(datetime.date.today()), "command": " ".join(sys.argv)}
    save_json(Path(typed.out_dir, "growth.json"), {**about, "points": found})
    print("| what grows | to | tokens/s | x the first |\n|---|---:|---:|---:|")
    for what in dict.fromkeys(p["what"] for p in found):
        row = [p for p in found if p["what"] == what]
        for p in row:
            speed, ratio = p["tokens_per_second"], p["tokens_per_second"] / row[0]["tokens_per_second"]
            print(f"| {what} | {p['label']} | {speed:,.0f} | {ratio:.2f} |")
    print(f"\n{about['machine']}, {about['date']}; steps of {typed.tokens:,} tokens, eager")


if __name__ == "__main__":
    args.run(main)
