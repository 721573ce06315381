"""Texts → a few numbers each, of which two near-duplicates share at least one: MinHash with banding.

A row is the smallest of a text's shingles under one random order of all shingles. Two texts agree in a row with the
probability of their Jaccard similarity s, the share of shingles that they have in common. Rows are joined to bands, and
texts that agree in all rows of a band are candidates: cleaning/near_duplicates.py compares those themselves.
Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", chapter 3.
"""

import dataclasses

import numpy as np

from cleaning.settings import knob
from cleaning.shingles import BASE, mixed, shingle_hashes

FOUND = 0.995  # chance that a pair exactly at the threshold becomes a candidate
MAX_BANDS = 24  # 8 bytes each: 192 per document
MAX_ROWS = 32
SEED = 1
TOGETHER = 2000  # texts whose rows are Python numbers at a time: 6 kB each
LOWEST = 0.2  # 24 bands of one row find it; below, texts have little in common but their language


@dataclasses.dataclass
class NearDuplicates:
    """Which texts are near-duplicates."""

    similarity: float = knob(0.8, "texts with this share of common runs of characters (Jaccard) are near-duplicates")
    shingle: int = knob(5, "characters in a run; more than 5 suits languages with few letters and long texts")


def check_near_duplicates(settings):
    """Raises ValueError for a setting out of range."""
    if not LOWEST <= settings.similarity <= 1:
        raise ValueError(
            f"similarity is {settings.similarity}; it must be from {LOWEST} to 1, and 0.8 is usual for near-duplicates"
        )
    if not 1 <= settings.shingle <= 64:
        raise ValueError(f"shingle is {settings.shingle}; it must be from 1 to 64 characters, and 5 is usual")


def chance_found(similarity, bands, rows):
    """The S-curve: probability that two texts of Jaccard similarity s agree in a whole band, 1 - (1 - s^rows)^bands.

    All rows of one band agree with probability s^rows, so no band agrees with (1 - s^rows)^bands.
    Source: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.2.
    """
    return 1 - (1 - similarity**rows) ** bands


def bands_and_rows(threshold):
    """(bands, rows) that find a pair at the threshold with a chance of at least FOUND.

    Of all such choices with at most MAX_BANDS bands the one with the most rows: it has the steepest curve, thus the
    fewest candidates in vain. At 0.8 these are 23 bands of 7 rows: a pair at 0.5 is looked at with a chance of 17 %,
    one at 0.1 with 2 in a million.
    """
    rows = max(r for r in range(1, MAX_ROWS + 1) if chance_found(threshold, MAX_BANDS, r) >= FOUND)
    bands = min(b for b in range(1, MAX_BANDS + 1) if chance_found(threshold, b, rows) >= FOUND)
    return bands, rows


def band_keys(texts, settings):
    """One number per text and band; the same for the same text in every process and on every machine.

    Args:
        texts: list of N str, a few megabytes together.
        settings: NearDuplicates.
    Returns:
        (N, bands) uint64 in Fortran order, which np.save keeps: a memory-mapped file is read one band at a time.
        0 stands for nothing to compare, and for nothing else.
    Raises:
        ImportError: rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ImportError("finding near-duplicates needs rensa: pip install -r requirements-data.txt") from error
    bands, rows = bands_and_rows(settings.similarity)
    hashes, starts = shingle_hashes(texts, settings.shingle)
    keys = np.zeros((len(texts), bands), dtype=np.uint64, order="F")
    for first in range(0, len(texts), TOGETHER):
        ends = starts[first : first + TOGETHER + 1]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes[ends[0] : ends[-1]], (ends - ends[0]).astype(np.uint64), bands * rows, SEED
        )
        smallest = np.array(matrix.to_rows(), dtype=np.uint64).reshape(-1, bands, rows)
        own = keys[first : first + TOGETHER]
        for row in range(rows):
            own[:] = mixed(own * BASE + smallest[:, :, row] + np.uint64(1))
    keys[keys == 0] = 1
    keys[np.diff(starts) == 0] = 0
    return keys
