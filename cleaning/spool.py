"""Records between reading and writing: on the disk until all are known, so that repeats are found in any number."""

import hashlib
import json
import tempfile
from collections import Counter

import numpy as np

from cleaning.equal_keys import first_occurrences

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
        self.about, self.waiting, self.count = tempfile.TemporaryFile(dir=folder), [], 0  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.about.close()

    def add(self, record, line, file, notes):
        """Appends a record; `file` and `notes` are numbers that the caller knows the meaning of."""
        self.lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        key, swapped = key_of(record)
        self.waiting.append((key, line, file, notes, swapped))
        self.count += 1
        if len(self.waiting) >= 4096:
            self._flush()

    def _flush(self):
        self.about.write(np.array(self.waiting, FACTS).tobytes())
        self.waiting = []

    def facts(self):
        """(n,) array of FACTS, memory-mapped."""
        self._flush()
        self.about.flush()
        return np.memmap(self.about, FACTS, "r") if self.count else np.empty(0, FACTS)


def without_repeats(spools, files, drops, kinds):
    """Which records are met for the first time, whatever memory would take to hold them all.

    Args:
        spools: one Spool per source, read to its end; files: list of paths per source.
        drops: counts the others; kinds: list of what `notes` stands for.
    Returns:
        list of (n,) bool, one per source, and a Counter of what was changed in the records that stay.
    """
    facts = [spool.facts() for spool in spools]
    kept = first_occurrences([own["key"] for own in facts])
    # a pair that says the opposite of an earlier one is the first of its own kind, if sides count
    as_chosen = [own["key"] ^ own["swapped"].astype(np.uint64) for own in facts]
    opposite = first_occurrences(as_chosen) if any(own["swapped"].any() for own in facts) else kept
    notes = Counter()
    for own, first, new, paths, spool in zip(facts, kept, opposite, files, spools):
        spool.lines.seek(0)
        for number, line in zip(np.flatnonzero(~first).tolist(), pick(spool.lines, np.flatnonzero(~first))):
            reason = "contradicts an earlier pair" if new[number] else "duplicate"
            drops.add(reason, str(paths[own["file"][number]]), int(own["line"][number]), line)
        for kind, count in enumerate(np.bincount(own["notes"][first], minlength=len(kinds)).tolist()):
            notes.update({note: count for note in kinds[kind] if count})
    return kept, notes


def pick(file, numbers):
    """Yields the lines of `file` with these sorted numbers."""
    wanted = iter(numbers.tolist())
    number = next(wanted, None)
    for at, line in enumerate(file):
        if at == number:
            yield line
            number = next(wanted, None)
