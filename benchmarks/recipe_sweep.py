"""Which optimizer learns most from a token: AdamW with cosine against Muon with a falling rate, each at its best.

    python benchmarks/recipe_sweep.py --data_path dataset/pretrain.bin --work_dir out/sweep

reads    a .bin with its _val part (data_process.py pretrain --val_fraction 0.03)
runs     1-pretrain.py, once per row of the table; what is in --work_dir is not run again
prints   a Markdown table, and how far Muon is ahead or behind with fewer of the tokens

First a sweep of both rates with one seed, then the best of each with the other seeds. Muon's runs are short ones with a
schedule of their own, not the beginnings of long ones: a rate that has not fallen yet hides what was learnt.
"""

import datetime
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from trainer import args
from trainer.checkpoint import save_json

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """One run of the sweep."""

    optimizer: str
    schedule: str
    learning_rate: float
    share: float  # of the full number of steps
    seed: int

    @property
    def flags(self):
        """What 1-pretrain.py is told beside the flags that all runs share."""
        floor = 0.1 if self.schedule == "cosine" else 0.0  # the usual floor of cosine; a falling line ends at 0
        return {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "learning_rate": self.learning_rate,
            "min_lr_ratio": floor,
            "seed": self.seed,
        }


class Sweep:
    """Runs recipes on one set of data and remembers their validation losses."""

    def __init__(self, typed):
        self.typed, self.losses = typed, {}

    def loss(self, recipe):
        """Validation loss of a recipe, nats per token; from its folder if it ran before."""
        if recipe not in self.losses:
            self.losses[recipe] = self._run(recipe)
            print(f"{recipe}: {self.losses[recipe]:.4f}", file=sys.stderr, flush=True)
        return self.losses[recipe]

    def _run(self, recipe):
        steps = round(self.typed.steps * recipe.share)
        name = f"{recipe.optimizer}_{recipe.schedule}_{recipe.learning_rate:g}_{steps}_{recipe.seed}"
        out = Path(self.typed.work_dir, f"{self.typed.preset}_{name}")
        shared = {
            "data_path": self.typed.data_path,
            "preset": self.typed.preset,
            "max_seq_len": self.typed.max_seq_len,
            "batch_size": self.typed.batch_size,
            "accumulation_steps": 1,
            "max_steps": steps,
            "eval_interval": max(1, steps // 5),
            "eval_batches": 10**6,  # all of the held-out part
            "out_dir": out,
        }
        flags = [word for name, value in (shared | recipe.flags).items() for word in (f"--{name}", str(value))]
        done = subprocess.run([sys.executable, str(ROOT / "1-pretrain.py"), *flags], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise ValueError(f"{recipe} ended with exit code {done.returncode}; its log is in {out}")
        (description,) = out.glob("pretrain_*.json")
        return json.loads(description.read_text(encoding="utf-8"))["val_loss"]

    def best(self, optimizer, schedule, rates, share):
        """The recipe with the lowest loss among `rates`, first seed; says so if it is at the end of the range."""
        tried = [Recipe(optimizer, schedule, rate, share, self.typed.seed) for rate in sorted(rates)]
        best = min(tried, key=self.loss)
        if len(tried) > 2 and best in (tried[0], tried[-1]):
            print(f"note: {best.learning_rate:g} is the end of the range for {optimizer}", file=sys.stderr)
        return best


def table_of(losses):
    """{Recipe: loss} → the lines of a Markdown table."""
    lines = [
        "| optimizer | schedule | learning rate | share of the steps | seed | validation loss |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r, loss in losses.items():
        row = (r.optimizer, r.schedule, f"{r.learning_rate:g}", f"{r.share:.0%}", r.seed, f"{loss:.4f}")
        lines.append(f"| {' | '.join(str(value) for value in row)} |")
    return lines


def verdict(losses, base, rivals):
    """Per share of the tokens: how far the rival's mean over seeds lies from the base's."""
    bar = statistics.mean(losses[r] for r in base)
    lines = [f"- AdamW, cosine, {base[0].learning_rate:g}: {bar:.4f} nats per token, mean of {len(base)} seeds"]
    for group in rivals:
        mean = statistics.mean(losses[r] for r in group)
        won = sum(losses[r] <= losses[b] for r, b in zip(group, base))
        r = group[0]
        lines.append(
            f"- {r.optimizer}, {r.schedule}, {r.learning_rate:g}, {r.share:.0%} of the tokens: {mean:.4f} "
            f"({mean - bar:+.4f}), not worse with {won} of {len(group)} seeds"
        )
    return lines


def parse(argv):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data_path", required=True, help="a .bin with a _val part beside it")
    args.add_flag(parser, "work_dir", default="out/sweep", help="a folder per run goes here (default: out/sweep)")
    args.add_flag(parser, "preset", default="tiny", help="model shape (default: tiny)")
    args.add_flag(parser, "max_seq_len", type=int, default=256, help="positions per row (default: 256)")
    args.add_flag(parser, "batch_size", type=int, default=16, help="rows in a step (default: 16)")
    args.add_flag(parser, "steps", type=int, default=400, help="steps of AdamW (default: 400)")
    args.add_flag(parser, "adamw", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3], help="its learning rates")
    args.add_flag(parser, "muon", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3, 1.6e-2], help="its learning rates")
    args.add_flag(parser, "schedule", default="linear", help="Muon's schedule (default: linear, to 0)")
    args.add_flag(parser, "shares", type=float, nargs="+", default=[0.6, 0.5], help="of the steps, for Muon")
    args.add_flag(parser, "seed", type=int, default=1337, help="the first seed (default: 1337)")
    args.add_flag(parser, "seeds", type=int, default=3, help="runs of the best recipes (default: 3)")
    args.add_flag(parser, "json", help="also write the numbers to this file")
    return parser.parse_args(argv)


def main(argv=None):
    typed = parse(argv)
    sweep = Sweep(typed)
    adamw = sweep.best("adamw", "cosine", typed.adamw, 1.0)
    muon = sweep.best("muon", typed.schedule, typed.muon, typed.shares[0])
    seeds = range(typed.seed, typed.seed + typed.seeds)
    base = [Recipe("adamw", "cosine", adamw.learning_rate, 1.0, s) for s in seeds]
    rivals = [[Recipe("muon", typed.schedule, muon.learning_rate, x, s) for s in seeds] for x in typed.shares]
    for recipe in [*base, *(r for group in rivals for r in group)]:
        sweep.loss(recipe)
    lines = [*table_of(sweep.losses), "", *verdict(sweep.losses, base, rivals)]
    tokens = typed.batch_size * typed.max_seq_len
    lines.append(f"- {typed.preset}, {typed.steps} steps of {tokens:,} positions; {datetime.date.today()}")
    print("\n".join(lines))
    if typed.json:
        save_json(Path(typed.json), {"notes": lines, "settings": vars(typed)})


if __name__ == "__main__":
    args.run(main)
