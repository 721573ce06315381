"""Several processes training one model: joining, averaging, leaving."""

import contextlib
import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from trainer.runtime import Runtime, Stopped, choose_device, choose_dtype

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
        launched = "RANK" in os.environ  # ddp on a launcher's single process is a run of one; fsdp has nothing to share
        if cfg.parallel == "fsdp" or (not launched and (cfg.ddp or cfg.parallel == "ddp")):
            how = "fsdp" if cfg.parallel == "fsdp" else "ddp"
            raise ValueError(f"--parallel {how} needs several processes: torchrun --nproc_per_node 2 1-pretrain.py …")
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
    if cfg.parallel == "fsdp" and dtype == torch.float16:
        raise ValueError("--parallel fsdp cannot scale fp16 losses; use --dtype bfloat16 or float32, or --parallel ddp")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    well = False
    try:
        yield Runtime(device, dtype, rank, world, dist.new_group(backend="gloo", timeout=VERY_PATIENT))
        well = True
    except Stopped:  # all ranks leave together
        well = True
        raise
    finally:
        if well or device.type != "cuda":  # after an error NCCL would wait for the others, which wait for this rank
            # DDP sits in reference cycles and holds the group; left to the end of the interpreter, the group's threads
            # may be torn down while they run ("terminate called without an active exception", seen once in 30 starts).
            gc.collect()
            dist.destroy_process_group()


def share_out(model, runtime):
    """Cuts every weight into one part per rank, layer by layer (FSDP2); a layer is whole only while it computes.

    Source: Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
    """
    mesh = init_device_mesh(runtime.device.type, (runtime.world,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def reshard(model):
    """Takes a shared out model's whole weights away after a forward pass that no backward pass follows."""
    if isinstance(model, FSDPModule):
        model.reshard()  # the outermost part, which stays whole for its backward pass: it would miss later changes


def wrap(model, runtime):
    """The model as the loop calls it: itself, or DDP, which averages gradients over ranks."""
    if runtime.world == 1 or isinstance(model, FSDPModule):
        return model
    device_ids = [runtime.device.index] if runtime.device.type == "cuda" else None
    angles = [name for name, _ in model.named_buffers() if name.startswith("rope_")]  # else sent again in each step
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, angles)
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def asked_to_stop(stop, runtime):
    """Whether any rank received a signal that should be heeded now; the same on every rank."""
    return any(summed([stop.received, stop.save], runtime))


def whole(value, keep=True):
    """Nested dicts and lists with every tensor that is shared out put together on the host; all ranks must call it.

    Ranks that do not `keep` them get None in their places.
    """
    if isinstance(value, dict):
        return {k: whole(v, keep) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [whole(v, keep) for v in value]
    if isinstance(value, DTensor):
        tensor = in_full(value)
        return tensor.cpu() if keep else None
    return value


def in_full(tensor):
    """A tensor that may be shared out, put together on its device."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor):
    """What this rank holds of a tensor that may be shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(tensor, like):
    """This rank's part of a whole tensor, cut as `like` is; the tensor itself where that one is whole."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def stack_in_full(stack, like):
    """A stack of this rank's parts of tensors, each cut as `like` is → the stack of the whole ones, on every rank."""
    if not isinstance(like, DTensor):
        return stack
    shape = torch.Size([len(stack), *like.shape])
    placements = [Shard(p.dim + 1) if isinstance(p, Shard) else p for p in like.placements]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(stack, like.device_mesh, placements, shape=shape, stride=stride).full_tensor()


def load_model_state(model, state):
    """load_state_dict(strict=True) of whole tensors into a model that may be shared out."""
    own = model.state_dict()
    model.load_state_dict({name: part_like(t, own.get(name)) for name, t in state.items()}, strict=True)


def load_optimizer_state(optimizer, saved):
    """The same for an optimizer; its parameters are numbered in the order of its groups."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        i: {k: part_like(v, parameters[i]) if torch.is_tensor(v) else v for k, v in of_parameter.items()}
        for i, of_parameter in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": parts})


def finite(weights):
    """Whether every number of a state dict is one, of those that this rank holds."""
    return all(bool(torch.isfinite(own_part(w)).all()) for w in weights.values())


def summed(values, runtime):
    """Adds up a list of numbers over all ranks; on the host (gloo), so the GPU is not waited for."""
    if runtime.world == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def from_main(value, runtime):
    """The main rank's value, on every rank."""
    told = [value]
    if runtime.world > 1:
        dist.broadcast_object_list(told, src=0, group=runtime.patient)
    return told[0]


def smallest(value, runtime):
    """The smallest of the ranks' numbers."""
    if runtime.world > 1:
        value = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        value = value.item()
    return value


def require_same(number, runtime, out_dir):
    """ValueError unless all ranks have the same number of steps behind them."""
    if smallest(number, runtime) != -smallest(-number, runtime):
        raise ValueError(f"the ranks found different checkpoints; out_dir {out_dir} must be one shared folder")


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


@contextlib.contextmanager
def no_sync(model, skip):
    """A context in which gradients stay on their rank; only the last micro-batch of a step exchanges them.

    A model that is shared out exchanges them always, for else every rank would keep whole gradients meanwhile.
    """
    if skip and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield
