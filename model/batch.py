"""What the model is trained on: one Batch of rows."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from model.labels import IGNORE

FILLER = -1  # the row index that stands for an unscored row: it keeps batch shapes equal at the end of an epoch


class Sample(NamedTuple):
    """One row of a data set.

    Attributes:
        row: its number, FILLER for one that is all padding.
        ids, docs: (T + 1,) int64 ids and document numbers within the row; docs -1 is padding.
        labels: (T + 1,) int64, what is to be predicted in the place of each id, mostly the id itself; IGNORE: nothing.
    """

    row: int
    ids: np.ndarray
    docs: np.ndarray
    labels: np.ndarray


@dataclass
class Batch:
    """B rows of T positions.

    Attributes:
        ids: (B, T) int64 input ids.
        labels: (B, T) int64, what is to follow, IGNORE where nothing is scored.
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
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self):
        """Called by DataLoader when the device is a GPU."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change):
        values = [getattr(self, f.name) for f in fields(self)]
        return type(self)(*(change(v) if torch.is_tensor(v) else v for v in values))


@dataclass
class PairBatch(Batch):
    """B pair rows as 2 B rows: the chosen sides first, then the rejected ones in the same order.

    Document d of row b and document d of row B + b answer the same question, and each pair has its number d in `pairs`.

    Attributes:
        reference: (2, B x M) summed log-probs of the answers under the reference model, nats; 0 if there is none.
        pairs: (B x M,) bool, True where there is a pair; M is the most pairs that any row holds.
    """

    reference: torch.Tensor
    pairs: torch.Tensor

    @property
    def units(self):
        """Pairs: what a sum of preference losses is divided by."""
        return int(self.pairs.sum())


def collate(samples):
    """Samples → a Batch. Its labels are theirs shifted by one, where document and label belong together."""
    return Batch(*rows_of(samples), [s.row for s in samples])


def rows_of(samples):
    """Samples → ids, labels, docs, (B, T) int64 each."""
    ids, docs, labels = (
        torch.from_numpy(np.stack([getattr(s, name) for s in samples])) for name in ("ids", "docs", "labels")
    )
    # The first id of a document is never a target: nothing before it belongs to it.
    inside = (docs[:, 1:] == docs[:, :-1]) & (docs[:, 1:] >= 0)
    labels = labels[:, 1:].masked_fill(~inside, IGNORE)
    return ids[:, :-1].contiguous(), labels, docs[:, :-1].contiguous()


def collate_pairs(samples):
    """(chosen Sample, rejected Sample, reference (2, M) float32, number of pairs) each → a PairBatch."""
    chosen, rejected, reference, counts = zip(*samples)
    reference = torch.from_numpy(np.stack(reference, axis=1))  # (2, B, M)
    pairs = torch.arange(reference.shape[2]) < torch.tensor(counts)[:, None]  # (B, M)
    rows = [s.row for s in chosen]
    return PairBatch(*rows_of([*chosen, *rejected]), rows, reference.flatten(1), pairs.flatten())
