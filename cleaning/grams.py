"""Which runs of n characters of some wanted texts stand in other texts: fast, and compared character by character.

Compared are the characters that are left without whitespace, punctuation and control characters, in Unicode's form NFKC
(full-width letters become plain ones) and lower case.
"""

import functools
import sys
import unicodedata

import numpy as np

BASE = 0x9E3779B97F4A7C15  # odd, so that no product modulo 2^64 loses anything


@functools.cache
def kept_characters():
    """(0x110000,) bool: False for punctuation (P), separators (Z), control and format characters (Cc, Cf)."""
    kinds = (unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1))
    return np.array([kind[0] not in "PZ" and kind not in ("Cc", "Cf") for kind in kinds])


def codes_of(text):
    """str → its code points, (n,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def stripped(text):
    """`text` without the characters that are not compared."""
    codes = codes_of(text)
    return codes[kept_characters()[codes]].tobytes().decode("utf-32-le")


def normalised(text):
    """What is compared of a text; see the top of this file."""
    # stripped first: without full-width punctuation most text is in NFKC already, and is so eight times as fast
    plain = stripped(text)
    composed = unicodedata.normalize("NFKC", plain)
    return plain.lower() if composed is plain else stripped(composed.lower())


@functools.lru_cache(maxsize=8)
def powers(size):
    """BASE and its inverse modulo 2^64, to the powers 0 … size - 1: two (size,) uint64."""
    up = np.full((2, size), [[BASE], [pow(BASE, -1, 1 << 64)]], np.uint64)
    up[:, 0] = 1
    return np.multiply.accumulate(up, axis=1)


def rolling_hashes(codes, n):
    """A hash of every n code points in a row: (len(codes) - n + 1,) uint64, polynomials in BASE modulo 2^64.

    The one that begins at i is the sum of codes[i + k] * BASE^(n - k). All are differences of one running sum, whose
    terms are codes[j] / BASE^j: four passes over a text, whatever n is.
    """
    count = len(codes) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    up, down = powers(1 << max(12, (len(codes) + 1).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * down[: len(codes)], out=sums[1:])
    return (sums[n:] - sums[:count]) * up[n : n + count]


class Grams:
    """Finds runs of n characters in long texts.

    Args:
        wanted: set of str, each of n characters.
    """

    def __init__(self, n, wanted):
        self.n, self.wanted = n, wanted
        self.shift = np.uint64(64 - max(16, (64 * len(wanted)).bit_length()))
        self.may_be = np.zeros(1 << (64 - int(self.shift)), dtype=bool)  # at most 1 hash in 64 passes by chance
        self.may_be[self._slots(codes_of("".join(wanted)))[::n]] = True

    def _slots(self, codes):
        return rolling_hashes(codes, self.n) >> self.shift

    def find(self, text):
        """Yields (position, run) for every run in `text` that is wanted, compared character by character."""
        for at in np.flatnonzero(self.may_be[self._slots(codes_of(text))]).tolist():
            run = text[at : at + self.n]
            if run in self.wanted:
                yield at, run


def runs_of(text, n):
    """All runs of n characters of a normalised text, in order, or the whole of a shorter one; none of an empty one."""
    return [text[i : i + n] for i in range(max(1, len(text) - n + 1))] if text else []


def finders(runs):
    """A list of Grams, one for each length in the set of runs."""
    return [Grams(n, {run for run in runs if len(run) == n}) for n in sorted({len(run) for run in runs})]
