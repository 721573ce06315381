"""One training run: what it is, what it keeps between steps, how it is saved and continued."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from model.batch import collate
from model.lora import weights_fingerprint
from trainer import checkpoint, parallel
from trainer.config import changed_settings
from trainer.flops import peak_flops
from trainer.optim import make_optimizers
from trainer.sampler import RowOrder

# Compared by content when a run is continued, beside its settings and its shape.
CONTENT = ("rows_per_step", "data", "init_from", "dtype", "tokenizer_hash")


@dataclass
class Data:
    """What to train and validate on.

    Attributes:
        train, val: data sets whose items `collate` understands; val may be None.
        train_rows, val_rows: (n,) row numbers of each that are used.
        collate: list of items → a Batch.
    """

    train: object
    train_rows: np.ndarray
    val: object = None
    val_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    collate: Callable = collate


@dataclass
class Progress:
    """Where a run is; all of it goes into the resume file. The val_ values were measured at val_step."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    train_loss: float = math.nan
    val_loss: float = math.nan
    val_step: int | None = None
    val_bits_per_byte: float = math.nan
    val_facts: dict = field(default_factory=dict)


class Run:
    """One training run: everything that fit() keeps between steps."""

    def __init__(self, model, runtime, cfg, stage, tokenizer, data, loss_fn, save_weights=checkpoint.save_weights):
        self.runtime, self.cfg, self.stage, self.tokenizer, self.data = runtime, cfg, stage, tokenizer, data
        self.loss_fn, self.save_weights, self.model = loss_fn, save_weights, model.to(runtime.device)
        self.path = checkpoint.checkpoint_path(cfg.out_dir, stage, model.cfg)
        self.initial = weights_fingerprint(model) if cfg.init_from else None
        self.optimizers = make_optimizers(model, cfg)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.order = RowOrder(
            data.train_rows, cfg.batch_size, cfg.accumulation_steps, cfg.seed, runtime.rank, runtime.world
        )
        self.total = cfg.max_steps or cfg.epochs * self.order.steps_per_epoch
        self.progress = Progress()
        self.peak = peak_flops(runtime.device, runtime.dtype) * runtime.world

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
        failure = None
        if self.runtime.is_main:
            try:
                self._write()
            except OSError as error:
                failure = error
        if any(parallel.summed([failure is not None], self.runtime)):
            raise failure or OSError(f"the main rank could not save {self.path}")

    def _write(self):
        """Writes the resume file, then the weights and their description, each whole or not at all."""
        state = {
            **self.identity(),
            "progress": dataclasses.asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }
        checkpoint.write_atomically(checkpoint.resume_path(self.path), lambda f: torch.save(state, f))
        known = dataclasses.asdict(self.progress).items()
        facts = {k: v for k, v in known if v == v and v not in ({}, None)}  # NaN, {}, None: not measured
        facts |= facts.pop("val_facts", {})
        facts |= {"total_steps": self.total, "seed": self.cfg.seed, "settings": dataclasses.asdict(self.cfg)}
        facts |= {"dtype": self.identity()["dtype"], "world_size": self.runtime.world}
        description = checkpoint.describe(self.model.cfg, self.stage, self.tokenizer, **facts)
        self.save_weights(self.path, self.model, description)

    def forget_the_old(self):
        """Removes the resume file that --fresh passed over: after a kill it would be continued in this run's place."""
        if self.runtime.is_main:
            checkpoint.resume_path(self.path).unlink(missing_ok=True)

    def resume(self):
        """Continues an unfinished run of the same settings if there is one; ValueError names what differs."""
        file = checkpoint.resume_path(self.path)
        if self.cfg.fresh or not file.is_file():
            return
        state = checkpoint.load_file(file, self.runtime.device)
        own = self.identity()
        differs = changed_settings(state["settings"], own["settings"])
        differs |= {k: (v, own["config"].get(k)) for k, v in state["config"].items() if own["config"].get(k) != v}
        differs |= {k: (state[k], own[k]) for k in CONTENT if state[k] != own[k]}
        if differs:
            listed = ", ".join(f"{name} {before} there, {now} now" for name, (before, now) in differs.items())
            raise ValueError(
                f"{file} belongs to a run with other settings ({listed}). Use the same ones to continue it, "
                "--fresh to start over, or another --out_dir"
            )
        self.model.load_state_dict(state["model"], strict=True)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.runtime.say(f"continuing {file} from step {self.progress.step} of {self.total}")
