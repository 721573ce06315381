"""Data sets: packed rows of ids, read from memory-mapped files, so that memory does not grow with the corpus."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from model.batch import FILLER
from model.packing import pack

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
    return [path]


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


def open_ids(file):
    """The ids of a .bin: (n,) uint16, memory-mapped. ValueError for a file that cannot be one."""
    size = file.stat().st_size
    if size == 0 or size % 2:
        what = "is empty" if size == 0 else f"has {size} bytes, an odd number: it is cut off, or not uint16 ids"
        raise ValueError(f"{file} {what}; make it again with: python data_process.py pretrain --output {file}")
    return np.memmap(file, dtype=np.uint16, mode="r")


def find_documents(ids, bos_id, vocab_size, name):
    """Where documents begin (each at a BOS) and their lengths: two (n,) int64 arrays.

    Raises:
        ValueError: an id outside the vocabulary; on a GPU it would be an assertion without a name.
    """
    starts = []
    for at in range(0, len(ids), SCAN):
        part = ids[at : at + SCAN]
        if int(part.max()) >= vocab_size:
            where = int(np.argmax(part >= vocab_size))
            raise ValueError(
                f"{name} holds id {int(part[where])} at position {at + where}, but the model has vocab_size "
                f"{vocab_size}; use the tokenizer the file was made with, or set --vocab_size"
            )
        starts.append(np.flatnonzero(part == bos_id).astype(np.int64) + at)
    starts = np.concatenate(starts)
    if len(starts) == 0 or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    return starts, np.diff(np.append(starts, len(ids)))


class PretrainDataset:
    """Rows of T + 1 ids packed from the documents of a .bin, or of a folder of shards.

    Indexing gives (row number, ids (T + 1,), docs (T + 1,)); see `model.batch.collate`. Index FILLER gives a row
    that is all padding.

    Args:
        path: a .bin file or a folder of them.
        T: positions per row.
        tokenizer: its hash, BOS and V are checked against the data.
        cache_dir: the table of rows is kept there, memory-mapped, and found again by the next run.
        vocab_size: V of the model, if it differs from the tokenizer's.
    """

    def __init__(self, path, T, tokenizer, cache_dir, vocab_size=None):
        self.T, self.files = T, bin_files(path)
        self.pad_id = tokenizer.eos_id
        self.vocab_size = vocab_size or tokenizer.vocab_size
        for file in self.files:
            tokenizer.check(read_sidecar(file).get("tokenizer_hash"), self.vocab_size, file)
        self.shards = [open_ids(f) for f in self.files]
        self.fingerprint = self._fingerprint()
        self.pieces, self.row_ends = self._table(Path(cache_dir), tokenizer.bos_id)

    def _fingerprint(self):
        """16 hex digits that change when a file's size or content does; 64 samples of each file are read."""
        digest = hashlib.sha256()
        for ids in self.shards:
            digest.update(str(len(ids)).encode())
            for at in np.linspace(0, max(0, len(ids) - 4096), 64, dtype=np.int64):
                digest.update(ids[at : at + 4096].tobytes())
        return digest.hexdigest()[:16]

    def _table(self, cache_dir, bos_id):
        """pieces (n, 3) int64 [shard, start, length] in row order and row_ends (rows,) int64, both memory-mapped."""
        cache_dir.mkdir(parents=True, exist_ok=True)
        key = f"{self.fingerprint}_{self.T}_{self.vocab_size}"
        names = [cache_dir / f"rows_{key}_{part}.npy" for part in ("pieces", "ends")]
        if not all(n.is_file() for n in names):
            pieces, sizes = [], []
            for i, ids in enumerate(self.shards):
                documents = find_documents(ids, bos_id, self.vocab_size, self.files[i])
                for starts, lengths, row_sizes in pack(*documents, self.T + 1):
                    pieces.append(np.stack([np.full_like(starts, i), starts, lengths], axis=1))
                    sizes.append(row_sizes)
            for name, array in zip(names, (np.concatenate(pieces), np.cumsum(np.concatenate(sizes)))):
                with tempfile.NamedTemporaryFile(dir=cache_dir, suffix=".tmp", delete=False) as f:
                    np.save(f, array)
                    f.flush()
                    os.fsync(f.fileno())
                os.replace(f.name, name)
        return [np.load(n, mmap_mode="r") for n in names]

    def __getstate__(self):
        """Loader workers that are not forked get names instead of a copy of the corpus."""
        tables = {name: str(getattr(self, name).filename) for name in ("pieces", "row_ends")}
        return {**{k: v for k, v in vars(self).items() if k != "shards"}, **tables}

    def __setstate__(self, state):
        vars(self).update(state)
        self.shards = [open_ids(f) for f in self.files]
        self.pieces, self.row_ends = (np.load(state[name], mmap_mode="r") for name in ("pieces", "row_ends"))

    @property
    def fill(self):
        """Share of the row slots that hold a real token."""
        return float(self.pieces[:, 2].sum() / (len(self) * (self.T + 1)))

    def __len__(self):
        return len(self.row_ends)

    def __getitem__(self, index):
        ids = np.full(self.T + 1, self.pad_id, dtype=np.int64)
        docs = np.full(self.T + 1, -1, dtype=np.int64)
        if index != FILLER:
            first = self.row_ends[index - 1] if index else 0
            at = 0
            for number, (shard, start, length) in enumerate(self.pieces[first : self.row_ends[index]]):
                ids[at : at + length] = self.shards[shard][start : start + length]
                docs[at : at + length] = number
                at += length
        return index, ids, docs


def split_rows(n, fraction, seed):
    """Row numbers 0 … n - 1 → (train, validation), `fraction` of them drawn by seed for validation."""
    order = np.random.default_rng(seed).permutation(n)
    held_out = int(n * fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
