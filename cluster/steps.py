"""Steps of a datatrove pipeline that call this project's own cleaning; cluster/pretrain.py puts them together.

All tasks share one folder, which every machine sees. Files go to tasks in their order, so the documents of task 0, then
those of task 1 and so on, stand in the order in which one machine would have read them:

    parts/00012/        what task 12 cleaned and encoded, see cleaning/parts.py
    lines/00012/        keys of its lines, with --repeated_lines
    keys/00012*.npy     keys of its documents, those that share FindRepeats looks at together side by side
    repeats/00003*.npy  numbers of the documents, task by task, whose text stands earlier, found by task 3
    bin/00012.bin       what of it is left, and bin/00012_val.bin, until cluster/finish.py moves them to their place

A document's number is its place among those that its task read, from 0.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from cleaning.binfile import BinWriter, sha256_of, val_path_of
from cleaning.cleaner import lines_file, make_parts, note_lines
from cleaning.corpus import SIZES, starts_of
from cleaning.equal_keys import first_occurrences
from cleaning.parts import Part, make_missing, save_array
from cleaning.readers import Drops, size_of
from cleaning.repeated_lines import frequent_lines
from cleaning.units import read_units

TOGETHER = 1 << 10  # documents that are written at a time


def numbered(folder, kind, rank, ending=""):
    """Where the things of a task lie: folder/keys/00012.npy."""
    return Path(folder, kind, f"{rank:05d}{ending}")


def parts_of(folder, rank):
    """The Parts that a task made, in order."""
    own = numbered(folder, "parts", rank)
    return [Part(own, number) for number in range(len(list(own.glob("*.npz"))))]


def column_of(parts, name, dtype=None):
    """One column of all documents of some parts, (documents,)."""
    return np.concatenate([np.empty(0, dtype), *(part.column(name) for part in parts)])


def save_grouped(path, values, group, groups):
    """Writes `values`, those of group 0 first, then those of group 1, …, each in their order; see read_group."""
    order = np.argsort(group, kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_array(Path(f"{path}_starts.npy"), np.searchsorted(group[order], np.arange(groups + 1)))
    save_array(Path(f"{path}.npy"), values[order])


def read_group(path, group):
    """The values of one group, memory-mapped."""
    start, stop = np.load(f"{path}_starts.npy")[group : group + 2]
    return np.load(f"{path}.npy", mmap_mode="r")[start:stop]


def kept_of(folder, rank, world_size):
    """(documents,) bool: which documents of a task stand nowhere before."""
    kept = np.ones(sum(map(len, parts_of(folder, rank))), bool)
    for share in range(world_size):
        kept[read_group(numbered(folder, "repeats", share), rank)] = False
    return kept


class Clean(PipelineStep):
    """Raw files → parts and their keys. Parts that are there already stay.

    This is the place where texts are cleaned: make_parts calls cleaning.cleaner.cleaned, so that every rule that it
    knows holds here too.

    Args:
        job: Job; its folder is that of all tasks.
        files: list of paths per task.
    """

    type, name = "CLEAN", "cleaning/cleaner.py"

    def __init__(self, job, files):
        super().__init__()
        self.job, self.files = job, files

    def run(self, data=None, rank=0, world_size=1):
        folder = self.job.folder
        own = numbered(folder, "parts", rank)
        own.mkdir(parents=True, exist_ok=True)
        job = dataclasses.replace(self.job, folder=str(own))
        parts = make_parts(job, read_units(map(Path, self.files[rank]), job.text_field), 0)
        keys = column_of(parts, "key", np.uint64)
        self.stat_update("documents", value=len(keys))
        shares = keys % np.uint64(world_size)
        save_grouped(numbered(folder, "keys", rank), keys, shares, world_size)
        save_grouped(numbered(folder, "keys", rank, "_place"), np.arange(len(keys)), shares, world_size)


class NoteLines(PipelineStep):
    """Raw files → the keys of the lines of each document; comes before Clean, and takes the same."""

    type, name = "LINES", "lines of every document"

    def __init__(self, job, files):
        super().__init__()
        self.job, self.files = job, files

    def run(self, data=None, rank=0, world_size=1):
        own = numbered(self.job.folder, "lines", rank)
        own.mkdir(parents=True, exist_ok=True)
        job = dataclasses.replace(self.job, folder=str(own), frequent=None)
        units = read_units(map(Path, self.files[rank]), job.text_field)
        make_missing(lambda unit: note_lines(job, unit), lambda number: lines_file(job, number), units, 0)


class FindRepeatedLines(PipelineStep):
    """The keys of all documents' lines → those that stand in many documents, in job.frequent; one task."""

    type, name = "LINES", "lines that many documents share"

    def __init__(self, job):
        super().__init__()
        self.job = job

    def run(self, data=None, rank=0, world_size=1):
        files = sorted(Path(self.job.folder, "lines").glob("*/*_lines.npy"))
        save_array(self.job.frequent, frequent_lines([np.load(f, mmap_mode="r") for f in files], self.job.lines))


class FindRepeats(PipelineStep):
    """The keys of all tasks → which documents stand earlier; each task looks at its share of the keys."""

    type, name = "REPEATS", "equal texts"

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def run(self, data=None, rank=0, world_size=1):
        ranks = range(world_size)
        first = first_occurrences([read_group(numbered(self.folder, "keys", r), rank) for r in ranks])
        gone = [read_group(numbered(self.folder, "keys", r, "_place"), rank)[~own] for r, own in zip(ranks, first)]
        self.stat_update("repeats", value=sum(map(len, gone)))
        owner = np.repeat(np.arange(world_size), [len(places) for places in gone])
        save_grouped(numbered(self.folder, "repeats", rank), np.concatenate(gone), owner, world_size)


class ReadParts(PipelineStep):
    """Parts → a Document for each text that stands nowhere before, in order.

    Args:
        job: see Clean.
        with_text: decode the ids, to look at the text; otherwise it is empty.
    """

    type, name = "READ", "parts without repeats"

    def __init__(self, job, with_text):
        super().__init__()
        self.job, self.with_text = job, with_text

    def run(self, data=None, rank=0, world_size=1):
        tokenizer = self.job.load_tokenizer(self.job.tokenizer)
        kept, first = kept_of(self.job.folder, rank, world_size), 0
        for part in parts_of(self.job.folder, rank):
            ids, sizes = part.ids(), [part.column(name) for name in (*SIZES, "val")]
            starts, chosen = starts_of(sizes[0]), kept[first : first + len(sizes[0])]
            for i in np.flatnonzero(chosen).tolist():
                length, characters, size, val = (column[i].item() for column in sizes)
                own = np.array(ids[starts[i] : starts[i] + length])
                text = tokenizer.decode(own[1:-1].tolist()) if self.with_text else ""
                about = {"ids": own, "characters": characters, "bytes": size, "val": val}
                yield Document(text, f"{rank}/{first + i}", metadata=about)
            first += len(chosen)


class WriteShard(PipelineStep):
    """Documents → a .bin and its validation part, with a description beside each.

    Args:
        job, files: see Clean.
        description: {…} of all shards; what was dropped, changed and read by this task is added.
    """

    type, name = "WRITE", "uint16 ids"

    def __init__(self, job, files, description):
        super().__init__()
        self.job, self.files, self.description = job, files, description

    def run(self, data=None, rank=0, world_size=1):
        path, folder = numbered(self.job.folder, "bin", rank, ".bin"), self.job.folder
        with BinWriter(path) as train, BinWriter(val_path_of(path)) as val:
            waiting = {True: [], False: []}
            for document in data:
                own = waiting[document.metadata["val"]]
                own.append(document.metadata)
                if len(own) == TOGETHER:
                    add_documents(val if own is waiting[True] else train, own)
                    own.clear()
            add_documents(train, waiting[False])
            add_documents(val, waiting[True])
            drops, changes, parts = Drops(), Counter(), parts_of(folder, rank)
            for part in parts:
                drops.merge(part.drops())
                changes.update(part.about["changed"])
            kept = kept_of(folder, rank, world_size)
            near = int(kept.sum()) - train.counts["documents"] - val.counts["documents"]
            drops.counts.update({k: n for k, n in (("duplicate", int((~kept).sum())), ("near-duplicate", near)) if n})
            self.stat_update("documents", value=train.counts["documents"])
            about = {"sources": [source(file) for file in self.files[rank] if size_of(Path(file))]}
            about |= {"dropped": dict(sorted(drops.counts.items())), "changed": dict(sorted(changes.items()))}
            for name, writer in (("train", train), ("val", val)):
                writer.prepare(part=name, **self.description | about)
            train.commit()
            val.commit()


def source(file):
    """What a description says of a raw file."""
    return {"path": file, "bytes": size_of(Path(file)), "sha256": sha256_of(file)}


def add_documents(writer, documents):
    """Appends the `metadata` of some Documents of ReadParts to a BinWriter."""
    if documents:
        sizes = (
            [len(d["ids"]) for d in documents],
            [d["characters"] for d in documents],
            [d["bytes"] for d in documents],
        )
        writer.add(np.concatenate([d["ids"] for d in documents]), *sizes)
