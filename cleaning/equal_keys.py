"""Keys that occur more than once among any number of keys, in a bounded amount of memory.

Keys are uint64 hashes in parts: a list of (n_i,) arrays, or one that opens them as they are asked for; np.load(file,
mmap_mode="r") is such an array. Where the keys do not fit into the memory allowed, they are read several times, each
time looking at another share of them; a key is always in the same share, wherever it stands.
"""

import numpy as np

from cleaning.normalize import mark_new

SPREAD = np.uint64(0xD6E8FEB86659FD93)  # odd: keys that lie close together fall into different shares too
BLOCK = 1 << 18  # keys looked at together: 2 MiB, and a few times that while they are
BYTES = 48  # per different key of a share, while runs are merged


def passes_for(parts, memory):
    """How often the keys are read so that a share of them takes `memory` bytes at most."""
    return max(1, -(-sum(len(part) for part in parts) * BYTES // memory))


def blocks_of(parts, passes, share):
    """Yields (part number, positions in it, keys) of the keys of this share, in order, as blocks that are not empty."""
    for number, part in enumerate(parts):
        for start in range(0, len(part), BLOCK):
            keys = np.array(part[start : start + BLOCK], dtype=np.uint64)
            chosen = np.arange(len(keys))
            if passes > 1:
                chosen = np.flatnonzero((keys * SPREAD >> np.uint64(32)) % np.uint64(passes) == share)
                keys = keys[chosen]
            if len(keys):
                yield number, chosen + start, keys


def first_occurrences(parts, memory=64 << 20):
    """Which keys are met for the first time, in the order of the parts.

    Args:
        parts: sequence of (n_i,) uint64 arrays; read as many times as the memory demands.
        memory: bytes that may be used beside the answer and one block.
    Returns:
        list of (n_i,) bool arrays, True at the first occurrence of a key: 1 byte per key.
    """
    first, passes = [np.zeros(len(part), dtype=bool) for part in parts], passes_for(parts, memory)
    for share in range(passes):
        seen = []
        for number, positions, keys in blocks_of(parts, passes, share):
            first[number][positions] = mark_new(keys, seen)
    return first


def counted(runs):
    """list of (sorted different keys, their counts) → one such pair."""
    keys, counts = (np.concatenate(column) for column in zip(*runs))
    order = np.argsort(keys, kind="stable")  # which merges sorted runs instead of sorting anew
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(counts, starts)


def repeated_of_share(parts, times, passes, share):
    """Sorted uint64 array of the keys of this share that occur at least `times` times."""
    runs = []  # their number stays below log2 of the keys, each more than twice as long as the next
    for _, _, keys in blocks_of(parts, passes, share):
        runs.append(np.unique(keys, return_counts=True))
        while len(runs) > 1 and len(runs[-2][0]) <= 2 * len(runs[-1][0]):
            runs.append(counted([runs.pop(), runs.pop()]))
    if not runs:
        return np.zeros(0, dtype=np.uint64)
    keys, counts = counted(runs)
    return keys[counts >= times]


def repeated_keys(parts, times=2, memory=64 << 20):
    """Sorted uint64 array of every key that occurs at least `times` times; the answer itself takes 8 bytes for each.

    The memory needed beside it depends on how many different keys there are, not on how often they occur.
    """
    passes = passes_for(parts, memory)
    return np.sort(np.concatenate([repeated_of_share(parts, times, passes, share) for share in range(passes)]))


def members(wanted):
    """A function: uint64 keys → (positions of those that are in `wanted`, their positions there).

    Args:
        wanted: sorted uint64 array of different keys, not empty.
    """
    # most keys are told by one look into a table of 8 to 16 bytes per wanted key, a search takes 20 times as long
    shift = np.uint64(64 - (8 * len(wanted)).bit_length())
    may_be = np.zeros(1 << (64 - int(shift)), dtype=bool)
    may_be[wanted * SPREAD >> shift] = True

    def find(keys):
        places = np.flatnonzero(may_be[keys * SPREAD >> shift])
        at = np.minimum(np.searchsorted(wanted, keys[places]), len(wanted) - 1)
        found = wanted[at] == keys[places]
        return places[found], at[found]

    return find


def repeated_places(parts, memory=64 << 20):
    """Where the keys stand that occur more than once; 0 stands for no key and is passed over.

    Yields, for each share of the keys:
        places: (m,) int64, counted through all parts from 0.
        groups: (m,) int64, equal where the keys are equal, from 0 without a gap.
    """
    passes, starts = passes_for(parts, memory), np.cumsum([0, *map(len, parts)])
    for share in range(passes):
        wanted = repeated_of_share(parts, 2, passes, share)
        wanted = wanted[wanted > 0]
        if not len(wanted):
            continue
        places, groups, find = [], [], members(wanted)
        for number, positions, keys in blocks_of(parts, passes, share):
            found, at = find(keys)
            places.append(starts[number] + positions[found])
            groups.append(at)
        yield np.concatenate(places), np.concatenate(groups)
