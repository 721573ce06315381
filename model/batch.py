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
        units: scored positions, what a sum of losses is divided by.
        tokens: positions that hold a real token.
        real_rows: rows that score anything; fillers do not.

    The counts are made where the batch is, in a worker process: nothing waits for them, least of all a GPU.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    docs: torch.Tensor
    rows: list
    units: int
    tokens: int
    real_rows: int

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
        units: pairs, what a sum of preference losses is divided by.
        reference: (2, B x M) summed log-probs of the answers under the reference model, nats; 0 if there is none.
        pairs: (N,) places of the pairs among B x M; M is the most pairs that any row holds.
    """

    reference: torch.Tensor
    pairs: torch.Tensor


def collate(samples):
    """Samples → a Batch. Its labels are theirs shifted by one, where document and label belong together."""
    ids, labels, docs = rows_of(samples)
    return Batch(ids, labels, docs, [s.row for s in samples], int((labels != IGNORE).sum()), *filled(labels, docs))


def filled(labels, docs):
    """Of labels and docs (B, T): how many positions hold a real token, and how many rows score anything."""
    return int((docs >= 0).sum()), int((labels != IGNORE).any(1).sum())


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
    pairs = pairs.flatten().nonzero().squeeze(1)
    rows = [s.row for s in chosen]
    ids, labels, docs = rows_of([*chosen, *rejected])
    return PairBatch(ids, labels, docs, rows, len(pairs), *filled(labels, docs), reference.flatten(1), pairs)
