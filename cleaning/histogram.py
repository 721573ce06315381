"""How long things are, in bounded memory: a histogram whose buckets grow with the length."""

import numpy as np

EXACT = 128  # lengths below have a bucket each
HALF = EXACT // 2  # buckets per doubling above: a bucket is at most 1/64 as wide as the lengths in it
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
ERROR = 1 / EXACT  # of a percentile, relative: half a bucket, 0.8 %; none below 128


def buckets_of(lengths):
    """Lengths >= 0 (N,) → the buckets they fall into (N,): 0, 1, …, 127, then 64 per doubling."""
    lengths = np.asarray(lengths, dtype=np.int64)
    shift = np.maximum(np.frexp(lengths.astype(np.float64))[1] - 7, 0)  # bits beyond the seven of 127
    return HALF * shift + (lengths >> shift)


def bounds_of(bucket):
    """(lowest, highest) length in a bucket."""
    shift = max(0, bucket // HALF - 1)
    low = (bucket - HALF * shift) << shift
    return low, low + (1 << shift) - 1


class Histogram:
    """Counts of lengths; two are added with `merge`, in any order and with the same result."""

    def __init__(self):
        self.counts = np.zeros(0, dtype=np.int64)
        self.total, self.low, self.high = 0, None, None

    def add(self, lengths):
        """Counts lengths (N,)."""
        if len(lengths) == 0:
            return
        self._add_counts(np.bincount(buckets_of(lengths)))
        self.total += int(np.sum(lengths, dtype=np.int64))
        self._widen(int(np.min(lengths)), int(np.max(lengths)))

    def merge(self, other):
        """Adds another histogram to this one."""
        self._add_counts(other.counts)
        self.total += other.total
        if other.low is not None:
            self._widen(other.low, other.high)

    def _add_counts(self, counts):
        if len(counts) > len(self.counts):
            self.counts = np.pad(self.counts, (0, len(counts) - len(self.counts)))
        self.counts[: len(counts)] += counts

    def _widen(self, low, high):
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def percentile(self, q):
        """The length that q % of all do not exceed; right within ERROR, and exactly below 128."""
        n = int(self.counts.sum())
        rank = max(1, -(-n * q // 100))  # the smallest whole number of lengths that are at least q %
        low, high = bounds_of(int(np.searchsorted(np.cumsum(self.counts), rank)))
        return min(max((low + high) / 2, self.low), self.high)

    def doublings(self):
        """[[lowest, highest, count]]: 0, 1, 2-3, 4-7, …, from the shortest length to the longest."""
        groups = {}
        for bucket in np.flatnonzero(self.counts).tolist():
            bits = bounds_of(bucket)[0].bit_length()
            groups[bits] = groups.get(bits, 0) + int(self.counts[bucket])
        if not groups:
            return []
        span = range(min(groups), max(groups) + 1)
        return [[(1 << bits) >> 1, max((1 << bits) - 1, 0), groups.get(bits, 0)] for bits in span]

    def summary(self):
        """{"mean", "shortest", "longest", "median", "percentiles", "histogram"}; None if nothing was counted."""
        n = int(self.counts.sum())
        if not n:
            return None
        return {
            "mean": self.total / n,
            "shortest": self.low,
            "longest": self.high,
            "median": self.percentile(50),
            "percentiles": {str(q): self.percentile(q) for q in PERCENTILES},
            "histogram": self.doublings(),
        }
