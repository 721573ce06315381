"""Several processes training one model: joining, averaging, leaving."""

import contextlib
import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainer.runtime import Runtime, choose_device, choose_dtype

PATIENCE = timedelta(minutes=10)  # how long a rank waits for the others before it gives up with an error
VERY_PATIENT = timedelta(days=30)  # the same where they wait for work on data, which may take hours and is no error


@contextlib.contextmanager
def joined(cfg):
    """The Runtime of this process, with the process group joined if a launcher started several, and left again.

    torchrun and deepspeed-style launchers set RANK, WORLD_SIZE and LOCAL_RANK; without them this is a run of one.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.parallel == "none" or world == 1:
        if cfg.parallel == "none" and world > 1:
            raise ValueError(
                f"--parallel none, but a launcher started {world} processes; start one, or use --parallel ddp"
            )
        if world == 1 and "RANK" not in os.environ and (cfg.ddp or cfg.parallel == "ddp"):
            raise ValueError("--parallel ddp needs a launcher: torchrun --nproc_per_node 2 1-pretrain.py …")
        device = choose_device(cfg.device, max(cfg.local_rank, 0))
        yield Runtime(device, choose_dtype(cfg.dtype, device)[0])
        return
    if "RANK" not in os.environ:
        raise ValueError(f"WORLD_SIZE is {world} but RANK is not set; start the processes with torchrun")
    rank = int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", max(cfg.local_rank, 0)))
    # MiniMind's habitual --device cuda:0 must not put every rank on the first GPU
    device = choose_device("cuda" if cfg.device.startswith("cuda") else cfg.device, local_rank)
    dtype, _ = choose_dtype(cfg.dtype, device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    well = False
    try:
        yield Runtime(device, dtype, rank, world, dist.new_group(backend="gloo", timeout=VERY_PATIENT))
        well = True
    finally:
        if well or device.type != "cuda":  # after an error NCCL would wait for the others, which wait for this rank
            # DDP sits in reference cycles and holds the group; left to the end of the interpreter, the group's threads
            # may be torn down while they run ("terminate called without an active exception", seen once in 30 starts).
            gc.collect()
            dist.destroy_process_group()


def wrap(model, runtime):
    """The model as the loop calls it: itself, or DDP, which averages gradients over ranks."""
    if runtime.world == 1:
        return model
    device_ids = [runtime.device.index] if runtime.device.type == "cuda" else None
    # buffers are the same on every rank; DDP would send the angles again in each step
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def summed(values, runtime):
    """Adds up a list of numbers over all ranks; on the host (gloo), so the GPU is not waited for."""
    if runtime.world == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def total(tensor, runtime):
    """The sum of a tensor over all ranks, on its device."""
    if runtime.world > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def added_up(table, runtime):
    """A tensor on the host to which each rank contributed, 0 elsewhere → the whole, on every rank."""
    if runtime.world > 1:
        dist.all_reduce(table, group=runtime.patient)
    return table


@contextlib.contextmanager
def main_first(runtime):
    """The main rank goes through the body first, so that the others find what it left on disk.

    However long that takes, they wait. If it fails there, they leave without a word: the main rank has told why.
    """
    well = torch.zeros(1)
    if runtime.world > 1 and not runtime.is_main:
        dist.broadcast(well, src=0, group=runtime.patient)
        if not well:
            raise SystemExit(1)
    try:
        yield
        well += 1
    finally:
        if runtime.world > 1 and runtime.is_main:
            dist.broadcast(well, src=0, group=runtime.patient)


def no_sync(model, skip):
    """A context in which DDP keeps gradients to itself; only the last micro-batch of a step exchanges them."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
