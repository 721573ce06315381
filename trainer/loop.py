"""How anything here is trained: the only backward() of the project.

fit() = rows in a fixed random order → sums of losses ÷ scored tokens of the whole global step → clip → optimizer →
log, save, validate. Stages differ in model, data and loss function, which come from the numbered scripts.
"""

import dataclasses
import itertools
import math
import signal
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader

from model.batch import collate
from model.cross_entropy import IGNORE
from trainer import checkpoint, parallel
from trainer.config import changed_settings
from trainer.flops import peak_flops
from trainer.losses import language_model_loss
from trainer.metrics import Log, Meter, describe_run, start_wandb, training_line, validation_line
from trainer.optim import make_optimizers, set_learning_rate
from trainer.runtime import Stopped, StopSignal, choose_compile, ignore_stop_signals, seed_step
from trainer.sampler import RowOrder, StepSampler
from trainer.schedule import lr_factor

# Compared by content when a run is continued, beside its settings and its shape.
CONTENT = ("rows_per_step", "data", "init_from", "dtype", "tokenizer_hash")


@dataclass
class Data:
    """What to train and validate on.

    Attributes:
        train, val: data sets whose items `collate` understands; val may be None.
        train_rows, val_rows: (n,) row numbers of each that are used.
    """

    train: object
    train_rows: np.ndarray
    val: object = None
    val_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass
class Progress:
    """Where a run is; all of it goes into the resume file."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    train_loss: float = math.nan
    val_loss: float = math.nan
    val_bits_per_byte: float = math.nan


class Run:
    """One training run: everything that fit() keeps between steps."""

    def __init__(self, model, runtime, cfg, stage, tokenizer, data, loss_fn):
        self.runtime, self.cfg, self.stage, self.tokenizer, self.data = runtime, cfg, stage, tokenizer, data
        self.loss_fn, self.model = loss_fn, model.to(runtime.device)
        self.path = checkpoint.checkpoint_path(cfg.out_dir, stage, model.cfg)
        self.initial = checkpoint.weights_fingerprint(model) if cfg.init_from else None
        self.optimizers = make_optimizers(model, cfg)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)
        self.order = RowOrder(
            data.train_rows, cfg.batch_size, cfg.accumulation_steps, cfg.seed, runtime.rank, runtime.world
        )
        self.total = cfg.max_steps or cfg.epochs * self.order.steps_per_epoch
        self.progress = Progress()
        self.peak = peak_flops(runtime.device, runtime.dtype) * runtime.world

    # ---- saving and continuing -------------------------------------------------------------------------------------
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
        facts = {k: v for k, v in dataclasses.asdict(self.progress).items() if v == v}  # without NaN: not measured
        facts |= {"total_steps": self.total, "seed": self.cfg.seed, "settings": dataclasses.asdict(self.cfg)}
        facts |= {"dtype": self.identity()["dtype"], "world_size": self.runtime.world}
        description = checkpoint.describe(self.model.cfg, self.stage, self.tokenizer, **facts)
        checkpoint.save_weights(self.path, self.model, description)

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

    # ---- one step --------------------------------------------------------------------------------------------------
    def step(self, model, batches):
        """One optimizer step over the micro-batches of this rank.

        Returns:
            loss: mean nats per scored token over all ranks (float); norm: gradient norm before clipping (float);
            load: (L, E) tokens per expert on this rank.
        Raises:
            FloatingPointError: a loss or gradient is not finite; the weights have not moved.
        """
        cfg, runtime = self.cfg, self.runtime
        units, rows, tokens = parallel.summed(
            [sum(b.units for b in batches), sum(b.real_rows for b in batches), sum(b.tokens for b in batches)], runtime
        )
        if not units:
            raise ValueError(f"step {self.progress.step + 1} has no scored token; check --data_path")
        seed_step(cfg.seed, self.progress.step, runtime.rank)
        losses, load = [], 0
        for i, batch in enumerate(batches):
            share = batch.real_rows / rows  # counted before the batch moves, so that the host need not wait for the GPU
            batch = batch.to(runtime.device)
            with parallel.no_sync(model, skip=i < len(batches) - 1):
                with runtime.autocast():
                    loss, balance, expert_load = self.loss_fn(model, batch)
                # DDP averages over ranks; times world makes that the sum which the division by global units needs
                objective = (loss / units + balance * share) * runtime.world
                self.scaler.scale(objective).backward()
            losses.append(loss.detach())
            load = load + expert_load
        losses = torch.stack(losses).tolist()
        (mean,) = parallel.summed([sum(losses) / units], runtime)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        parameters = [p for group in self.optimizers for g in group.param_groups for p in g["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip or math.inf).item()
        if not math.isfinite(mean) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            self._refuse(mean, norm, losses, batches)
        set_learning_rate(self.optimizers, cfg.learning_rate * self._lr_factor())
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()  # fp16 overflow: the whole step is skipped; each optimizer sees only its own gradients
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += int(tokens)
        self.progress.skipped += not math.isfinite(norm)
        self.progress.train_loss = mean
        return mean, norm, load

    def _lr_factor(self):
        cfg = self.cfg
        return lr_factor(
            self.progress.step, self.total, cfg.schedule, cfg.warmup_iters, cfg.min_lr_ratio, cfg.anneal_fraction
        )

    def _refuse(self, mean, norm, losses, batches):
        bad = [row for loss, b in zip(losses, batches) if not math.isfinite(loss) for row in b.rows]
        where = f"rows {bad[:8]} of the training data" if bad else "another rank's rows, or the gradient alone"
        kept = f"the checkpoint {self.path} is kept" if self.path.exists() else "nothing had been saved yet"
        raise FloatingPointError(
            f"step {self.progress.step + 1}: loss {mean}, gradient norm {norm}; seen in {where}. "
            f"The weights were not moved; {kept}. Try a lower --learning_rate, --dtype float32, or look at those rows"
        )

    # ---- validation ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def validate(self):
        """Validation loss in nats per token and bits per byte, over at most eval_batches batches; None without data."""
        if self.data.val is None:
            return None
        cfg, runtime = self.cfg, self.runtime
        order = RowOrder(self.data.val_rows, cfg.batch_size, 1, cfg.seed, runtime.rank, runtime.world)
        stop = min(order.steps_per_epoch, max(1, cfg.eval_batches // runtime.world))
        bytes_of = torch.from_numpy(self.tokenizer.token_bytes)
        nats, units, text_bytes = 0.0, 0, 0
        self.model.eval()
        for batch in DataLoader(self.data.val, batch_sampler=StepSampler(order, 0, stop), collate_fn=collate):
            with runtime.autocast():
                loss, _, _ = self.loss_fn(self.model, batch.to(runtime.device))
            nats += loss.item()
            units += batch.units
            text_bytes += int(bytes_of[batch.labels[batch.labels != IGNORE]].sum())
        self.model.train()
        nats, units, text_bytes = parallel.summed([nats, units, text_bytes], runtime)
        self.progress.val_loss = nats / units
        self.progress.val_bits_per_byte = nats / math.log(2) / max(text_bytes, 1)
        return {"val_loss": self.progress.val_loss, "val_bits_per_byte": self.progress.val_bits_per_byte}


def fit(model, runtime, cfg, stage, tokenizer, data, loss_fn=language_model_loss):
    """Trains `model` and leaves out/<stage>_<dim>.pth behind; returns the Progress at the end.

    Args:
        model: a Transformer, freshly initialised or loaded.
        runtime: from parallel.joined.
        cfg: TrainConfig.
        stage: 'pretrain', 'full_sft', …; names the files.
        tokenizer: recorded in the checkpoint; gives bits per byte.
        data: Data.
        loss_fn: (model, batch) → sum of losses, balance loss, expert load; see trainer/losses.py.
    Raises:
        Stopped: after ctrl-C or SIGTERM, when everything is saved.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
        OSError: a save failed; the one before is kept.
    """
    checkpoint.prepare_out_dir(cfg.out_dir)
    run = Run(model, runtime, cfg, stage, tokenizer, data, loss_fn)
    run.resume()
    steps = parallel.summed([run.progress.step, run.progress.step**2], runtime)
    if steps[1] * runtime.world != steps[0] ** 2:  # the ranks' steps differ: some of them found no resume file
        raise ValueError(f"the ranks found different checkpoints; out_dir {cfg.out_dir} must be one shared folder")
    if run.progress.step >= run.total:
        runtime.say(
            f"{run.path} is finished: {run.progress.step} of {run.total} steps. "
            "To train more, raise --epochs or --max_steps; to start over: --fresh"
        )
        return run.progress
    describe_run(run)
    compiled, reason = choose_compile(cfg.compile, runtime.device, run.total)
    runtime.say(f"compile   {'on' if compiled else 'off'}: {reason}")
    if compiled:
        model.compile()
    wandb_run = start_wandb(cfg, runtime, run.identity())
    log = Log(runtime, run.path.with_suffix(".jsonl"), run.progress.step, wandb_run)
    try:
        with StopSignal() as stop:
            train(run, parallel.wrap(run.model, runtime), log, stop)
    finally:
        log.close()
    runtime.say(f"saved {run.path}")
    return run.progress


def train(run, model, log, stop):
    """The loop over steps: train, log, save, validate, until the end or a signal."""
    cfg, runtime, progress = run.cfg, run.runtime, run.progress
    sampler = StepSampler(run.order, progress.step, run.total)
    batches = iter(
        DataLoader(
            run.data.train,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=cfg.num_workers,
            pin_memory=runtime.device.type == "cuda",
            persistent_workers=cfg.num_workers > 0,
            worker_init_fn=ignore_stop_signals,
        )
    )
    model.train()
    meter = Meter(run)
    while progress.step < run.total:
        window = list(itertools.islice(batches, run.order.passes(progress.step)))
        try:
            meter.note(*run.step(model, window))
        except torch.OutOfMemoryError as error:
            hint = "halve it and double --accumulation_steps: the result is the same"
            raise MemoryError(f"{runtime.device} is too small for --batch_size {cfg.batch_size}; {hint}") from error
        done = progress.step == run.total
        if progress.step % cfg.log_interval == 0 or done:
            record = meter.record()
            log.record(training_line(record), record)
        (stopped,) = parallel.summed([stop.received], runtime)
        if progress.step % cfg.save_interval == 0 or done or stopped:
            with meter.paused():
                run.save()
        if stopped and not done:
            runtime.say(
                f"stopped at step {progress.step}, saved {run.path}; run the same command (without --fresh) to continue"
            )
            raise Stopped(128 + (stop.received or signal.SIGTERM))
        due = cfg.eval_interval and progress.step % cfg.eval_interval == 0
        if due or done:  # after the save: a validation that fails must not cost it
            with meter.paused():
                measured = run.validate()
                if measured:
                    record = {"step": progress.step, "total": run.total, **measured}
                    log.record(validation_line(record), record)
    if not math.isnan(progress.val_loss):
        run.save()  # once more, so that the description has the validation loss
