"""Parts of a corpus → the files that training reads: which documents go where, and writing all of them or none."""

import contextlib
import sys
from dataclasses import dataclass, field

import numpy as np

from cleaning.binfile import (
    BinWriter,
    ShardWriter,
    anneal_path_of,
    is_sidecar,
    remove_bin,
    sidecar_of,
    val_path_of,
)
from cleaning.equal_keys import first_occurrences
from cleaning.files import progress_meter
from cleaning.minhash import NearDuplicates
from cleaning.near_duplicates import drop_mask
from cleaning.selection import Columns, arranged, best_share, hashed, leave_out, uses_in_mixture

BATCH = 1 << 22  # ids that are put together where each document has a place of its own
SIZES = ("lengths", "characters", "bytes")


@dataclass
class Selection:
    """Where the documents of all parts go.

    Attributes:
        train, val: list of (documents,) bool, one per part.
        order: instead of `train`, the numbers over all parts of the documents to train on, in the order they are
            written, some perhaps several times; None: those of `train` as they stand.
        anneal: the same for the annealing part; None: there is none.
        uses: {times: how many documents to train on are used so often}.
        mixed: {name of a group of the mixture: {"documents", "tokens"} to train on}, without the annealing part.
    """

    train: list
    val: list
    order: np.ndarray | None = None
    anneal: np.ndarray | None = None
    uses: dict = field(default_factory=dict)
    mixed: dict = field(default_factory=dict)

    def counts(self):
        """How many documents there are to train on, and how many to validate on."""
        n = sum(int(own.sum()) for own in self.train) if self.order is None else len(self.order)
        return n, sum(int(own.sum()) for own in self.val)


def select(parts, cfg, mixture, drops, tokenizer):
    """Decides where each document goes; what is left out from here on is counted in `drops`.

    Args:
        parts: list of Part; cfg: PretrainSettings; mixture: Mixture or None.
    Returns:
        a Selection.
    """
    kept = first_occurrences(Columns(parts, "key"))
    for part, own in zip(parts, kept):
        for document in np.flatnonzero(~own).tolist():
            leave_out("duplicate", part, document, drops, tokenizer)
    if cfg.near_duplicates:
        leave_out_near_duplicates(parts, kept, cfg, drops, tokenizer)
    val = [part.column("val") & own for part, own in zip(parts, kept)]
    selection = Selection([own & ~held_out for own, held_out in zip(kept, val)], val)
    selection.uses = {1: sum(int(own.sum()) for own in selection.train)}
    if mixture or cfg.order != "source" or cfg.anneal:
        arrange(selection, parts, cfg, mixture)
    return selection


def leave_out_near_duplicates(parts, kept, cfg, drops, tokenizer):
    """Takes near-duplicates out of `kept`, list of (documents,) bool; the best or else the first of them stays."""
    documents = Documents(parts)
    scores = np.concatenate([part.column("quality") for part in parts]) if cfg.quality else None
    if scores is not None:
        scores[~np.concatenate(kept)] = -np.inf  # a repeat that is gone already must keep nobody out
    gone, _ = drop_mask(
        [part.bands() for part in parts],
        lambda i: tokenizer.decode(documents.ids(i)[1:-1].tolist()),
        NearDuplicates(cfg.near_duplicates),
        scores,
        progress=progress_meter(int(documents.first[-1]), "near-duplicates", "documents"),
    )
    for part, own, gone_here in zip(parts, kept, np.split(gone, documents.first[1:-1])):
        for document in np.flatnonzero(own & gone_here).tolist():
            leave_out("near-duplicate", part, document, drops, tokenizer)
        own &= ~gone_here


def arrange(selection, parts, cfg, mixture):
    """Fills in the order, the annealing part and the uses; about 60 bytes a document while it works."""
    everything = lambda name: np.concatenate([part.column(name) for part in parts])  # noqa: E731
    used, tokens = np.concatenate(selection.train), everything("lengths")
    chance = hashed(everything("key"), cfg.seed)
    quality = everything("quality") if cfg.quality else np.zeros(len(used), np.float32)
    times = used.astype(np.int64)
    if mixture:
        groups = mixture.groups(parts)
        group, ends = np.where(used, groups, -1), np.cumsum([len(own) for own in selection.val])
        # what is left out of the mixture is not validated on either
        selection.val = [own & (to >= 0) for own, to in zip(selection.val, np.split(groups, ends[:-1]))]
        sizes = np.bincount(group[group >= 0], minlength=len(mixture.weights))
        if not sizes.all():
            empty = ", ".join(name for name, size in zip(mixture.names, sizes) if not size)
            raise ValueError(f"nothing to mix: no usable text of {empty}; leave it out of the mixture")
        times = uses_in_mixture(group, tokens, chance, mixture.weights, cfg.max_repeats)
    selection.order = arranged(cfg.order, times, tokens, quality, chance)
    selection.uses = dict(enumerate(np.bincount(times[used]).tolist()))
    if cfg.anneal:
        best = best_share(selection.order, tokens, quality, cfg.anneal)
        selection.order, selection.anneal = selection.order[~best], selection.order[best]
    for number, name in enumerate(mixture.names if mixture else ()):
        own = selection.order[group[selection.order] == number]
        selection.mixed[name] = {"documents": len(own), "tokens": int(tokens[own].sum(dtype=np.int64))}


# --- writing ----------------------------------------------------------------------------------------------------------


def places_of(starts, lengths):
    """The places of things that begin at `starts` and are `lengths` long, one after another: (lengths.sum(),) int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])


def starts_of(lengths):
    """Where things of these lengths begin that lie end to end: (n,) int64."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def write_as_they_stand(parts, chosen, writer):
    """Appends the chosen documents, list of (documents,) bool per part; one part is in memory."""
    for part, own in zip(parts, chosen):
        if own.any():
            sizes = [part.column(name) for name in SIZES]
            writer.add(part.ids()[places_of(starts_of(sizes[0])[own], sizes[0][own])], *(size[own] for size in sizes))


class Documents:
    """All documents of all parts, numbered through; keeps 20 bytes of each."""

    def __init__(self, parts):
        self.parts = parts
        sizes = [[part.column(name) for name in SIZES] for part in parts]
        self.first = np.cumsum([0, *(len(own[0]) for own in sizes)])  # number of the first document of each part
        self.starts = np.concatenate([starts_of(own[0]) for own in sizes])
        self.sizes = [np.concatenate(column) for column in zip(*sizes)]

    def ids(self, document):
        """The ids of one document, BOS and EOS among them."""
        part = self.parts[int(np.searchsorted(self.first, document, side="right")) - 1]
        return part.ids()[self.starts[document] : self.starts[document] + self.sizes[0][document]]

    def write(self, chosen, writer):
        """Appends the documents of these numbers, in this order."""
        chosen = np.asarray(chosen, np.int64)
        ends = np.cumsum(self.sizes[0][chosen], dtype=np.int64)
        cuts = np.searchsorted(ends, np.arange(BATCH, ends[-1] if len(ends) else 0, BATCH))
        for batch in np.split(chosen, np.unique(cuts)):
            sizes = [size[batch] for size in self.sizes]
            begin = starts_of(sizes[0])
            ids = np.empty(int(sizes[0].sum(dtype=np.int64)), "<u2")
            part_of = np.searchsorted(self.first, batch, side="right") - 1
            by_part = np.argsort(part_of, kind="stable")
            for own in np.split(by_part, np.flatnonzero(np.diff(part_of[by_part])) + 1):
                if len(own):
                    lengths, part = sizes[0][own], self.parts[part_of[own[0]]]
                    ids[places_of(begin[own], lengths)] = part.ids()[places_of(self.starts[batch[own]], lengths)]
            writer.add(ids, *sizes)


def write_files(parts, selection, output, shard_tokens, description):
    """Writes all files of a corpus; every one is complete on the disk before the first one replaces an old one.

    Args:
        output: a .bin, or with shard_tokens, ids in each, a folder of them.
        description: {…} of all of them.
    Returns:
        {path: counts} of the files that were written.
    """
    with contextlib.ExitStack() as stack:
        train = stack.enter_context(ShardWriter(output, shard_tokens) if shard_tokens else BinWriter(output))
        val = stack.enter_context(BinWriter(val_path_of(output)))
        anneal = stack.enter_context(BinWriter(anneal_path_of(output)))
        write_as_they_stand(parts, selection.val, val)
        if selection.order is None:
            write_as_they_stand(parts, selection.train, train)
        else:
            documents = Documents(parts)
            documents.write(selection.order, train)
            documents.write([] if selection.anneal is None else selection.anneal, anneal)
        named = {"train": train, "val": val, "anneal": anneal}
        filled = {name: writer for name, writer in named.items() if writer.counts["documents"]}
        for name, writer in filled.items():
            writer.prepare(part=name, **description)
        for writer in filled.values():
            writer.commit()
        for name in ("val", "anneal"):
            file = named[name].path
            if name not in filled and (name == "val" or is_sidecar(sidecar_of(file))):
                if file.exists():
                    print(f"removed {file}, a part of what this run replaces", file=sys.stderr)
                remove_bin(file)
    return {writer.path: writer.counts for writer in filled.values()}
