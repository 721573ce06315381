"""A corpus in parts: each is a few megabytes of raw records, cleaned and encoded on any core, in a few files.

    00012.ids   uint16 ids of its documents, `<s>text</s>` end to end
    00012.npz   what is known of each document (COLUMNS), and what was left out
    00012.npy   where near-duplicates are looked for, their band keys

Parts stay until the corpus is written, so a run that was killed goes on with those that are missing. They depend on
nothing but the input and the settings: not on the number of processes, nor on the order in which they were made.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cleaning.binfile import write
from cleaning.minhash import NearDuplicates, band_keys
from cleaning.normalize import clean_text
from cleaning.pieces import encoder_of, framed
from cleaning.readers import Drops
from cleaning.repeated_lines import RepeatedLines, frequent_lines, line_keys, without_lines
from cleaning.scorer import load_scorer
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
        lines, frequent: RepeatedLines, and the .npy file of the keys of the lines that are left out; None: none are.
        quality, min_quality, domains: a scorer's file, the lowest score that stays, and another scorer's file.
        near: NearDuplicates, or None.
    """

    folder: str
    load_tokenizer: object
    tokenizer: str
    field: str | None = None
    seed: int = 0
    val_fraction: float = 0.0
    lines: RepeatedLines | None = None
    frequent: str | None = None
    quality: str | None = None
    min_quality: float = 0.0
    domains: str | None = None
    near: NearDuplicates | None = None


@dataclass
class Cleaned:
    """The documents of a unit, and what happened to the others."""

    texts: list = field(default_factory=list)
    lines: list = field(default_factory=list)
    drops: Drops = field(default_factory=Drops)
    changes: Counter = field(default_factory=Counter)


def cleaned(job, unit):
    """A Unit → Cleaned: the rules that look at one document at a time."""
    found = Cleaned()
    frequent = frequent_of(job.frequent) if job.frequent else ()
    for line, raw in unit.located(found.drops, job.field):
        text, reason = clean_text(raw)
        if not reason and len(frequent):
            text, removed = without_lines(text, frequent, job.lines)
            found.changes["repeated lines left out"] += bool(removed)
            reason = None if text else "nothing but repeated lines"
        if reason:
            found.drops.add(reason, unit.file, line, raw)
            continue
        found.texts.append(text)
        found.lines.append(line)
    return found


@lru_cache(maxsize=1)
def frequent_of(file):
    """The keys of repeated lines, memory-mapped; see cleaning.repeated_lines."""
    return np.load(file, mmap_mode="r")


def scored(job, unit, found):
    """{"quality", "domain"} of the documents, as far as asked for; those below min_quality leave `found`."""
    columns = {}
    if job.quality and found.texts:
        quality = load_scorer(job.quality).scores(found.texts)
        for i in np.flatnonzero(quality < job.min_quality).tolist():
            found.drops.add(f"quality below {job.min_quality:g}", unit.file, found.lines[i], found.texts[i])
        stays = quality >= job.min_quality
        found.texts = [text for text, stay in zip(found.texts, stays) if stay]
        found.lines = [line for line, stay in zip(found.lines, stays) if stay]
        columns["quality"] = quality[stays]
    if job.domains and found.texts:
        columns["domain"] = load_scorer(job.domains).labels(found.texts)
    asked = {"quality": job.quality, "domain": job.domains}
    return {name: columns.get(name, []) for name, path in asked.items() if path}


def make_part(job, unit):
    """A Unit → the files of its part."""
    found = cleaned(job, unit)
    columns = scored(job, unit, found)
    encoder = encoder_of(job.load_tokenizer, job.tokenizer)
    ids, ends = framed(*encoder.encode(found.texts), encoder.tokenizer.bos_id, encoder.tokenizer.eos_id)
    keys = [key_of(text) for text in found.texts]
    columns |= {
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
    part = Part(job.folder, unit.number)
    if job.near:
        with open(part.bands_file, "wb") as file:
            np.save(SimpleNamespace(write=file.write), band_keys(found.texts, job.near))
    part.save(ids, columns, about)


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
        """{"file", "source", "dropped", "first", "changed"}"""
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


def count_lines(job, unit):
    """A Unit → <number>_lines.npy, the line keys of all its documents; see cleaning.repeated_lines."""
    keys = [line_keys(text, job.lines) for text in cleaned(job, unit).texts]
    target = lines_file(job, unit.number)
    with open(target.with_suffix(".tmp"), "wb") as file:
        np.save(SimpleNamespace(write=file.write), np.concatenate([np.empty(0, np.uint64), *keys]))
    os.replace(target.with_suffix(".tmp"), target)


def lines_file(job, number):
    """Where the line keys of a unit lie."""
    return Path(job.folder, f"{number:05d}_lines.npy")


def find_repeated_lines(job, units, workers):
    """Reads all units once for the lines that many documents share; returns the file of their keys."""
    target, files = Path(job.folder, "repeated_lines.npy"), []
    if target.is_file():
        return str(target)

    def missing():
        for unit in units:
            files.append(lines_file(job, unit.number))
            if not files[-1].is_file():
                yield unit

    for _ in in_order(partial(count_lines, job), missing(), workers):
        pass
    frequent = frequent_lines([np.load(file, mmap_mode="r") for file in files], job.lines)
    with open(target.with_suffix(".tmp"), "wb") as file:
        np.save(SimpleNamespace(write=file.write), frequent)
    os.replace(target.with_suffix(".tmp"), target)
    return str(target)
