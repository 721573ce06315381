"""What the model is trained on: one Batch of rows."""

from dataclasses import dataclass

import numpy as np
import torch

from model.cross_entropy import IGNORE

FILLER = -1  # the row index that stands for an unscored row: it keeps batch shapes equal at the end of an epoch


@dataclass
class Batch:
    """B rows of T positions.

    Attributes:
        ids: (B, T) int64 input ids.
        labels: (B, T) int64, the id that follows, IGNORE where nothing is scored.
        docs: (B, T) int64 document number within the row, -1 for padding.
        rows: row numbers in the data set, so that an error can name the data.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    docs: torch.Tensor
    rows: list

    @property
    def units(self):
        """Scored positions: what a sum of losses is divided by."""
        return int((self.labels != IGNORE).sum())

    @property
    def tokens(self):
        """Positions that hold a real token."""
        return int((self.docs >= 0).sum())

    @property
    def real_rows(self):
        """Rows that score anything; fillers do not."""
        return int((self.labels != IGNORE).any(1).sum())

    def to(self, device):
        """The same batch on another device; the copy overlaps with computation where memory is pinned."""
        move = lambda x: x.to(device, non_blocking=True)  # noqa: E731
        return Batch(move(self.ids), move(self.labels), move(self.docs), self.rows)

    def pin_memory(self):
        """Called by DataLoader when the device is a GPU."""
        return Batch(self.ids.pin_memory(), self.labels.pin_memory(), self.docs.pin_memory(), self.rows)


def collate(samples):
    """Rows of T + 1 ids → a Batch.

    Args:
        samples: (row number, ids (T + 1,), docs (T + 1,)) each; docs -1 is padding.
    Labels are the ids shifted by one. The first id of a document is never a target: nothing before it belongs to it.
    """
    ids = torch.from_numpy(np.stack([s[1] for s in samples]).astype(np.int64))  # (B, T + 1)
    docs = torch.from_numpy(np.stack([s[2] for s in samples]).astype(np.int64))
    inside = (docs[:, 1:] == docs[:, :-1]) & (docs[:, 1:] >= 0)
    labels = ids[:, 1:].masked_fill(~inside, IGNORE)
    return Batch(ids[:, :-1].contiguous(), labels, docs[:, :-1].contiguous(), [s[0] for s in samples])
