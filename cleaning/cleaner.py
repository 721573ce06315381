"""What is done to one unit of a corpus on its way to a part: cleaned, scored, encoded, on any core."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from cleaning.minhash import NearDuplicates, band_keys
from cleaning.parts import Part, make_missing, save_array
from cleaning.pieces import encoder_of, framed
from cleaning.readers import Drops
from cleaning.repeated_lines import RepeatedLines, frequent_lines, line_keys, without_lines
from cleaning.rules import RuleSettings, apply_rules, rules_for
from cleaning.scorer import load_scorer


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
        text_field: the field with the text, see text_of.
        rules, limits: names of rules, and RuleSettings; see cleaning.rules.
        seed, val_fraction: decide which documents are held out.
        lines, frequent: RepeatedLines, and the .npy file of the keys of the lines that are left out; None: none are.
        quality, min_quality, domains: a scorer's file, the lowest score that stays, and another scorer's file.
        near: NearDuplicates, or None.
    """

    folder: str
    load_tokenizer: object
    tokenizer: str
    text_field: str | None = None
    rules: tuple = ()
    limits: RuleSettings = field(default_factory=RuleSettings)
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
    found, rules = Cleaned(), rules_for(job.rules, job.limits)
    frequent = frequent_of(job.frequent) if job.frequent else ()
    for line, raw in unit.located(found.drops, job.text_field):
        text, reason, changed = apply_rules(raw, rules)
        if not reason:
            found.changes.update(name for name in changed if name != "clean")
        if not reason and len(frequent):
            text, removed = without_lines(text, frequent, job.lines)
            if removed:
                found.changes["repeated lines left out"] += 1
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
        "files": found.drops.files,
        "changed": found.changes,
    }
    part = Part(job.folder, unit.number)
    if job.near:
        save_array(part.bands_file, band_keys(found.texts, job.near))
    part.save(ids, columns, about)


def make_parts(job, units, workers):
    """Makes the parts of `units` that are not there yet, and returns all of them, in order."""
    files = make_missing(partial(make_part, job), lambda number: Part(job.folder, number).file, units, workers)
    return [Part(job.folder, number) for number in range(len(files))]


# --- lines that many documents share ----------------------------------------------------------------------------------


def lines_file(job, number):
    """Where the line keys of a unit lie."""
    return Path(job.folder, f"{number:05d}_lines.npy")


def note_lines(job, unit):
    """A Unit → the line keys of all its documents, in a file; see cleaning.repeated_lines."""
    keys = [line_keys(text, job.lines) for text in cleaned(job, unit).texts]
    save_array(lines_file(job, unit.number), np.concatenate([np.empty(0, np.uint64), *keys]))


def find_repeated_lines(job, units, workers):
    """Reads all units for the lines that many documents share; returns the .npy file of their keys."""
    target = Path(job.folder, "repeated_lines.npy")
    if not target.is_file():
        files = make_missing(partial(note_lines, job), partial(lines_file, job), units, workers)
        save_array(target, frequent_lines([np.load(file, mmap_mode="r") for file in files], job.lines))
    return str(target)
