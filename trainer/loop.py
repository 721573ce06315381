"""How anything here is trained: the only backward() of the project.

fit() = rows in a fixed random order → sums of losses ÷ scored tokens of the whole global step → clip → optimizer →
log, save, validate. Stages differ in model, data and loss function, which come from the numbered scripts.
"""

import itertools
import math
import signal

import torch
from torch.utils.data import DataLoader

from model.LMConfig import Auto
from trainer import checkpoint, parallel
from trainer.batch_fit import fit_batch
from trainer.guard import BadStep, LeapDetector, describe_bad, get_past
from trainer.losses import language_model_loss
from trainer.metrics import Log, Meter, describe_run, start_wandb, training_line, validation_line
from trainer.optim import set_learning_rate
from trainer.profiling import Profiler
from trainer.reference import judged, like_steps, reference_for
from trainer.run import Run
from trainer.runtime import Interrupted, Stopped, StopSignal, begin_worker, choose_compile, seed_step
from trainer.sampler import StepSampler
from trainer.schedule import lr_factor
from trainer.validation import validate


def step(run, model, batches, stop=None):
    """One optimizer step over the micro-batches of this rank.

    Args:
        run: a Run.
        model: its model as parallel.wrap returned it.
        batches: this rank's micro-batches of the step.
        stop: a StopSignal, looked at before each micro-batch, so that a long step does not delay a save.
    Returns:
        loss: mean nats per unit over all ranks (float); norm: gradient norm before clipping (float);
        load: (L, E) tokens per expert on this rank; facts: {name: mean per unit over all ranks}.
    Raises:
        BadStep: a loss or gradient is not finite; the weights have not moved.
        Interrupted: a signal was received; the weights have not moved.
    """
    cfg, runtime = run.cfg, run.runtime
    units, rows, tokens = parallel.summed(
        [sum(b.units for b in batches), sum(b.real_rows for b in batches), sum(b.tokens for b in batches)], runtime
    )
    if not units:
        raise ValueError(f"step {run.progress.step + 1} has no scored token; check --data_path")
    seed_step(cfg.seed, run.progress.step, runtime.rank)
    losses, load, facts = [], 0, {}
    for i, batch in enumerate(batches):
        if stop is not None and parallel.asked_to_stop(stop, runtime):
            forget_gradients(run)
            raise Interrupted
        share = batch.real_rows / rows  # counted before the batch moves, so that the host need not wait for the GPU
        batch = batch.to(runtime.device)
        with parallel.no_sync(model, skip=i < len(batches) - 1):
            with runtime.autocast():
                loss, balance, expert_load, found = run.loss_fn(model, batch)
            # DDP averages over ranks; times world makes that the sum which the division by global units needs
            objective = (loss / units + balance * share) * runtime.world
            run.scaler.scale(objective).backward()
        losses.append(loss.detach())
        facts = {name: facts.get(name, 0.0) + value.detach() for name, value in found.items()}
        load = load + expert_load
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    parameters = [p for group in run.optimizers for g in group.param_groups for p in g["params"]]
    norm = parallel.whole(torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip or math.inf)).to(runtime.device)
    # the only place where a step waits for the device
    norm, *told = torch.stack([x.float() for x in (norm, *losses, *facts.values())]).tolist()
    losses, told = told[: len(batches)], told[len(batches) :]
    mean, *told = parallel.summed([x / units for x in (sum(losses), *told)], runtime)
    if not math.isfinite(mean) or not (math.isfinite(norm) or run.scaler.is_enabled()):
        forget_gradients(run)
        run.renew_scaler()  # which has divided the gradients that are now forgotten
        raise BadStep(describe_bad(run, mean, norm, losses, batches))
    set_learning_rate(run.optimizers, cfg.learning_rate * lr_now(run))
    if math.isfinite(norm):
        for optimizer in run.optimizers:
            run.scaler.step(optimizer)
    run.scaler.update()  # fp16 overflow: the whole step is skipped; each optimizer sees only its own gradients
    forget_gradients(run)
    run.progress.step += 1
    if run.model.cfg.use_moe and run.model.cfg.router_bias_rate:
        for layer, of_layer in zip(run.model.layers, parallel.total(load, runtime)):
            if layer.feed_forward.gate.weight.requires_grad:  # an adapter leaves the base as it is
                layer.feed_forward.gate.rebalance(of_layer)
    if run.average:
        run.average.update(run.model, run.progress.step)
    run.progress.tokens += int(tokens)
    run.progress.skipped += not math.isfinite(norm)
    run.progress.train_loss = mean
    return mean, norm, load, dict(zip(facts, told))


def forget_gradients(run):
    """Clears all gradients: after a step, or after one that was given up."""
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)


def lr_now(run):
    """The factor of the learning rate for the step to come."""
    cfg = run.cfg
    return lr_factor(
        run.progress.step, run.total, cfg.schedule, cfg.warmup_iters, cfg.min_lr_ratio, cfg.anneal_fraction
    )


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
    curve = None if cfg.init_from else reference_for(model.cfg, stage, tokenizer.hash)
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
            train(run, parallel.wrap(run.model, runtime), log, stop)
    finally:
        log.close()
    runtime.say(f"saved {run.path}")
    return run.progress


def lacks_validation(run):
    """Was this run stopped between its last save and its last validation?"""
    return len(run.data.val_rows) > 0 and run.progress.val_step != run.progress.step


def train(run, model, log, stop):
    """The loop over steps: train, log, save, validate, until the end or a signal."""
    cfg, old_states = run.cfg, run.cfg.fresh
    model.train()
    if (cfg.init_from and run.progress.step == 0) or run.progress.step >= run.total:
        # what the stage starts from, so that one sees what it changes; or what a run killed after its last save lacks
        log_validation(run, log, stop)
    meter, leaps, windows, profiler = Meter(run), LeapDetector(run.progress.leaps), windows_of(run), Profiler(run)
    while run.progress.step < run.total:
        at = run.progress.step
        try:
            if at in run.progress.skip:  # its data was found to be bad
                run.progress.step += 1
            else:
                with meter.waiting():
                    window = next(windows)
                with run.runtime.memory_for(cfg.batch_size), profiler.step():
                    meter.note(*step(run, model, window, stop))
                if old_states:  # it trains: now the run before is not needed any more
                    run.forget_the_old()
                    old_states = False
                if leaps.note(run.progress.train_loss):
                    now = run.progress.train_loss
                    raise BadStep(f"the loss leapt up {leaps.high} steps ago and stays there, {now:.3f} now")
        except Interrupted:
            with meter.paused():
                save_and_leave(run, stop)
            windows = windows_of(run)
            continue
        except BadStep as bad:
            went_back, line = get_past(run, str(bad), leaps.began(at, run.progress.step), at)
            if went_back:
                log.cut(run.progress.step)
                meter, leaps, windows = Meter(run), LeapDetector(run.progress.leaps), windows_of(run)
            log.record(line, {"step": run.progress.step, "total": run.total, "bad_step": str(bad)})
            if run.progress.step <= at:
                continue
            leaps = LeapDetector()  # the loss is high and there is no way back: this is what is usual now
        run.progress.leaps = leaps.state()
        keep_books(run, log, meter, stop)
    profiler.tell()
    if not math.isnan(run.progress.val_loss):
        run.save()  # once more, so that the description has the validation loss


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
    due = cfg.eval_interval and step_number % cfg.eval_interval == 0
    if due or done:  # after the save: a validation that fails must not cost it
        with meter.paused():
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
