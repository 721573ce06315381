"""Files of ids: finding them, opening them without reading them, and tables that are made once and then mapped."""

import hashlib
import json
from pathlib import Path

import numpy as np

from model.chat import load_tokenizer
from model.files import room_for, save_array

SCAN = 1 << 24  # ids looked at at once while documents are found: 32 MB


def bin_files(path):
    """The .bin files at `path`: itself, or the shards of a folder in name order (validation parts left out)."""
    path = Path(path)
    if path.is_dir():
        files = sorted(f for f in path.glob("*.bin") if not f.stem.endswith("_val"))
        if not files:
            raise FileNotFoundError(f"no .bin files in folder {path}; make one with: python data_process.py pretrain")
        return files
    if not path.is_file():
        raise FileNotFoundError(f"no data at {path}; make it with: python data_process.py pretrain --output {path}")
    if path.suffix != ".bin":
        made = f"python data_process.py pretrain --input {path} --output {path.with_suffix('.bin')}"
        raise ValueError(f"{path} is not a .bin of ids; make one of it with: {made}")
    return [path]


def holds_ids(path):
    """Whether `path` names a .bin, or is a folder with one."""
    return Path(path).suffix == ".bin" or any(Path(path).glob("*.bin"))


def read_sidecar(file):
    """What the .json beside a .bin says; {} for a .bin without one (MiniMind's own)."""
    sidecar = file.with_suffix(".json")
    try:
        return json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"{sidecar} is not whole ({error}); make {file} again with data_process.py pretrain"
        ) from error


def tokenizer_of(path):
    """The tokenizer folder that the data at `path` was made with, if its .json names one that still exists."""
    file = Path(path)
    if file.is_dir():
        file = next(iter(sorted(file.glob("*.bin"))), file)
    folder = read_sidecar(file).get("tokenizer") if file.suffix == ".bin" else None
    return folder if folder and Path(folder, "tokenizer.json").is_file() else None


def tokenizer_for(file, folder=None):
    """The ChatTokenizer that a .bin was made with: in `folder`, the one its .json names, or the project's own.

    Raises:
        ValueError: it was made with another one.
    """
    about, tokenizer = read_sidecar(Path(file)), load_tokenizer(folder or tokenizer_of(file))
    tokenizer.check(about.get("tokenizer_hash"), about.get("vocab_size", tokenizer.vocab_size), file)
    return tokenizer


def open_ids(file):
    """The ids of a .bin: (n,) uint16, memory-mapped. ValueError for a file that cannot be one."""
    size = file.stat().st_size
    if size == 0 or size % 2:
        what = "is empty" if size == 0 else f"has {size} bytes, an odd number: it is cut off, or not uint16 ids"
        raise ValueError(f"{file} {what}; make it again with: python data_process.py pretrain --output {file}")
    return np.memmap(file, dtype=np.uint16, mode="r")


def document_starts(ids, bos_id, vocab_size, name):
    """Yields where documents begin (each at a BOS, the first at 0): (n,) int64 arrays, one for every SCAN ids.

    Raises:
        ValueError: an id outside the vocabulary; on a GPU it would be an assertion without a name.
    """
    for at in range(0, len(ids), SCAN):
        part = ids[at : at + SCAN]
        if int(part.max()) >= vocab_size:
            where = int(np.argmax(part >= vocab_size))
            raise ValueError(
                f"{name} holds id {int(part[where])} at position {at + where}, but the model has vocab_size "
                f"{vocab_size}; use the tokenizer the file was made with, or set --vocab_size"
            )
        starts = np.flatnonzero(part == bos_id).astype(np.int64) + at
        yield np.concatenate([[0], starts]) if at == 0 and (len(starts) == 0 or starts[0] != 0) else starts


def find_documents(ids, bos_id, vocab_size, name):
    """Where documents begin and their lengths: two (n,) int64 arrays. See document_starts."""
    starts = np.concatenate(list(document_starts(ids, bos_id, vocab_size, name)))
    return starts, np.diff(np.append(starts, len(ids)))


def fingerprint(arrays):
    """16 hex digits that change when an array's size or content does; 64 samples of each are read."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(len(array)).encode())
        for at in np.linspace(0, max(0, len(array) - 4096), 64, dtype=np.int64):
            digest.update(array[at : at + 4096].tobytes())
    return digest.hexdigest()[:16]


def mapped(cache_dir, key, names, make):
    """Arrays that are made once, kept in `cache_dir` as <key>_<name>.npy, and memory-mapped.

    Args:
        names: one per array.
        make: () → the arrays, called when a file is missing.
    Returns:
        list of memory-mapped arrays.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    files = [cache_dir / f"{key}_{name}.npy" for name in names]
    if not all(file.is_file() for file in files):
        with room_for(files[0]):
            arrays = make()
        for file, array in zip(files, arrays, strict=True):
            save_array(file, array)
    return [np.load(file, mmap_mode="r") for file in files]


class Mapped:
    """A data set whose memory-mapped .npy arrays travel to loader workers as names, not as copies of the data."""

    def __getstate__(self):
        names = {k: v.filename for k, v in vars(self).items() if isinstance(v, np.memmap)}
        return {k: v for k, v in vars(self).items() if k not in names} | {"mapped_names": names}

    def __setstate__(self, state):
        names = state.pop("mapped_names")
        vars(self).update(state | {k: np.load(name, mmap_mode="r") for k, name in names.items()})
