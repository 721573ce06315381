"""One training run: what it is, what it keeps between steps, how it is saved and continued."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from model.batch import collate
from model.lora import weights_fingerprint
from trainer import checkpoint, history, parallel, sharded
from trainer.config import changed_settings
from trainer.flops import peak_flops
from trainer.optim import WeightAverage, fill, make_optimizers
from trainer.sampler import OrderWithTail, RowOrder
from trainer.schedule import tail_steps, with_tail

# Compared by content when a run is continued, beside its settings and its shape.
CONTENT = ("rows_per_step", "data", "init_from", "dtype", "tokenizer_hash")


@dataclass
class Data:
    """What to train and validate on.

    Attributes:
        train, val: data sets whose items `collate` understands; val may be None.
        train_rows, val_rows: (n,) row numbers of each that are used.
        collate: list of items → a Batch.
        tail_rows: (n,) row numbers of `train` that alone are used in the falling tail of the wsd schedule; () for none.
        shuffle: rows come in a new random order every epoch; else as they are given.
    """

    train: object
    train_rows: np.ndarray
    val: object = None
    val_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    collate: Callable = collate
    tail_rows: np.ndarray = ()
    shuffle: bool = True


@dataclass
class Progress:
    """Where a run is; all of it goes into the resume file. The val_ values were measured at val_step.

    `skipped` counts steps that fp16 overflowed in; `skip` lists those whose data is left out, after `returns` bad ones.
    """

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    train_loss: float = math.nan
    val_loss: float = math.nan
    val_step: int | None = None
    val_bits_per_byte: float = math.nan
    val_facts: dict = field(default_factory=dict)
    skip: list = field(default_factory=list)
    returns: int = 0
    leaps: dict | None = None


class Run:
    """One training run: everything that fit() keeps between steps."""

    def __init__(self, model, runtime, cfg, stage, tokenizer, data, loss_fn, save_weights=checkpoint.save_weights):
        self.runtime, self.cfg, self.stage, self.tokenizer, self.data = runtime, cfg, stage, tokenizer, data
        self.loss_fn, self.save_weights, self.model = loss_fn, save_weights, model.to(runtime.device)
        self.path = checkpoint.checkpoint_path(cfg.out_dir, stage, model.cfg)
        self.initial = weights_fingerprint(model) if cfg.init_from else None
        self.plain = None  # the model that is saved, on the main rank, where the trained one is shared out
        if cfg.parallel == "fsdp":
            self.plain = copy.deepcopy(self.model).cpu() if runtime.is_main else None
            parallel.share_out(self.model, runtime)
        self.loads_to = "cpu" if cfg.parallel == "fsdp" else runtime.device
        self.optimizers = make_optimizers(model, cfg)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        how = cfg.batch_size, cfg.accumulation_steps, cfg.seed, runtime.rank, runtime.world
        self.order = RowOrder(data.train_rows, *how, shuffle=data.shuffle)
        self.total = cfg.max_steps or cfg.epochs * self.order.steps_per_epoch
        if len(data.tail_rows):
            if not cfg.max_steps:  # the tail comes behind all epochs of the other rows
                self.total = with_tail(self.total, cfg.anneal_fraction)
            switch = self.total - tail_steps(self.total, cfg.anneal_fraction)
            self.order = OrderWithTail(self.order, RowOrder(data.tail_rows, *how), switch)
        self.progress = Progress()
        self.taken_from, self.passed_over = None, []  # the saved state that the run goes on from, those it does not
        self.saved_step = None
        self.average = WeightAverage(self.model, cfg.ema) if cfg.ema else None
        self.reference = None  # a recorded curve to compare with
        self.peak = peak_flops(runtime.device, runtime.dtype) * runtime.world

    @property
    def tokens_per_step(self):
        """Positions in the rows of one optimizer step, on all devices."""
        return self.order.rows_per_step * self.data.train.T

    def identity(self):
        """What must be equal for a run to be the same run."""
        return {
            "settings": dataclasses.asdict(self.cfg),
            "config": dataclasses.asdict(self.model.cfg),
            "rows_per_step": self.order.rows_per_step,
            "data": self.data.train.fingerprint,
            "init_from": self.initial,
            "dtype": str(self.runtime.dtype).removeprefix("torch."),
            "tokenizer_hash": self.tokenizer.hash,
        }

    def save(self):
        """Saves on the main rank; if that fails, every rank raises, so that none waits for the others."""
        keep = self.runtime.is_main
        state = {
            **self.identity(),
            "progress": dataclasses.asdict(self.progress),
            "scaler": self.scaler.state_dict(),
            "model": parallel.whole(self.model.state_dict(), keep),
        }
        mean = self.average.mean if self.average else {}
        if self.average:
            state["average"] = parallel.whole(mean, keep)
        if self.cfg.sharded_state:
            folder = history.new_shards_folder(self.path, self.progress.step, self.runtime)
            state |= sharded.save(folder, self.model, self.optimizers, mean, self.runtime)
        else:
            state["optimizers"] = parallel.whole([o.state_dict() for o in self.optimizers], keep)
        failure = None
        if self.runtime.is_main:
            try:
                self._write(state)
            except OSError as error:
                failure = error
        if any(parallel.summed([failure is not None], self.runtime)):
            raise failure or OSError(f"the main rank could not save {self.path}")

    def _write(self, state):
        """Writes the resume file, then the weights and their description, each whole or not at all."""
        history.make_newest(self.path, self.taken_from, self.passed_over)
        self.taken_from, self.passed_over = None, []
        if self.progress.step != self.saved_step:  # saved again, a state replaces itself
            history.make_room(self.path, self.cfg.keep_last)
        in_shards = ("model", "average") if self.cfg.sharded_state else ()
        kept = {name: value for name, value in state.items() if name not in in_shards}
        checkpoint.write_atomically(checkpoint.resume_path(self.path), lambda f: torch.save(kept, f))
        self.saved_step = self.progress.step
        history.remove_unused_shards(self.path)
        unset = ({}, [], None)
        known = dataclasses.asdict(self.progress) | {"leaps": None}  # what a leap is judged by tells nobody anything
        facts = {k: v for k, v in known.items() if v == v and v not in unset}  # NaN: not measured
        facts |= facts.pop("val_facts", {})
        facts |= {"total_steps": self.total, "seed": self.cfg.seed, "settings": dataclasses.asdict(self.cfg)}
        facts |= {"dtype": self.identity()["dtype"], "world_size": self.runtime.world}
        description = checkpoint.describe(self.model.cfg, self.stage, self.tokenizer, **facts)
        if self.plain is not None:
            self.plain.load_state_dict(state["model"], strict=True)
            fill(dict(self.plain.named_parameters()), state.get("average", {}))
            self.save_weights(self.path, self.plain, description)
        else:
            with self.shown_weights():
                self.save_weights(self.path, self.model, description)
        if self.cfg.keep_every and self.progress.step % self.cfg.keep_every == 0:
            history.keep_weights(self.path, self.progress.step)

    def shown_weights(self):
        """A context in which the model holds the weights that are validated and saved: with --ema their mean."""
        return self.average.in_place(self.model) if self.average else contextlib.nullcontext()

    def forget_the_old(self):
        """Removes the states that --fresh passed over: after a kill they would be continued in this run's place."""
        if self.runtime.is_main:
            history.forget(self.path)

    def resume(self):
        """Continues an unfinished run of the same settings if there is one; ValueError names what differs."""
        if self.cfg.fresh:
            return
        file, state, passed_over = history.newest_usable(self.path, self.loads_to, self.runtime.say)
        parallel.require_same(state["progress"]["step"] if state else 0, self.runtime, self.cfg.out_dir)
        if state is None:
            return
        own = self.identity()
        older = {f.name: f.default for f in dataclasses.fields(self.cfg)}  # of settings that did not exist then
        differs = changed_settings(older | state["settings"], own["settings"])
        before = {f.name: f.default for f in dataclasses.fields(self.model.cfg)} | state["config"]
        differs |= {k: (before.get(k), v) for k, v in own["config"].items() if before.get(k) != v}
        differs |= {k: (state[k], own[k]) for k in CONTENT if state[k] != own[k]}
        if differs:
            listed = ", ".join(f"{name} {before} there, {now} now" for name, (before, now) in differs.items())
            raise ValueError(
                f"{file} belongs to a run with other settings ({listed}). Use the same ones to continue it, "
                "--fresh to start over, or another --out_dir"
            )
        self._take(file, state, passed_over)
        self.runtime.say(f"continuing {file} from step {self.progress.step} of {self.total}")

    def go_back(self, step):
        """Returns to the newest saved state of at most this step; False, and nothing is changed, if there is none."""
        found = history.newest_usable(self.path, self.loads_to, self.runtime.say, up_to=step)
        parallel.require_same(found[1]["progress"]["step"] if found[1] else -1, self.runtime, self.cfg.out_dir)
        if found[1] is None:
            return False
        self._take(*found)
        return True

    def _take(self, file, state, passed_over):
        """Makes a saved state the run's own."""
        self.taken_from, self.passed_over = file, passed_over
        mean = self.average.mean if self.average else {}
        if folder := history.shards_folder(self.path, state):
            sharded.load(folder, self.model, self.optimizers, mean, state["optimizers"])
        else:
            parallel.load_model_state(self.model, state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                parallel.load_optimizer_state(optimizer, saved)
            if self.average:
                self.average.mean = {n: parallel.part_like(t, mean[n]) for n, t in state["average"].items()}
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.saved_step = self.progress.step
