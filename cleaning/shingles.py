"""What two texts are compared by: the set of their runs of n characters (shingles), as hashes.

Compared are letters, digits and signs such as + and =, without whitespace, punctuation and control characters,
full-width forms as plain ones and capitals as small letters: a page that was copied with other line breaks, other
commas or narrower digits is still the same page. Nothing is known of words, so any language is compared, Chinese too.
"""

import functools
import sys
import unicodedata

import numpy as np

ASSIGNED = (*range(0x30000), *range(0xE0000, 0xE1000))  # code points with something to fold or to leave out are here
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no product modulo 2^64 loses anything


@functools.cache
def folded():
    """(0x110000,) uint32: the code point that each one is compared as; 0 for those that are left out.

    Unicode's form NFKC and lower case, where each of them is a single character, so that a table can hold them.
    """
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    for code in ASSIGNED:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind[0] in "PZ" or kind in ("Cc", "Cf"):
            table[code] = 0
            continue
        for form in (unicodedata.normalize("NFKC", character), character):
            if len(form) == 1 and len(form.lower()) == 1:
                table[code] = ord(form.lower())
                break
    return table


def mixed(keys):
    """uint64 → uint64, one to one, each bit of the result depending on all bits (splitmix64's last step)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def shingle_hashes(texts, n):
    """The runs of n compared characters of each text, as they come, repeated ones too.

    A text of fewer than n compared characters has one run, all of it, which equals no run of a longer text; a text
    with none, such as '……', has no run.

    Args:
        texts: list of N str.
    Returns:
        hashes: uint64 of all texts end to end; two different runs agree once in 2^64.
        starts: (N + 1,) int64; text i has hashes[starts[i] : starts[i + 1]].
    """
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    codes = folded()[codes]
    ends = np.cumsum([0, *map(len, texts)])
    kept = np.concatenate([[0], np.cumsum(codes > 0)])[ends]  # compared characters before each text
    lengths, codes = np.diff(kept), codes[codes > 0]
    counts = np.where(lengths > 0, np.maximum(lengths - n + 1, 1), 0)
    # n - 1 zeros behind every text keep runs from reaching into the next one
    number, place = np.repeat(np.arange(len(texts)), lengths), np.arange(len(codes))
    padded = np.zeros(len(codes) + len(texts) * (n - 1), np.uint64)
    padded[place + number * (n - 1)] = codes
    runs = np.zeros(max(0, len(padded) - n + 1), np.uint64)
    for i in range(n):
        runs = runs * BASE + padded[i : i + len(runs)]
    first = place[place - kept[number] < counts[number]]
    return mixed(runs[first + number[first] * (n - 1)]), np.concatenate([[0], np.cumsum(counts)])


def shingle_set(text, n):
    """The different runs of one text: sorted uint64."""
    return np.unique(shingle_hashes([text], n)[0])


def jaccard(a, b):
    """Size of the intersection of two sorted sets over that of their union; 0.0 where one is empty."""
    if not len(a) or not len(b):
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
