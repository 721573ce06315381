"""Documents of any length → rows of T + 1 ids, nearly without padding.

A document longer than a row is cut into pieces that overlap by one id, so that each id after the first is a target
exactly once. Pieces are then put together best-fit-decreasing: the longest piece left opens a row, and the longest that
still fits follows until nothing does. So rows start where documents start, unless a document is longer than a row.
Source: Ding et al. 2024, arXiv:2404.10830 (best-fit packing).
"""

from bisect import bisect_right

import numpy as np

MANY = 1 << 18  # pieces packed together: bounds memory, and is plenty for full rows
FEW = 1 << 11  # where rows are to follow the order of the documents


def cut(starts, lengths, capacity):
    """Documents → pieces of at most `capacity` ids.

    Args:
        starts, lengths: (n,) int64, where each document begins and how many ids it has.
        capacity: T + 1, at least 2.
    Returns:
        piece starts and piece lengths, in document order; neighbours within a document share one id.
    """
    stride = capacity - 1
    counts = np.maximum(1, -(-(lengths - 1) // stride))  # pieces per document; a document of one id is one piece
    document = np.repeat(np.arange(len(starts)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, … within its document
    offset = number * stride
    return starts[document] + offset, np.minimum(lengths[document] - offset, capacity)


def best_fit(lengths, capacity):
    """Which row each piece goes to.

    Args:
        lengths: (n,) ints in [1, capacity].
        capacity: ids a row can hold.
    Returns:
        (order, rows): piece indices row by row, and the row number of each entry of `order`; every piece occurs once.
    """
    by_length = np.argsort(lengths, kind="stable")
    sizes, first, count = np.unique(lengths[by_length], return_index=True, return_counts=True)
    waiting = {int(s): by_length[f : f + c].tolist()[::-1] for s, f, c in zip(sizes, first, count)}
    left = sizes.tolist()  # lengths that still have pieces, ascending
    order, rows, row = [], [], 0
    while left:
        room = capacity
        while left and left[0] <= room:
            at = bisect_right(left, room) - 1
            size = left[at]
            order.append(waiting[size].pop())
            rows.append(row)
            room -= size
            if not waiting[size]:
                del left[at]
        row += 1
    return np.array(order, dtype=np.int64), np.array(rows, dtype=np.int64)


def pack(starts, lengths, capacity, in_order=False):
    """Documents → a table of rows, many pieces at a time, or few, so that rows follow the order of the documents.

    Yields:
        (piece_starts, piece_lengths, row_sizes): pieces in row order, and how many pieces each row has.
    """
    piece_starts, piece_lengths = cut(np.asarray(starts, np.int64), np.asarray(lengths, np.int64), capacity)
    window = FEW if in_order else MANY
    for at in range(0, len(piece_starts), window):
        own = slice(at, at + window)
        order, rows = best_fit(piece_lengths[own], capacity)
        if in_order:  # best fit takes the longest first, which is an order too; among a few rows there is to be none
            place = np.random.default_rng(at).permutation(rows[-1] + 1)[rows]
            order, rows = order[np.argsort(place, kind="stable")], np.sort(place)
        yield piece_starts[own][order], piece_lengths[own][order], np.bincount(rows)
