"""A corpus in parts: each is a few megabytes of raw records, cleaned and encoded on any core, in two files.

    00012.ids   uint16 ids of its documents, `<s>text</s>` end to end
    00012.npz   what is known of each document (COLUMNS), and what was left out

Parts stay until the corpus is written, so a run that was killed goes on with those that are missing. They depend on
nothing but the input and the settings: not on the number of processes, nor on the order in which they were made.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from cleaning.binfile import write
from cleaning.normalize import clean_text
from cleaning.pieces import encoder_of, framed
from cleaning.readers import Drops
from cleaning.workers import in_order

# Of each document: ids, BOS and EOS among them; its line in its file; characters; UTF-8 bytes; the hash of its text; and
# whether it belongs to the validation part.
COLUMNS = {
    "lengths": np.int32,
    "line": np.int64,
    "characters": np.int32,
    "bytes": np.int32,
    "key": np.uint64,
    "val": bool,
}


def key_of(text):
    """uint64 hash by which duplicates are found: of the cleaned text without the space around it."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8"), digest_size=8).digest(), "little")


def is_held_out(key, seed, fraction):
    """Does the text with this key belong to the validation part? Depends on nothing but the text and the seed."""
    digest = hashlib.blake2b(
        int(key).to_bytes(8, "little"), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)
    )
    return int.from_bytes(digest.digest(), "little") < fraction * 2**64


@dataclass(frozen=True)
class Job:
    """What a process must know to make a part; plain values.

    Attributes:
        folder: where parts lie.
        load_tokenizer, tokenizer: the function that loads a tokenizer folder, and the folder.
        field: the field with the text, see text_of.
        seed, val_fraction: decide which documents are held out.
    """

    folder: str
    load_tokenizer: object
    tokenizer: str
    field: str | None = None
    seed: int = 0
    val_fraction: float = 0.0


@dataclass
class Cleaned:
    """The documents of a unit, and what happened to the others."""

    texts: list = field(default_factory=list)
    lines: list = field(default_factory=list)
    drops: Drops = field(default_factory=Drops)
    changes: Counter = field(default_factory=Counter)


def cleaned(job, unit):
    """A Unit → Cleaned."""
    found = Cleaned()
    for line, raw in unit.located(found.drops, job.field):
        text, reason = clean_text(raw)
        if reason:
            found.drops.add(reason, unit.file, line, raw)
            continue
        found.texts.append(text)
        found.lines.append(line)
    return found


def make_part(job, unit):
    """A Unit → the two files of its part."""
    found = cleaned(job, unit)
    encoder = encoder_of(job.load_tokenizer, job.tokenizer)
    tokenizer = encoder.tokenizer
    ids, ends = framed(*encoder.encode(found.texts), tokenizer.bos_id, tokenizer.eos_id)
    keys = [key_of(text) for text in found.texts]
    columns = {
        "lengths": np.diff(ends, prepend=0),
        "line": found.lines,
        "characters": [len(text) for text in found.texts],
        "bytes": [len(text.encode("utf-8")) for text in found.texts],
        "key": keys,
        "val": [is_held_out(key, job.seed, job.val_fraction) for key in keys],
    }
    about = {
        "file": unit.file,
        "source": unit.source,
        "dropped": found.drops.counts,
        "first": found.drops.first,
        "changed": found.changes,
    }
    Part(job.folder, unit.number).save(ids, columns, about)


class Part:
    """One part on the disk. Columns are read when they are asked for, and not kept."""

    def __init__(self, folder, number):
        self.number = number
        self.ids_file, self.file = Path(folder, f"{number:05d}.ids"), Path(folder, f"{number:05d}.npz")

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
        """{"file", "source", "dropped", "first", "changed"}"""
        with np.load(self.file) as arrays:
            return json.loads(arrays["about"].tobytes().decode("utf-8", "surrogatepass"))

    def ids(self):
        """All its ids, (n,) uint16, memory-mapped where there are any."""
        return np.memmap(self.ids_file, "<u2", "r") if self.ids_file.stat().st_size else np.empty(0, "<u2")

    def drops(self):
        """Drops of what was left out on the way to this part."""
        drops = Drops()
        drops.counts.update(self.about["dropped"])
        drops.first.update(self.about["first"])
        return drops

    def excerpt(self, document, tokenizer):
        """The first ids of a document as text, to be shown."""
        lengths = self.column("lengths")
        begin = int(lengths[:document].sum(dtype=np.int64)) + 1
        return tokenizer.decode(self.ids()[begin : begin + min(int(lengths[document]) - 2, 200)].tolist())


def make_parts(job, units, workers):
    """Makes the parts of `units` that are not there yet, and returns all of them, in order."""
    parts = []

    def missing():
        for unit in units:
            parts.append(Part(job.folder, unit.number))
            if not parts[-1].file.is_file():
                yield unit

    for _ in in_order(partial(make_part, job), missing(), workers):
        pass
    return parts
