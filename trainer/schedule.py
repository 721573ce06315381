"""The learning rate over time."""

import math


def tail_steps(total, anneal_fraction):
    """Steps of the falling tail of 'wsd'."""
    return max(1, round(total * anneal_fraction)) if anneal_fraction > 0 else 0


def with_tail(steps, anneal_fraction):
    """Steps of a run of 'wsd' whose falling tail comes behind so many steps."""
    total = int(steps / (1 - anneal_fraction))
    while total - tail_steps(total, anneal_fraction) < steps:
        total += 1
    return total


def lr_factor(step, total, kind, warmup, floor=0.1, anneal_fraction=0.2):
    """The learning rate of a step as a share of the highest.

    Args:
        step: optimizer steps already taken, 0 … total - 1.
        total: steps of the whole run.
        kind: 'cosine', 'linear': from 1 down to `floor` at the end. 'constant': 1. 'wsd' (warmup, stable, decay):
            1, then a straight tail to 0 over the last `anneal_fraction` of them (Hu et al. 2024, arXiv:2404.06395).
        warmup: steps of a straight rise to 1; never more than a tenth of the run, so that short runs learn too.
        floor: where cosine and linear end.
    Returns:
        a factor in (0, 1].
    """
    warmup = min(warmup, total // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    if kind == "wsd":
        tail = tail_steps(total, anneal_fraction)
        return min(1.0, (total - step) / (tail + 1)) if tail else 1.0
    progress = (step - warmup) / max(1, total - 1 - warmup)
    if kind == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return floor + (1 - floor) * (1 - progress)
    raise ValueError(f"unknown schedule {kind!r}; there are: cosine, linear, constant, wsd")
