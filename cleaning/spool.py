"""Records between reading and writing: on the disk until all are known, so that repeats are found in any number."""

import hashlib
import json
import tempfile
from collections import Counter
from itertools import compress

import numpy as np

from cleaning.equal_keys import first_occurrences

MEMORY = 16 << 20  # bytes in which repeats are looked for; less of it means reading the keys more often
BLOCK = 1 << 16  # records whose FACTS are in memory at once
# What is kept of each record until all are read; `key` is of what it says, whichever side of a pair was chosen.
FACTS = np.dtype([("key", "<u8"), ("line", "<i8"), ("file", "<i4"), ("notes", "<i4"), ("swapped", "?")])


def key_of(record):
    """(uint64 hash of what a record says, whatever schema said it; which of a pair's sides was chosen, as a bool)."""
    swapped = "chosen" in record and record["chosen"] > record["rejected"]
    if swapped:
        record = {**record, "chosen": record["rejected"], "rejected": record["chosen"]}
    text = json.dumps(record, ensure_ascii=False, sort_keys=True).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"), swapped


class Spool:
    """The records of one source, in a temporary file of lines, and FACTS about them in another; a context manager."""

    def __init__(self, folder):
        self.lines = tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", newline="\n")  # noqa: SIM115 see __exit__
        self.about, self.count = tempfile.TemporaryFile(dir=folder), 0  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.about.close()

    def add(self, record, line, file, notes):
        """Appends a record; `file` and `notes` are numbers that the caller knows the meaning of."""
        self.lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        key, swapped = key_of(record)
        self.about.write(np.array((key, line, file, notes, swapped), FACTS).tobytes())
        self.count += 1

    def read(self):
        """An iterator over the lines, from the first on."""
        self.lines.seek(0)
        return iter(self.lines)

    def facts(self):
        """FACTS of all records, as Facts."""
        return Facts(self.about, self.count)


class Facts:
    """What `column` makes of FACTS that lie in a file, of which only the slice that is asked for is ever in memory.

    A memory-mapped array would fill the memory with all that was looked at.
    """

    def __init__(self, file, count, column=lambda facts: facts):
        self.file, self.count, self.column = file, count, column

    def __len__(self):
        return self.count

    def __getitem__(self, part):
        start, stop, _ = part.indices(self.count)
        size = FACTS.itemsize
        self.file.seek(start * size)
        return self.column(np.frombuffer(self.file.read((stop - start) * size), FACTS))

    def of(self, column):
        """The same file, seen through another function: (n,) FACTS → (n,) array."""
        return Facts(self.file, self.count, column)

    def blocks(self):
        """Yields (slice, its array), in order."""
        for start in range(0, self.count, BLOCK):
            part = slice(start, min(start + BLOCK, self.count))
            yield part, self[part]


def without_repeats(spools, files, drops, kinds):
    """Which records are met for the first time, whatever memory would take to hold them all.

    Args:
        spools: one Spool per source, read to its end; files: list of paths per source.
        drops: counts the others; kinds: list of what `notes` stands for.
    Returns:
        list of (n,) bool, one per source, and a Counter of what was changed in the records that stay.
    """
    facts = [spool.facts() for spool in spools]
    kept = first_occurrences([own.of(lambda block: block["key"]) for own in facts], MEMORY)
    # a pair that says the opposite of an earlier one is the first of its own kind, if sides count
    opposite = kept
    if any(block.any() for own in facts for _, block in own.of(lambda block: block["swapped"]).blocks()):
        as_chosen = lambda block: block["key"] ^ block["swapped"].astype(np.uint64)  # noqa: E731
        opposite = first_occurrences([own.of(as_chosen) for own in facts], MEMORY)
    notes = Counter()
    for own, first, new, paths, spool in zip(facts, kept, opposite, files, spools):
        for number, line in compress(enumerate(spool.read()), memoryview(~first)):
            reason = "contradicts an earlier pair" if new[number] else "duplicate"
            [fact] = own[number : number + 1]
            drops.add(reason, str(paths[fact["file"]]), int(fact["line"]), line)
        for part, block in own.blocks():
            for kind, count in enumerate(np.bincount(block["notes"][first[part]], minlength=len(kinds)).tolist()):
                notes.update({note: count for note in kinds[kind] if count})
    return kept, notes
