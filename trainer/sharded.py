"""The state of a model that is shared out, in parts: every rank writes its own, and any number of ranks reads them.

out/kept/pretrain_512_resume_step1000/   weights, optimizer states and mean (torch.distributed.checkpoint, "DCP")
out/pretrain_512_resume.pth              all else, and which folder belongs to it

For states that one host should not gather: no rank sees another's optimizer state. The folder is written first; the
small file, which names it, makes it count.
"""

import hashlib
import pickle
import shutil
import warnings

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from trainer.parallel import finite, load_optimizer_state, smallest

INDEX = ".metadata"  # DCP writes it last, when all parts of a folder are there
# DCP's index is a pickle, which can name any function; only what an index of tensors consists of may be made from it.
PARTS = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"} | {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)},
}


def weights_of(model, mean):
    """{name: tensor} of a model and its mean, the tensors themselves; the tied output layer once."""
    weights = {f"model.{name}": t for name, t in model.state_dict().items() if name != "output.weight"}
    return weights | {f"mean.{name}": t for name, t in mean.items()}


def moments_of(optimizers):
    """{name: tensor} of what the optimizers keep of each parameter."""
    return {
        f"optimizer{number}.{parameter}.{key}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, kept in optimizer.state_dict()["state"].items()
        for key, value in kept.items()
    }


def save(folder, model, optimizers, mean, runtime):
    """Writes every rank's part; all ranks call it.

    Args:
        folder: where to, not there yet; mean: {name: tensor}, {} without --ema.
    Returns:
        what belongs into the state's small file.
    Raises:
        OSError: on every rank, if any could not write.
    """
    sound = smallest(float(finite(model.state_dict())), runtime)
    try:
        dcp.save(weights_of(model, mean) | moments_of(optimizers), checkpoint_id=str(folder))
    except CheckpointException as error:
        if runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        cause = next(iter(error.failures.values()))[0]
        if not isinstance(cause, OSError | RuntimeError):  # torch makes a RuntimeError of what a file refuses
            raise cause from error
        raise OSError(
            f"could not write {folder}: {cause}; the states before it are kept. Make room, or choose "
            "another --out_dir, and run the same command again"
        ) from error
    return {
        "optimizers": [{**o.state_dict(), "state": {}} for o in optimizers],
        "shards": {"folder": folder.name, "finite": bool(sound), **contents(folder, runtime)},
    }


def contents(folder, runtime):
    """On the main rank the sizes of the files and a hash of the index; OSError on all if it does not see every part."""
    found = {"bytes": sizes_in(folder), "index": index_digest(folder)} if runtime.is_main else {}
    complete = not runtime.is_main or parts_in(folder) <= found["bytes"].keys()
    if not smallest(float(complete), runtime):
        raise OSError(f"{folder} has not every rank's part: --out_dir must be one folder that all machines share")
    return found


def parts_in(folder):
    """The names of the files that the index speaks of."""
    return {info.relative_path for info in Reader(folder).read_metadata().storage_data.values()}


def sizes_in(folder):
    """{name: bytes} of the files of a folder."""
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def index_digest(folder):
    """64 hex digits of the SHA-256 of the index of a folder."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()


def harm_to(folder, shards):
    """What is wrong with a folder of which a state says `shards`; None if all is there."""
    if not folder.is_dir():
        return f"{folder} is not there; copy it beside the file"
    whole = shards["bytes"].items() <= sizes_in(folder).items() and index_digest(folder) == shards["index"]
    return None if whole else f"{folder} is not whole"


class Reader(dcp.FileSystemReader):
    """DCP's reader, but for an index that was made by somebody else."""

    def read_metadata(self, *_, **__):
        try:
            with open(self.path / INDEX, "rb") as file:
                index = Unpickler(file).load()
            others = [n for n, about in index.state_dict_metadata.items() if type(about) is not TensorStorageMetadata]
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError) as error:
            raise ValueError(f"{self.path} is no whole state of a shared out model ({error}); delete it") from error
        if others:  # DCP would read what is no tensor as a pickle
            raise ValueError(f"{self.path} holds {others[0]}, which is no tensor; it is no state of this project")
        return index


class Unpickler(pickle.Unpickler):
    """Makes nothing but PARTS."""

    def find_class(self, module, name):
        if module.partition(".")[0] == "pathlib":  # where it was written, of a class that this system may lack
            return lambda *parts: "/".join(parts)
        if name not in PARTS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def load(folder, model, optimizers, mean, saved):
    """Fills a model, its optimizers and its mean, shared out in any way or not at all; all ranks call it.

    Args:
        folder: as `save` left it; saved: list of the optimizers' other settings, from the small file.
        mean: {name: tensor} to be filled.
    Raises:
        ValueError: the folder does not fit or is damaged; OSError: it cannot be read.
    """
    reader = Reader(folder)
    wanted = weights_of(model, mean)
    states = [{} for _ in optimizers]
    for name, about in reader.read_metadata().state_dict_metadata.items():
        if name.startswith("optimizer"):
            number, parameter, key = name.removeprefix("optimizer").split(".")
            parameters = [p for group in optimizers[int(number)].param_groups for p in group["params"]]
            like = parameters[int(parameter)]
            own = torch.empty(about.size, dtype=about.properties.dtype)
            if about.size == like.shape:  # cut as its parameter is; else a number that every rank has
                own = torch.empty_like(like, dtype=about.properties.dtype, requires_grad=False)
            wanted[name] = states[int(number)].setdefault(int(parameter), {})[key] = own
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            dcp.load(wanted, storage_reader=reader)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if not isinstance(cause, RuntimeError | ValueError | AssertionError | KeyError):
                raise cause from error
            raise ValueError(f"{folder} does not fit this run, or is damaged: {cause}") from error
    for optimizer, state, others in zip(optimizers, states, saved, strict=True):
        load_optimizer_state(optimizer, {**others, "state": state})
