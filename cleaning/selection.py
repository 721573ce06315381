"""Which documents of a corpus are used, how often, and in what order: mixtures, repeats, curricula, an annealing part.

What is kept in memory is a number a document for each question that is asked: 1 byte to leave out duplicates, about
60 bytes for mixtures and orders. Nothing here depends on how many processes made the parts.
"""

import os
from dataclasses import dataclass

import numpy as np

ORDERS = ("source", "shuffle", "length", "quality")


@dataclass
class Mixture:
    """What a corpus is to be mixed of.

    Attributes:
        by: 'source' or 'domain', what decides which group a document belongs to.
        group: {number of the source or domain: its group}; documents of others are left out.
        weights, names: one per group.
    """

    by: str
    group: dict
    weights: list
    names: list

    def groups(self, parts):
        """The group of every document of all parts, -1 for none: (documents,) int64."""
        if self.by == "source":
            own = [np.full(len(part), part.about["source"]) for part in parts]
        else:
            own = [part.column("domain") for part in parts]
        table = np.full(1 + max(self.group.keys() | {int(numbers.max(initial=0)) for numbers in own}), -1)
        for number, group in self.group.items():
            table[number] = group
        return table[np.concatenate(own)]


class Columns:
    """One column of all parts, as a sequence of arrays that are read when they are asked for."""

    def __init__(self, parts, name):
        self.parts, self.name = parts, name

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, number):
        return self.parts[number].column(self.name)


def used_of_sources(parts, train, order, n):
    """What of each source is trained on: ((n,) documents, (n,) tokens), int64, each counted as often as it is used.

    Args:
        train, order: as in cleaning.corpus.Selection; n: how many sources there are.
    """
    sizes = np.cumsum([0, *(len(own) for own in train)])
    times = None if order is None else np.bincount(order, minlength=sizes[-1])
    totals = np.zeros((2, n), np.int64)
    for part, own, first in zip(parts, train, sizes):
        uses = own.astype(np.int64) if times is None else times[first : first + len(own)]
        totals[:, part.about["source"]] += uses.sum(), uses @ part.column("lengths").astype(np.int64)
    return totals


def hashed(keys, seed):
    """(n,) uint64 → (n,) uint64, evenly spread and another for every seed.

    Source: the mixing function of SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195.
    """
    x = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def leave_out(reason, part, document, drops, tokenizer):
    """Counts a document of a part as left out; the first of each reason is shown."""
    text = "" if reason in drops.first else part.excerpt(document, tokenizer)
    line = 0 if reason in drops.first else int(part.column("line")[document])
    drops.add(reason, part.about["file"], line, text)


def check_named(inputs, mix):
    """ValueError unless one of --input and --mix names the raw files."""
    if inputs and mix:
        raise ValueError("--input and --mix both name the raw files; give one of them")
    if not (inputs or mix):
        raise ValueError("name the raw files: --input PATH ..., or a mixture: --mix PATH:WEIGHT ...")


def check_once(files):
    """ValueError if two entries of --mix mean one of these files."""
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise ValueError("--mix names a file twice; each file belongs to one entry")


def parse_weights(entries, flag, what="PATH"):
    """['zh.jsonl:0.6', 'en.jsonl:0.4'] → [(name, weight)]; ValueError for a weight that is none."""
    weights = []
    for entry in entries:
        name, _, weight = entry.rpartition(":")
        try:
            number = float(weight)
        except ValueError:
            number = -1.0
        if not name or not 0 < number < float("inf"):
            raise ValueError(f"{flag} {entry} is not {what}:WEIGHT with a weight above 0, such as zh.jsonl:0.6")
        weights.append((name, number))
    return weights


def uses_in_mixture(group, tokens, chance, weights, max_repeats=1):
    """How often each document is used so that groups stand in the ratio of their weights, counted in tokens.

    The group that has least for its weight is used as often as `max_repeats` allows; others as their weight demands. A
    group's documents are used equally often, but for a last round that is drawn at random.

    Args:
        group: (n,) int, the group of each document, -1: none.
        tokens: (n,) int; chance: (n,) random numbers, by which the last round is drawn.
        weights: one per group.
    Returns:
        (n,) int64.
    """
    sizes = np.bincount(group[group >= 0], tokens[group >= 0], minlength=len(weights))
    whole = min(max_repeats * size / weight for size, weight in zip(sizes, weights))
    times = np.zeros(len(group), np.int64)
    for number, (size, weight) in enumerate(zip(sizes, weights)):
        own = np.flatnonzero(group == number)
        rounds, rest = divmod(whole * weight / size, 1) if size else (0, 0)
        own = own[np.argsort(chance[own], kind="stable")]
        # of a document that only fits in half, the half that is more
        extra = np.cumsum(tokens[own]) - tokens[own] / 2 < rest * size
        times[own] = int(rounds) + extra
    return times


def arranged(order, times, tokens, quality, chance):
    """Documents, each as often as `times` says → their numbers in one of ORDERS, (times.sum(),) int64.

    The best, or the longest, come last. Copies of a document follow each other, unless they are shuffled.
    """
    documents = np.repeat(np.arange(len(times)), times)
    if order == "source":
        return documents
    if order == "shuffle":
        copy = np.arange(len(documents)) - np.repeat(np.cumsum(times) - times, times)
        # a chance of its own for each copy: multiplied by odd numbers, 64-bit hashes stay as even as they were
        own = chance[documents] * (2 * copy.astype(np.uint64) + np.uint64(1))
        return documents[np.argsort(own, kind="stable")]
    return documents[np.argsort({"length": tokens, "quality": quality}[order][documents], kind="stable")]


def best_share(documents, tokens, quality, share):
    """(n,) bool: which of the `documents`, the best first, make up this share of all their tokens."""
    best_first = np.lexsort((documents, -quality[documents]))  # copies of a document side by side
    own = documents[best_first]
    ends = np.cumsum(tokens[own])
    count = int(np.searchsorted(ends, share * ends[-1], side="right"))
    if count < len(own):
        count = int(np.argmax(own == own[count]))  # not some copies of a document, and others in the rest
    chosen = np.zeros(len(documents), bool)
    chosen[best_first[:count]] = True
    return chosen
