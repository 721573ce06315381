"""A corpus in parts: each is a few megabytes of raw records, cleaned and encoded on any core, in a few files.

    00012.ids   uint16 ids of its documents, `<s>text</s>` end to end
    00012.npz   what is known of each document (COLUMNS), and what was left out
    00012.npy   where near-duplicates are looked for, their band keys

Parts stay until the corpus is written, so a run that was killed goes on with those that are missing. They depend on
nothing but the input and the settings: not on the number of processes, nor on the order in which they were made.
"""

import json
import os
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cleaning.binfile import write
from cleaning.readers import Drops
from cleaning.workers import in_order

# What is known of each document; quality and domain only where they were asked for.
COLUMNS = {
    "lengths": np.int32,  # in ids, BOS and EOS among them
    "line": np.int64,  # in its file
    "characters": np.int32,
    "bytes": np.int32,  # of its text in UTF-8
    "key": np.uint64,  # hash of its text
    "val": bool,  # it belongs to the validation part
    "quality": np.float32,
    "domain": np.int16,
}


class Part:
    """One part on the disk. Columns are read when they are asked for, and not kept."""

    def __init__(self, folder, number):
        self.number = number
        self.ids_file, self.bands_file, self.file = (
            Path(folder, f"{number:05d}.{ending}") for ending in ("ids", "npy", "npz")
        )

    def save(self, ids, columns, about):
        """Writes the ids, then the rest under a temporary name: where the .npz is there, the part is whole."""
        with open(self.ids_file, "wb", buffering=0) as file:
            write(file, self.ids_file, ids.astype("<u2").tobytes(), 0)
        arrays = {name: np.asarray(values, COLUMNS.get(name)) for name, values in columns.items()}
        about = np.frombuffer(json.dumps(about, ensure_ascii=False).encode("utf-8", "surrogatepass"), np.uint8)
        temporary = self.file.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, about=about, **arrays)
        os.replace(temporary, self.file)

    def __len__(self):
        return len(self.column("line"))

    def column(self, name):
        """(documents,) array of COLUMNS, or of what the settings asked for besides."""
        with np.load(self.file) as arrays:
            return arrays[name]

    @cached_property
    def about(self):
        """{"file", "source", "dropped", "first", "files", "changed"}"""
        with np.load(self.file) as arrays:
            return json.loads(arrays["about"].tobytes().decode("utf-8", "surrogatepass"))

    def ids(self):
        """All its ids, (n,) uint16, memory-mapped where there are any."""
        return np.memmap(self.ids_file, "<u2", "r") if self.ids_file.stat().st_size else np.empty(0, "<u2")

    def bands(self):
        """(documents, bands) uint64, memory-mapped; see cleaning.minhash.band_keys."""
        return np.load(self.bands_file, mmap_mode="r")

    def drops(self):
        """Drops of what was left out on the way to this part."""
        drops = Drops()
        drops.counts.update(self.about["dropped"])
        drops.first.update(self.about["first"])
        drops.files += self.about["files"]
        return drops

    def excerpt(self, document, tokenizer):
        """The first ids of a document as text, to be shown."""
        lengths = self.column("lengths")
        begin = int(lengths[:document].sum(dtype=np.int64)) + 1
        return tokenizer.decode(self.ids()[begin : begin + min(int(lengths[document]) - 2, 200)].tolist())


def save_array(path, array):
    """Writes a .npy file, whole or not at all."""
    temporary = Path(f"{path}.tmp")
    with open(temporary, "wb") as file:
        # numpy hands a real file to the C library, which loses what a full disk refuses at its end without an error
        np.save(SimpleNamespace(write=file.write), array)
    os.replace(temporary, path)


def make_missing(function, file_of, units, workers):
    """Calls function(unit) for every unit whose file_of(number) is not there yet; returns all files, in order."""
    files = []

    def missing():
        for unit in units:
            files.append(file_of(unit.number))
            if not files[-1].is_file():
                yield unit

    for _ in in_order(function, missing(), workers):
        pass
    return files
