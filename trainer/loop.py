"""How anything here is trained.

fit() = rows in a fixed random order → a step (step.py, where the only backward() is) → log, save, validate. Stages
differ in model, data and loss function, which come from the numbered scripts.
"""

import itertools
import math
import signal
import time

import torch
from torch.utils.data import DataLoader

from model.LMConfig import Auto
from trainer import checkpoint, parallel
from trainer.batch_fit import fit_batch
from trainer.guard import BadStep, LeapDetector, get_past
from trainer.losses import language_model_loss
from trainer.metrics import Log, Meter, describe_run, start_wandb, training_line, validation_line
from trainer.profiling import Profiler
from trainer.reference import judged, like_steps, reference_for
from trainer.run import Run
from trainer.runtime import Interrupted, Stopped, StopSignal, begin_worker, choose_compile
from trainer.sampler import StepSampler
from trainer.step import step
from trainer.validation import validate


def fit(model, runtime, cfg, stage, tokenizer, data, loss_fn=language_model_loss, save_weights=checkpoint.save_weights):
    """Trains `model` and leaves out/<stage>_<dim>.pth behind; returns the Progress at the end.

    Args:
        model: a Transformer, freshly initialised or loaded.
        runtime: from parallel.joined.
        cfg: TrainConfig.
        stage: 'pretrain', 'full_sft', …; names the files.
        tokenizer: recorded in the checkpoint; gives bits per byte.
        data: Data.
        loss_fn: (model, batch) → Losses; see trainer/losses.py.
        save_weights: (path, model, description) → writes the checkpoint; LoRA merges here.
    Raises:
        Stopped: after ctrl-C or SIGTERM, when everything is saved.
        FloatingPointError: a step went wrong and could not be skipped, see trainer/guard.py; the last save is kept.
        OSError: a save failed; the one before is kept.
    """
    checkpoint.prepare_out_dir(cfg.out_dir)
    model.recompute = cfg.recompute
    if isinstance(cfg.batch_size, Auto):
        fit_batch(model.to(runtime.device), runtime, cfg, data, loss_fn)
    if runtime.device.type == "cuda":  # what was tried, or scored before, is no part of what training takes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(runtime.device)
    run = Run(model, runtime, cfg, stage, tokenizer, data, loss_fn, save_weights)
    run.resume()
    if run.progress.step >= run.total and not lacks_validation(run):
        runtime.say(
            f"{run.path} is finished: {run.progress.step} of {run.total} steps. "
            "To train more, raise --epochs or --max_steps; to start over: --fresh"
        )
        return run.progress
    curve = None if cfg.init_from else reference_for(model.cfg, stage, tokenizer.hash, run.tokens_per_step)
    run.reference = curve if curve and like_steps(curve, run.tokens_per_step) else None
    describe_run(run, curve)
    compiled, reason = choose_compile(cfg.compile, runtime.device, run.total)
    runtime.say(f"compile   {'on' if compiled else 'off'}: {reason}")
    if compiled:
        model.compile()
    wandb_run = start_wandb(cfg, runtime, run.identity())
    log = Log(runtime, run.path.with_suffix(".jsonl"), run.progress.step, wandb_run)
    try:
        with StopSignal() as stop:
            Training(run, parallel.wrap(run.model, runtime), log, stop).go()
    finally:
        log.close()
    runtime.say(f"saved {run.path}")
    return run.progress


def lacks_validation(run):
    """Was this run stopped between its last save and its last validation?"""
    return len(run.data.val_rows) > 0 and run.progress.val_step != run.progress.step


class Training:
    """The loop over steps: train, log, save, validate, until the end or a signal.

    A GPU gets its orders for a step before the host reads what came of the one before: then it never waits for them.
    Where something is logged, kept or measured, all steps so far are read.

    Args:
        run: a Run.
        model: its model as parallel.wrap returned it.
        log: a Log; stop: a StopSignal.
    """

    def __init__(self, run, model, log, stop):
        self.run, self.model, self.log, self.stop = run, model, log, stop
        self.profiler, self.trains = Profiler(run), False
        self.begin()

    def begin(self):
        """Starts from where the run's progress stands: at the beginning, or after it went back."""
        self.under_way, self.before = [], None  # (Told, seconds waited for its data) unread; the Told read last
        self.meter, self.leaps = Meter(self.run), LeapDetector(self.run.progress.leaps)
        self.windows = windows_of(self.run)

    def go(self):
        """Takes the steps that are left."""
        run, cfg = self.run, self.run.cfg
        self.model.train()
        if (cfg.init_from and run.progress.step == 0) or run.progress.step >= run.total:
            # what the stage starts from, to see what it changes; or what a run killed after its last save lacks
            log_validation(run, self.log, self.stop)
        while run.progress.step < run.total:
            try:
                self.take_step()
                interrupted = False
            except Interrupted:
                interrupted = True
            if not self.read(most=0 if interrupted or due(run) else 1):
                continue
            if interrupted:
                with self.meter.paused():
                    save_and_leave(run, self.stop)
                self.windows = windows_of(run)
            else:
                keep_books(run, self.log, self.meter, self.stop)
        self.profiler.tell()
        if not math.isnan(run.progress.val_loss):
            run.save()  # once more, so that the description has the validation loss

    def take_step(self):
        """Takes the next step; Interrupted if a signal came."""
        run = self.run
        if run.progress.step in run.progress.skip:  # its data was found to be bad
            run.progress.step += 1
            return
        start = time.perf_counter()
        window = next(self.windows)
        waited = time.perf_counter() - start
        with run.runtime.memory_for(run.cfg.batch_size), self.profiler.step():
            self.under_way.append((step(run, self.model, window, self.stop), waited))

    def read(self, most):
        """Reads what steps found out until at most so many are left unread; False if the run went back because of it.

        Raises:
            FloatingPointError: a bad step that cannot be got past.
        """
        while len(self.under_way) > most:
            told, waited = self.under_way.pop(0)
            before, self.before = self.before, told
            try:
                found = told.read()
            except BadStep as bad:
                if self.went_back(told.at, str(bad), moved=False):
                    return False
                continue
            if told.begun and before:  # a GPU was mostly busy meanwhile with the step before
                waited = min(waited, told.idle_since(before))
            self.meter.note(*found, waited)
            if self.run.cfg.fresh and not self.trains:
                self.run.forget_the_old()  # it trains: now the run before is not needed any more
            self.trains = True
            if self.leaps.note(found.loss):
                trouble = f"the loss leapt up {self.leaps.high} steps ago and stays there, {found.loss:.3f} now"
                if self.went_back(told.at, trouble, moved=True):
                    return False
                self.leaps = LeapDetector()  # the loss is high and there is no way back: this is what is usual now
        self.run.progress.leaps = self.leaps.state()
        return True

    def went_back(self, at, trouble, moved):
        """Gets the run past trouble that step `at` (0-based) met; True if it returned to a saved state for that."""
        back, line = get_past(self.run, trouble, self.leaps.began(at, moved), at, moved)
        if back:
            self.log.cut(self.run.progress.step)
            self.begin()
        number = self.run.progress.step if back else at + 1
        self.log.record(line, {"step": number, "total": self.run.total, "bad_step": trouble})
        return back


def due(run):
    """Whether anything is logged, kept or measured after the steps taken so far."""
    cfg, number = run.cfg, run.progress.step
    every = cfg.log_interval, cfg.save_interval, cfg.keep_every, cfg.eval_interval
    return number == run.total or any(n and number % n == 0 for n in every)


def keep_books(run, log, meter, stop):
    """What is due after a step: a line, a save, a validation."""
    cfg, step_number = run.cfg, run.progress.step
    done = step_number == run.total
    if (step_number % cfg.log_interval == 0 or done) and meter.losses:
        record = meter.record()
        log.record(training_line(record), record)
    if any(n and step_number % n == 0 for n in (cfg.save_interval, cfg.keep_every)) or done:
        with meter.paused():
            run.save()
    if done or (cfg.eval_interval and step_number % cfg.eval_interval == 0):
        with meter.paused():  # after the save: a validation that fails must not cost it
            log_validation(run, log, stop)


def windows_of(run):
    """The micro-batches of each step to come, in lists."""
    cfg, start = run.cfg, run.progress.step
    ahead = max(2, -(-2 * cfg.accumulation_steps // max(cfg.num_workers, 1)))  # batches of each worker: of two steps
    sampler = StepSampler(run.order, start, run.total, run.progress.skip)
    batches = iter(
        DataLoader(
            run.data.train,
            batch_sampler=sampler,
            collate_fn=run.data.collate,
            num_workers=cfg.num_workers,
            prefetch_factor=ahead if cfg.num_workers else None,
            pin_memory=run.runtime.device.type == "cuda",
            persistent_workers=cfg.num_workers > 0,
            worker_init_fn=begin_worker,
        )
    )
    for step_number in sampler.steps():
        yield list(itertools.islice(batches, run.order.passes(step_number)))


def save_and_leave(run, stop):
    """Saves after a signal; then raises Stopped, or returns where the signal asked for a save only."""
    (leave,) = parallel.summed([stop.received], run.runtime)
    stop.save = False
    step = run.progress.step
    if step:  # before the first there is nothing to keep, and with --fresh the run before is not replaced yet
        run.save()
    if not leave:
        done = f"saved     {run.path} at step {step}" if step else "nothing to save yet"
        run.runtime.say(f"{done}, as SIGUSR1 asked; training goes on")
        return
    saved = f"saved {run.path}; run the same command (without --fresh) to continue" if step else "nothing to save yet"
    run.runtime.say(f"stopped at step {step}, {saved}")
    raise Stopped(128 + (stop.received or signal.SIGTERM))


def log_validation(run, log, stop):
    """Validates, shows and stores the result; begins again after a signal that asked for a save only."""
    while True:
        try:
            measured = validate(run, stop)
            break
        except Interrupted:
            save_and_leave(run, stop)
    if measured:
        record = {"step": run.progress.step, "total": run.total, **measured}
        record |= judged(run.reference, run.progress.tokens, measured["val_loss"])
        log.record(validation_line(record), record)
