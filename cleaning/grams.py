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
    return stripped(unicodedata.normalize("NFKC", stripped(text)).lower())


def rolling_hashes(codes, n):
    """A hash of every n code points in a row: (len(codes) - n + 1,) uint64, polynomials in BASE modulo 2^64.

    Put together from runs of 1, 2, 4, … characters: 5 products a character for n = 13, where one by one takes 12.
    """

    def joined(first, first_size, second, second_size):
        count = max(0, len(codes) - first_size - second_size + 1)
        return first[:count] * np.uint64(pow(BASE, second_size, 1 << 64)) + second[first_size : first_size + count]

    run, size = codes * np.uint64(BASE), 1
    whole, whole_size = None, 0
    while size <= n:
        if n & size:
            whole = run if whole is None else joined(whole, whole_size, run, size)
            whole_size += size
        if 2 * size <= n:
            run = joined(run, size, run, size)
        size *= 2
    return whole


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
