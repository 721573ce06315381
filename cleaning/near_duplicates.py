"""Which of the texts that are nearly the same stays: candidates by equal band keys, then the texts themselves.

Texts are taken best first (without scores: in their order). One that resembles a text that stays goes; every other one
stays. So a text that goes always resembles one that stays, by the exact Jaccard similarity of their shingles. In a
chain, A like B and B like C but C unlike A, it is B that goes and C that stays, because nothing that stays says what C
says; to drop whole chains would lose texts that share nothing, over many links. The answer depends on the order
and the scores of the documents alone, not on how the corpus was split or on how many processes read it.
"""

import numpy as np

from cleaning.encodings import ignore
from cleaning.equal_keys import repeated_places
from cleaning.shingles import jaccard, shingle_set

COMPARED = 64  # a text is compared with at most so many that stay, those with the most equal band keys
OVERHEAD = 250  # bytes that a remembered set takes beside its shingles


def bucket_table(parts, memory):
    """Who shares a band key with whom.

    Args:
        parts: sequence of (n_i, bands) uint64 arrays; see cleaning.minhash.band_keys.
        memory: bytes for one band's keys while those that are equal are searched.
    Returns:
        documents: (M,) int64, sorted: those that share a key with another.
        buckets: (M + 1, bands) uint32; row m + 1 is documents[m]'s. Equal in a column where the keys are equal, and in
            no other place; 0: shared with none. Row 0 is all zeros.
        count: number of buckets, 0 included.
    """
    lengths = [len(part) for part in parts]
    bands, shares = parts[0].shape[1] if sum(lengths) else 0, np.zeros(sum(lengths), dtype=bool)
    for band in range(bands):
        for places, _ in repeated_places([part[:, band] for part in parts], memory):
            shares[places] = True
    documents, masks = np.flatnonzero(shares), np.split(shares, np.cumsum(lengths)[:-1])
    if max(len(shares), len(documents) * bands // 2) >= 1 << 32:
        raise ValueError(f"{len(shares):,} documents share too many keys to be numbered in 32 bits; split the corpus")
    buckets, count = np.zeros((len(documents) + 1, bands), dtype=np.uint32), 1
    for band in range(bands):
        # searched anew, among those alone that share some key: to keep all places would take 8 bytes for each
        column = [part[:, band][mask] for part, mask in zip(parts, masks)]
        for places, groups in repeated_places(column, memory):
            buckets[places + 1, band] = groups + count
            count += int(groups.max()) + 1
    return documents, buckets, count


class Kept:
    """The texts that stay, as far as they have been met, each to be found by its buckets.

    Args:
        buckets: as bucket_table gives it; changed here. It takes 4 bytes per band and document, and is all there is:
            the row of a text that stays is no longer needed for its buckets, so it holds, for each of them, the text
            that had been the latest one in it. 0 ends such a list.
    """

    def __init__(self, buckets, count):
        self.rows, self.columns = buckets, np.arange(buckets.shape[1])
        self.latest = np.zeros(count, dtype=np.uint32)  # by bucket; always 0 for bucket 0, which nothing shares

    def like(self, row):
        """Rows of texts that stay and share a bucket with this one, those that share the most first.

        In a bucket only the latest COMPARED are looked at, so that a thousand different texts that share one
        key cost a thousand times that, not a thousand times a thousand.
        """
        at, met = self.latest[self.rows[row]], []
        for _ in range(COMPARED):
            if not at.any():
                break
            met.append(at)
            at = self.rows[at, self.columns]
        if not met:
            return []
        others, shared = np.unique(np.concatenate(met), return_counts=True)
        others, shared = (others[1:], shared[1:]) if others[0] == 0 else (others, shared)
        return others[np.argsort(-shared, kind="stable")][:COMPARED].tolist()

    def add(self, row):
        """This text stays."""
        own = self.rows[row].copy()
        self.rows[row] = self.latest[own]
        self.latest[own[own > 0]] = row


def set_reader(text_of, n, memory):
    """i → shingle_set(text_of(i), n), remembered for the next comparison; all are forgotten beyond `memory` bytes."""
    sets, size = {}, 0

    def set_of(i):
        nonlocal size
        if i not in sets:
            if size > memory:
                sets.clear()
                size = 0
            sets[i] = shingle_set(text_of(i), n)
            size += sets[i].nbytes + OVERHEAD
        return sets[i]

    return set_of


def drop_mask(parts, text_of, settings, scores=None, memory=64 << 20, progress=ignore):
    """Which documents go because a near-duplicate of them stays; see the top of this file.

    Args:
        parts: sequence of (n_i, bands) uint64 arrays of band_keys; N documents in all, numbered through from 0.
        text_of: number → the document's text, anywhere in the corpus; asked for documents that share a key only.
        settings: NearDuplicates, the same that the keys were made with.
        scores: (N,) numbers, the best document of a cluster is the highest one; None, and where equal: the first.
        memory: bytes for one band's keys while equal ones are searched, then for shingles of texts met before.
        progress: called with the numbers of documents that are done, N in all.
    Returns:
        drop: (N,) bool.
        kept: (N,) int64, the document that stays in the place of this one; its own number if it stays. Equal numbers
            are a cluster.
    Raises:
        ValueError: scores of another length, or not a number.

    Memory beside that: 10 bytes per document, and for each that shares a key 20 and at most 6 per band.
    """
    total = sum(len(part) for part in parts)
    if scores is not None:
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (total,) or np.isnan(scores).any():
            wrong = "some are not numbers" if scores.shape == (total,) else f"there are {scores.shape}"
            raise ValueError(f"{total:,} documents need as many scores; {wrong}")
    documents, buckets, count = bucket_table(parts, memory)
    rows = np.arange(1, len(documents) + 1)
    if scores is not None:
        rows = rows[np.argsort(-scores[documents], kind="stable")]
    kept, staying, set_of = np.arange(total), Kept(buckets, count), set_reader(text_of, settings.shingle, memory)
    progress(total - len(documents))
    for row in map(int, rows):
        document = int(documents[row - 1])
        for other in map(int, documents[np.array(staying.like(row), dtype=np.int64) - 1]):
            if jaccard(set_of(document), set_of(other)) >= settings.similarity:
                kept[document] = other
                break
        else:
            staying.add(row)
        progress(1)
    return kept != np.arange(total), kept
