"""How fast training is, against the plain recipe, variant by variant: one process, one table.

    python benchmarks/train_speed.py --data_path dataset/pretrain.bin --preset small --batch_size 8

reads    a .bin, a folder of shards, or raw text (.jsonl, .json, .csv, .txt, .parquet; files or folders)
prints   a Markdown table, machine and date named; --json FILE keeps the numbers

A step is forward, backward, clip and optimizer: `trainer.step.step` itself for this project, `plain_recipe.py` for
the baseline. Variants take turns in every round, so that a busy machine slows all of them. Speed counts twice: slots
(B x T) per second, and scored tokens per second, where the share of scored slots comes from the whole of the data.
On a CPU that other jobs use too, --threads 1 counts CPU time instead of the time on the wall: ratios that repeat.
"""

import copy
import dataclasses
import datetime
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import numpy as np
import torch

from benchmarks.memory import memory_added_by
from benchmarks.plain_recipe import PlainRecipe, PlainTransformer, load_rows, write_bin
from model.bin_data import holds_ids, tokenizer_of
from model.chat import load_tokenizer
from model.LMConfig import PRESETS, config_for
from model.model import Transformer
from trainer import args
from trainer.checkpoint import save_json
from trainer.config import TrainConfig
from trainer.flops import flops_per_token, peak_flops
from trainer.losses import language_model_loss
from trainer.run import Data, Run
from trainer.runtime import Runtime, choose_compile, choose_device, has_bf16, machine
from trainer.step import step

LOGITS_EQUAL = 1e-4  # largest allowed difference between the plain recipe's logits and ours, fp32
DENSE = [name for name, shape in PRESETS.items() if not shape.get("use_moe")]  # the plain recipe has no experts
FOREVER = 10**9  # steps: compile always pays, the learning rate never falls


@dataclasses.dataclass
class Variant:
    """One row of the table, and what was measured for it."""

    name: str
    ours: bool  # this project's model and step; False: the plain recipe's
    dtype: torch.dtype
    compiled: bool = False
    packed: bool = False  # rows from model/packing.py; False: one padded document a row
    fused: bool = False
    recomputed: bool = False  # --recompute: a layer's input is kept, and the rest computed again for the gradient
    missing: str = ""  # why it cannot run on this machine
    seconds: list = dataclasses.field(default_factory=list)  # per step, one figure a round
    loss_error: float = 0.0  # nats per scored token: first loss minus the plain fp32 one, same weights and batch
    peak_bytes: int | None = None  # weights, optimizer state and what a step adds; None where the system does not tell


def variants_for(device):
    """The rows of the table in order: the baseline, single changes to it, this project's model step by step."""
    half, fp32 = torch.bfloat16, torch.float32
    plain = torch.float16 if device.type == "cuda" else fp32
    rows = [
        Variant("plain recipe (baseline)", False, plain),
        Variant("plain + packed rows", False, plain, packed=True),
        Variant("plain + compile", False, plain, compiled=True),
        Variant("plain + bf16", False, half),
        Variant("plain + fused AdamW", False, plain, fused=True),
        Variant("this model", True, fp32, fused=True),
        Variant("this model, packed", True, fp32, packed=True, fused=True),
        Variant("this model, packed, recomputed", True, fp32, packed=True, fused=True, recomputed=True),
        Variant("this model, packed, compiled", True, fp32, compiled=True, packed=True, fused=True),
        Variant("this model, packed, bf16", True, half, packed=True, fused=True),
        Variant("this model, packed, compiled, bf16", True, half, compiled=True, packed=True, fused=True),
    ]
    can_compile = choose_compile("auto", device, FOREVER)[0]
    for v in rows:
        if v.dtype == half and not has_bf16(device):
            v.missing = "no bf16 units on this machine"
        elif v.compiled and not can_compile:
            v.missing = "no compiler for this machine"
    return rows


class Bench:
    """Both models on one set of weights, and how each variant takes a step with them."""

    def __init__(self, lm, device, rows, batch_size):
        torch.manual_seed(1337)
        self.device, self.rows = device, rows
        self.ours, self.plain = Transformer(lm).to(device), PlainTransformer(lm).to(device)
        self.plain.load_state_dict(self.ours.state_dict(), strict=True)
        self.cfg = TrainConfig(batch_size=batch_size, accumulation_steps=1, max_steps=FOREVER)
        self.probe = rows.batches[True][0].to(device)  # what first losses are compared on
        self.recipes = {}

    @torch.no_grad()
    def check_logits(self):
        """ValueError unless both models give the same logits on the same weights; returns the largest difference."""
        ours, plain = self.ours(self.probe.ids).logits, self.plain(self.probe.ids)
        difference = (ours - plain).abs().max().item()
        if not difference <= LOGITS_EQUAL:
            raise ValueError(
                f"the plain recipe's logits differ from the model's by {difference:.1e}, more than {LOGITS_EQUAL:.0e}: "
                "one of them is wrong, so their times cannot be compared; run: pytest tests/test_model.py"
            )
        return difference

    def recipe_of(self, v):
        """What takes a variant's steps (a trainer Run or a PlainRecipe), and the callable model; made once."""
        model = self.ours if v.ours else self.plain
        key = (v.ours, v.dtype, v.fused, v.compiled, v.recomputed)
        if key not in self.recipes:
            forward = model
            if v.compiled and v.ours:
                forward = model = copy.deepcopy(model)  # it compiles its layers in place, and others go uncompiled
                model.compile()
            elif v.compiled:
                forward = torch.compile(model)
            elif v.recomputed:
                forward = model = copy.copy(model)  # the same weights
                model.recompute = True
            if v.ours:
                data = Data(self.rows.dataset, np.arange(len(self.rows.dataset)))
                runtime = Runtime(self.device, v.dtype)
                recipe = Run(model, runtime, self.cfg, "pretrain", None, data, language_model_loss)
            else:
                optimizer = torch.optim.AdamW(model.parameters(), lr=self.cfg.learning_rate, fused=v.fused or None)
                recipe = PlainRecipe(model, forward, optimizer, v.dtype, self.device)
            self.recipes[key] = recipe, forward
        return self.recipes[key]

    def first_loss(self, v):
        """Nats per scored token on the probe batch, without moving a weight."""
        recipe, forward = self.recipe_of(v)
        if not v.ours:
            return recipe.loss(self.probe.ids, self.probe.labels).item()
        with recipe.runtime.autocast():
            return language_model_loss(forward, self.probe)[0].item() / self.probe.units

    def step(self, v, number):
        """One optimizer step on the variant's own kind of rows → a function that waits for it and gives its loss."""
        recipe, forward = self.recipe_of(v)
        batch = self.rows.batches[v.packed][number % len(self.rows.batches[v.packed])]
        if v.ours:
            told = step(recipe, forward, [batch])
            return lambda: told.read().loss
        batch = batch.to(self.device)
        return recipe.step(batch.ids, batch.labels).item

    def resting_bytes(self, v):
        """Weights and optimizer state of a variant: what it holds between steps."""
        recipe, _ = self.recipe_of(v)
        optimizers = recipe.optimizers if v.ours else [recipe.optimizer]
        state = [t for o in optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
        return sum(t.nbytes for t in [*recipe.model.parameters(), *state])


def seconds_a_step(bench, v, steps, clock):
    """What one of several steps takes, in seconds of the clock.

    On a CPU the median of single ones, as other processes disturb it; on a GPU the mean of those that follow each
    other, as a run does not wait for it between them.
    """
    times, start = [], clock()
    for i in range(steps):
        loss_of = bench.step(v, i)
        if bench.device.type == "cpu":
            times.append(clock() - start)
            start = clock()
    loss = loss_of()
    seconds = statistics.median(times) if times else (clock() - start) / steps
    if not math.isfinite(loss):
        raise FloatingPointError(f"{v.name}: the loss is {loss}")
    return seconds


def measure(bench, variants, steps, rounds, clock):
    """Fills in what each variant that can run takes, by clock() in seconds; returns {dtype: peak FLOP/s}."""
    running = [v for v in variants if not v.missing]
    reference = bench.first_loss(Variant("", False, torch.float32))
    for v in running:  # before any weight moves
        v.loss_error = bench.first_loss(v) - reference
    for v in running:
        print(f"warming up: {v.name}", file=sys.stderr, flush=True)
        bench.step(v, 0)()
        added = memory_added_by(lambda v=v: bench.step(v, 1)(), bench.device)
        v.peak_bytes = added + bench.resting_bytes(v) if added is not None else None
    peaks = {v.dtype: 0.0 for v in running}
    for number in range(rounds):
        first = number % len(running)  # another one begins each round, as the first runs on a cold cache
        for v in running[first:] + running[:first]:
            v.seconds.append(seconds_a_step(bench, v, steps, clock))
        for dtype in peaks:  # measured on a CPU, so in every round and the best kept
            peaks[dtype] = max(peaks[dtype], peak_flops(bench.device, dtype))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return peaks


def records_of(variants, rows, slots, flops, peaks):
    """One dict per variant: the columns of the table. Ratios are medians over rounds of (baseline ÷ variant) time."""
    base, records = variants[0], []
    for v in variants:
        record = {"variant": v.name, "dtype": str(v.dtype).removeprefix("torch."), "compiled": v.compiled}
        records.append(record | ({"missing": v.missing} if v.missing else {}))
        if v.missing:
            continue
        speed, share = slots / statistics.median(v.seconds), rows.share[v.packed]
        ratio = statistics.median(b / s for b, s in zip(base.seconds, v.seconds))
        records[-1] |= {
            "tokens_per_second": speed,
            "slowest_round": slots / max(v.seconds),
            "fastest_round": slots / min(v.seconds),
            "ratio": ratio,
            "scored_share": share,
            "scored_per_second": speed * share,
            "scored_ratio": ratio * share / rows.share[base.packed],
            "mfu": flops * speed / peaks[v.dtype],
            "peak_bytes": v.peak_bytes,
            "loss_error": v.loss_error,
        }
    return records


def table_of(records):
    """Records → a Markdown table."""
    lines = [
        "| variant | dtype | compiled | raw tokens/s: median (min-max) | x | scored slots | scored tokens/s | x | MFU "
        "| peak memory | first loss |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        head = f"| {r['variant']} | {r['dtype']} | {'yes' if r['compiled'] else 'no'} "
        if "missing" in r:
            lines.append(f"{head}| not measured: {r['missing']} | | | | | | | |")
            continue
        memory = f"{r['peak_bytes'] / 2**20:,.0f} MiB" if r["peak_bytes"] is not None else "unknown"
        lines.append(
            f"{head}| {r['tokens_per_second']:,.0f} ({r['slowest_round']:,.0f}-{r['fastest_round']:,.0f}) "
            f"| {r['ratio']:.2f} | {r['scored_share']:.1%} | {r['scored_per_second']:,.0f} | {r['scored_ratio']:.2f} "
            f"| {r['mfu']:.1%} | {memory} | {r['loss_error']:+.1e} |"
        )
    return "\n".join(lines)


def parse(argv):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data_path", nargs="+", required=True, help="a .bin or a folder of them, or raw text")
    args.add_flag(parser, "preset", default="small", choices=DENSE, help="model shape (default: small)")
    args.add_flag(parser, "batch_size", type=int, default=8, help="rows in a step (default: 8)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    args.add_flag(parser, "tokenizer", help="tokenizer folder; unset: the data's, else the project's own")
    args.add_flag(parser, "steps", type=int, default=2, help="steps of each variant in a round (default: 2)")
    args.add_flag(parser, "rounds", type=int, default=5, help="rounds in which variants take turns (default: 5)")
    args.add_flag(parser, "threads", type=int, help="CPU threads; 1: seconds are CPU time (default: all cores)")
    args.add_flag(parser, "only", help="variants whose name holds this; the first of them is then the baseline")
    args.add_flag(parser, "json", help="also write the numbers to this file")
    typed = parser.parse_args(argv)
    for name in ("batch_size", "steps", "rounds", "threads"):
        if getattr(typed, name) is not None and getattr(typed, name) < 1:
            raise ValueError(f"--{name} is {getattr(typed, name)}; it must be at least 1")
    return typed


def main(argv=None):
    typed = parse(argv)
    device, first = choose_device(typed.device), Path(typed.data_path[0])
    torch.set_num_threads(typed.threads or torch.get_num_threads())
    cpu_time = typed.threads == 1 and device.type == "cpu"
    is_bin = holds_ids(first)
    if is_bin and len(typed.data_path) > 1:
        raise ValueError(f"--data_path names {len(typed.data_path)} paths; of .bin files name one, or their folder")
    tokenizer = load_tokenizer(typed.tokenizer or (tokenizer_of(first) if is_bin else None))
    lm = config_for(typed.preset, vocab_size=tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        path = first if is_bin else Path(folder, "data.bin")
        if not is_bin:
            write_bin(typed.data_path, tokenizer, path)
        rows = load_rows(path, lm.max_seq_len, tokenizer, folder, typed.batch_size, max(2, typed.steps))
        bench = Bench(lm, device, rows, typed.batch_size)
        difference = bench.check_logits()
        variants = [v for v in variants_for(device) if not typed.only or typed.only in v.name]
        if not variants:
            names = ", ".join(v.name for v in variants_for(device))
            raise ValueError(f"--only {typed.only}: no variant is named so; there are: {names}")
        clock = time.process_time if cpu_time else time.perf_counter
        peaks = measure(bench, variants, typed.steps, typed.rounds, clock)
    records = records_of(variants, rows, typed.batch_size * lm.max_seq_len, flops_per_token(lm, lm.max_seq_len), peaks)
    last = [r for r in records if "missing" not in r][-1]
    products = ", ".join(f"{p / 1e9:,.0f} GFLOP/s in {str(d).removeprefix('torch.')}" for d, p in peaks.items())
    notes = [
        f"{machine()}; {datetime.date.today()}; seconds {'of CPU time' if cpu_time else 'on the wall'}",
        f"{typed.preset}: {bench.ours.n_params():,} parameters, {typed.batch_size} rows of {lm.max_seq_len}; "
        f"{typed.rounds} rounds of {typed.steps} steps; both models' logits are equal within {difference:.0e}",
        f"data: {len(rows.lengths):,} documents, {rows.lengths.sum():,} ids; best matrix product: {products}",
        f"{last['variant']}, {last['dtype']}: {last['scored_ratio']:.2f} x the baseline's scored tokens/s",
    ]
    print("\n".join([table_of(records), "", *(f"- {n}" for n in notes)]))
    if typed.json:
        save_json(Path(typed.json), {"notes": notes, "settings": vars(typed), "rows": records})


if __name__ == "__main__":
    args.run(main)
