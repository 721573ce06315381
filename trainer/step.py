"""One optimizer step: the only backward() of the project.

step() = sums of losses ÷ scored tokens of the whole global step → clip → optimizer. It gives a GPU its orders and does
not wait for it: whether the weights may move is decided where they are, and Told.read() says later what came of it.
"""

import math
from typing import NamedTuple

import torch

from trainer import parallel
from trainer.guard import BadStep, describe_bad
from trainer.optim import set_learning_rate
from trainer.runtime import Interrupted, seed_step
from trainer.schedule import lr_factor


class Found(NamedTuple):
    """What a step found out.

    Attributes:
        loss: mean nats per unit over all ranks.
        norm: of the gradient before clipping; not finite where an fp16 step overflowed and was skipped.
        load: (L, E) tokens per expert on this rank.
        facts: {name: mean per unit over all ranks}.
    """

    loss: float
    norm: float
    load: torch.Tensor
    facts: dict


class Told:
    """What a step found out, while it is on its way to the host.

    Args:
        run: a Run whose progress still stands before the step.
        rows: of each micro-batch, the row numbers.
        units: what the losses are a mean of, over all ranks.
        tokens: real tokens of the step, over all ranks.
    Attributes:
        at: the step's number, from 0.
    """

    def __init__(self, run, rows, units, tokens):
        self.run, self.at, self.rows, self.units, self.tokens = run, run.progress.step, rows, units, int(tokens)
        self.begun, self.ready = None, None
        if run.runtime.device.type == "cuda":
            self.begun, self.ready = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.begun.record()

    def send(self, norm, sums, losses, load, names):
        """Sends what was found to the host, behind what the device was asked for so far.

        Args:
            norm: 0-d; sums: (1 + facts,) over all ranks, the loss first; losses: (micro-batches,) of this rank.
            load, names: tokens per expert, and the names of the facts.
        """
        self.load, self.names = load, names
        self.values = torch.cat([norm.reshape(1), sums, losses]).to("cpu", non_blocking=self.ready is not None)
        if self.ready is not None:
            self.ready.record()

    def read(self):
        """Waits until the device has taken the step, but for nothing that it was asked for later.

        The run's progress then counts the step's tokens, unless it was a bad one.

        Returns:
            Found.
        Raises:
            BadStep: the loss or the gradient is not finite; nothing has moved.
        """
        if self.ready is not None:
            self.ready.synchronize()
        norm, *values = self.values.tolist()
        sums, losses = values[: 1 + len(self.names)], values[1 + len(self.names) :]
        mean, *facts = (x / self.units for x in sums)
        overflowed = not math.isfinite(norm)
        if not math.isfinite(mean) or (overflowed and not self.run.scaler.is_enabled()):
            raise BadStep(describe_bad(self.at, mean, norm, losses, self.rows))
        self.run.progress.tokens += self.tokens
        self.run.progress.skipped += overflowed
        self.run.progress.train_loss = mean
        return Found(mean, norm, self.load, dict(zip(self.names, facts)))

    def idle_since(self, before):
        """Seconds that a GPU had nothing to do between the step `before` this one and this one, when both are read."""
        return before.ready.elapsed_time(self.begun) / 1000


def step(run, model, batches, stop=None):
    """One optimizer step over the micro-batches of this rank, in which nothing moves if it turns out to be a bad one.

    Args:
        run: a Run; its progress counts the step at once, and the rest when it is read.
        model: its model as parallel.wrap returned it.
        batches: this rank's micro-batches of the step.
        stop: a StopSignal, looked at before each micro-batch, so that a long step does not delay a save.
    Returns:
        Told.
    Raises:
        Interrupted: a signal was received; the weights have not moved, and the step is not counted.
    """
    cfg, runtime, progress = run.cfg, run.runtime, run.progress
    units, rows, tokens = parallel.summed(
        [sum(b.units for b in batches), sum(b.real_rows for b in batches), sum(b.tokens for b in batches)], runtime
    )
    if not units:
        raise ValueError(f"step {progress.step + 1} has no scored token; check --data_path")
    told = Told(run, [b.rows for b in batches], units, tokens)
    seed_step(cfg.seed, progress.step, runtime.rank)
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
        losses.append(loss.detach().float())
        facts = {name: facts.get(name, 0.0) + value.detach().float() for name, value in found.items()}
        load = load + expert_load
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    parameters = [p for group in run.optimizers for g in group.param_groups for p in g["params"]]
    norm = parallel.in_full(torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip or math.inf)).float()
    losses = torch.stack(losses)
    sums = parallel.total(torch.stack([losses.sum(), *facts.values()]), runtime)
    move(run, good=norm.isfinite() & sums[0].isfinite(), load=load)
    progress.step += 1
    told.send(norm, sums, losses, load, list(facts))
    return told


def move(run, good, load):
    """Moves the weights, their mean and the routers' biases, and nothing of them where `good`, 0-d bool, is False.

    The loss scaler alone takes note of a bad gradient: it halves its factor. After an fp16 overflow the whole step is
    skipped, as each optimizer by itself would see only its own gradients.
    """
    set_learning_rate(run.optimizers, run.cfg.learning_rate * lr_now(run))
    bad = 1.0 - good.float()
    for optimizer in run.optimizers:
        optimizer.found_inf = bad  # by which GradScaler, too, tells a fused optimizer to do nothing
        optimizer.step()
        del optimizer.found_inf
    run.scaler.update()
    forget_gradients(run)
    if run.model.cfg.use_moe and run.model.cfg.router_bias_rate:
        for layer, of_layer in zip(run.model.layers, parallel.total(load, run.runtime)):
            if layer.feed_forward.gate.weight.requires_grad:  # an adapter leaves the base as it is
                layer.feed_forward.gate.rebalance(of_layer * good)  # a load of zeros is even
    if run.average:
        run.average.update(run.model, run.progress.step + 1, good)


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
