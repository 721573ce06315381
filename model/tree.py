"""Several continuations of one text in one row: the text is computed once, however many ways it may go on.

A row is a trunk and then its branches, end to end. A branch sees the trunk and itself, never its sisters, and its
positions go on where the trunk's end; so its logits are those it would have behind the trunk alone.
"""

from typing import NamedTuple

import torch


class Tree(NamedTuple):
    """Who sees whom in rows of trunks and branches.

    Attributes:
        branches: (B, T) 0 on the trunk, 1, 2, … on its branches, -1 on padding.
        positions: (B, T) of each id within its text; a branch counts on from the trunk's end.
        longest: 1 + the largest position.
    """

    branches: torch.Tensor
    positions: torch.Tensor
    longest: int

    def mask(self, start=0):
        """(B, 1, T, start + T) bool, True where looking is allowed; `start` cached positions are seen by all."""
        B, T = self.branches.shape
        own = self.branches[:, :, None] == self.branches[:, None, :]  # (B, T, T)
        trunk = (self.branches == 0)[:, None, :]
        seen = (own | trunk) & torch.ones(T, T, dtype=torch.bool, device=own.device).tril()
        return torch.cat([seen.new_ones(B, T, start), seen], -1).unsqueeze(1)

    def to(self, device):
        """The same on another device."""
        return Tree(self.branches.to(device), self.positions.to(device), self.longest)


def lay_out(trunks, branches, padding_id):
    """Trunks and what follows each → ids (B, T) and their Tree, padded on the right.

    Args:
        trunks: B lists of at least one id.
        branches: B lists of lists of ids; an empty branch takes no room.
        padding_id: what fills the end of short rows; nothing sees it.
    """
    rows = [[*trunk, *(i for branch in own for i in branch)] for trunk, own in zip(trunks, branches, strict=True)]
    T = max(len(row) for row in rows)
    ids = torch.full((len(rows), T), padding_id)
    numbers, positions = torch.full((len(rows), T), -1), torch.zeros(len(rows), T, dtype=torch.int64)
    for b, (row, trunk, own) in enumerate(zip(rows, trunks, branches)):
        ids[b, : len(row)] = torch.tensor(row)
        parts = [(0, 0, len(trunk)), *((n, len(trunk), len(branch)) for n, branch in enumerate(own, 1))]
        numbers[b, : len(row)] = torch.tensor([n for n, _, size in parts for _ in range(size)])
        positions[b, : len(row)] = torch.tensor([first + i for _, first, size in parts for i in range(size)])
    return ids, Tree(numbers, positions, int(positions.max()) + 1)
