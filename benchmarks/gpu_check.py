"""What a GPU has to show, in one command: that everything computes there what the plain fp32 model does, and how fast.

    python benchmarks/gpu_check.py --data_path dataset/pretrain.bin --json out/gpu.json
    python benchmarks/gpu_check.py --data_path dataset/pretrain.bin --device cpu --preset tiny --parts formats masks

reads    a .bin with its _val part (data_process.py pretrain)
prints   a table of what was compared and whether it holds; behind it the tables of train_speed.py and decode_speed.py

Each part is a process of its own, so that one that fails costs no other. What they compare is in gpu_parts.py.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from benchmarks.gpu_parts import PARTS, ROOT
from model.LMConfig import PRESETS
from trainer import args
from trainer.checkpoint import save_json
from trainer.runtime import choose_device, machine

TABLES = {  # behind the checks, each the whole output of a script beside this one
    "train": ["train_speed.py", "--data_path", "{data_path}", "--preset", "{preset}", "--batch_size", "{batch_size}"],
    "train_base": ["train_speed.py", "--data_path", "{data_path}", "--preset", "base", "--batch_size", "{batch_size}"],
    "decode": ["decode_speed.py", "--preset", "{preset}", "--batch", "1", "256"],
}


def parse(argv):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data_path", required=True, help="a .bin with a _val part beside it")
    args.add_flag(parser, "preset", default="small", choices=list(PRESETS), help="model shape (default: small)")
    args.add_flag(parser, "batch_size", type=int, default=64, help="rows in a step where speed counts (default: 64)")
    args.add_flag(parser, "device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    names = [*PARTS, *TABLES]
    args.add_flag(parser, "parts", nargs="+", default=names, choices=names, help="which (default: all)")
    args.add_flag(parser, "patience", type=int, default=240, help="most seconds for a part (default: 240)")
    args.add_flag(parser, "json", help="also write what was found to this file")
    parser.add_argument("--inside", action="store_true", help="for this script's own use: run one part here")
    return parser.parse_args(argv)


def output_of(words, patience):
    """(what a process printed, None) or (what it printed, why it did not end well)."""
    try:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=patience, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode("utf-8", "replace"), f"not ended after {patience} s"
    return done.stdout, None if not done.returncode else done.stderr.strip()[-1500:]


def main(argv=None):
    typed = parse(argv)
    if typed.inside:
        PARTS[typed.parts[0]](typed)
        return
    choose_device(typed.device)
    found, tables, failures = [], {}, {}
    common = ["--device", typed.device]

    def keep():  # after every part: whoever lends the machine may take it back at any time
        if typed.json:
            save_json(Path(typed.json), {"about": about, "compared": found, "tables": tables, "failures": failures})

    about = f"{machine()}, {datetime.date.today()}, {typed.preset}"
    print(f"{about}\n\n| compared | apart | bound | holds |\n|---|---:|---:|---|", flush=True)
    for name in (p for p in typed.parts if p in PARTS):
        own = ["--data_path", typed.data_path, "--preset", typed.preset, "--batch_size", str(typed.batch_size)]
        words = ["benchmarks/gpu_check.py", "--inside", "--parts", name, *own, *common]
        text, failure = output_of(words, typed.patience)
        for line in text.splitlines():
            if line.startswith("{"):
                found.append(r := json.loads(line))
                print(
                    f"| {r['what']} | {r['figure']:.2g} | {r['bound']:.2g} | {'yes' if r['holds'] else 'NO'} |",
                    flush=True,
                )
        if failure:
            failures[name] = failure
            print(f"| {name} | failed | | NO |", flush=True)
        keep()
    for name in (p for p in typed.parts if p in TABLES):
        script, *flags = (word.format(**vars(typed)) for word in TABLES[name])
        tables[name], failure = output_of([f"benchmarks/{script}", *flags, *common], typed.patience)
        failures |= {name: failure} if failure else {}
        keep()
        print(f"\n{script} {' '.join(flags)}\n\n{tables[name]}", flush=True)
    for name, failure in failures.items():
        print(f"\n{name} did not end well:\n{failure}", flush=True)
    if failures or not all(r["holds"] for r in found):
        raise SystemExit(1)


if __name__ == "__main__":
    args.run(main)
