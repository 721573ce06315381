"""--batch_size auto: as many rows in a forward pass as memory holds, while a step keeps its rows.

What one row leaves for the backward pass is counted, which gives a first guess; a forward and backward pass of that
size is then tried, and a smaller one where memory runs out. The machine's total decides, not what is free just now, so
that a run that is continued splits its steps as before.
"""

import math
import os

import torch

from model.batch import FILLER
from trainer import parallel

SHARE = 0.6  # of the memory that may be filled by weights, gradients, optimizer and what the backward pass needs
AGAIN = 2.0  # gradients of activations and temporary results, as a multiple of what is kept for the backward pass


def fit_batch(model, runtime, cfg, data, loss_fn):
    """Sets cfg.batch_size and cfg.accumulation_steps to the largest batch that fits; their product stays.

    Args:
        model: a Transformer on its device.
        runtime, cfg, data, loss_fn: as in trainer.loop.fit.
    Raises:
        ValueError: the model is to be shared out, so that what it takes here says little.
    """
    if cfg.parallel == "fsdp":
        raise ValueError("--batch_size auto cannot look ahead to --parallel fsdp; give a number")
    model.train()  # a loaded one comes as it is used, without dropout
    rows = cfg.batch_size * cfg.accumulation_steps
    sizes = [b for b in range(rows, 0, -1) if rows % b == 0]
    state = sum(p.numel() * 4 * (4 if p.requires_grad else 1) for p in model.parameters())  # AdamW: weight, gradient, 2
    room = SHARE * memory_of(runtime.device) - state
    per_row = AGAIN * bytes_a_row(model, runtime, data, loss_fn)
    guess = parallel.smallest(next((b for b in sizes if b * per_row <= room), 1), runtime)
    for size in (b for b in sizes if b <= guess):
        (failed,) = parallel.summed([not works(model, runtime, batch_of(data, size), loss_fn)], runtime)
        if not failed:  # on any rank
            break
    cfg.batch_size, cfg.accumulation_steps = size, rows // size
    runtime.say(f"batch     {size} rows in a pass, {rows // size} passes a step ({per_row / 1e6:,.0f} MB a row)")


def memory_of(device):
    """Bytes that the device has; of a CPU, this process's share of what may be used of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    for file in filter(os.path.isfile, limits):  # a container's share
        with open(file, encoding="ascii") as f:
            text = f.read().strip()
        total = min(total, int(text)) if text.isdecimal() else total
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def batch_of(data, size):
    """A batch of the first rows; filled up, where there are fewer, with unscored ones."""
    rows = [int(row) for row in data.train_rows[:size]]
    return data.collate([data.train[row] for row in rows + [FILLER] * (size - len(rows))])


def bytes_a_row(model, runtime, data, loss_fn):
    """What a row more makes a forward pass keep; infinite where two are too many."""
    try:
        one, two = (bytes_kept(model, runtime, batch_of(data, n), loss_fn) for n in (1, 2))
    except torch.OutOfMemoryError:
        return math.inf
    return two - one  # what does not grow with the rows, such as weights in bf16, is left out


def bytes_kept(model, runtime, batch, loss_fn):
    """What a forward pass keeps for its backward pass, each piece of memory counted once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), runtime.autocast():
        loss = loss_fn(model, batch.to(runtime.device)).loss  # alive until counted: freed memory would be reused
    del loss
    return sum(kept.values())


def works(model, runtime, batch, loss_fn):
    """Whether a forward and backward pass goes through; its gradients are thrown away."""
    try:
        with runtime.autocast():
            losses = loss_fn(model, batch.to(runtime.device))
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(losses.loss + losses.balance, trained, allow_unused=True)
    except torch.OutOfMemoryError:
        return False
    return True
