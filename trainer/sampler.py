"""Which rows go into which step, on which rank: a pure function of (seed, step), so nothing about it needs saving."""

import numpy as np

from model.batch import FILLER


class RowOrder:
    """The order of rows over a whole run.

    Every epoch is a new permutation in which each row is seen exactly once, at any world size. A global step takes the
    next `batch x accumulation x world` rows; the last step of an epoch takes what is left, in as few forward passes as
    hold it. A forward pass that is short of rows is filled with FILLER, which scores nothing, so shapes never change.

    Args:
        rows: (n,) row numbers to train on.
        batch, accumulation: rows per forward pass and forward passes per step, on each rank.
        seed, rank, world: as they say.
    """

    def __init__(self, rows, batch, accumulation, seed, rank=0, world=1):
        self.rows, self.batch, self.accumulation = np.asarray(rows), batch, accumulation
        self.seed, self.rank, self.world = seed, rank, world
        if len(self.rows) == 0:
            raise ValueError("there are no rows to train on; give more data, or a smaller --val_fraction")
        self.rows_per_step = batch * accumulation * world
        self.steps_per_epoch = -(-len(self.rows) // self.rows_per_step)
        self._epoch, self._permutation = None, None

    def _rows_of_step(self, step):
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            self._epoch = epoch
        return self.rows[self._permutation[position * self.rows_per_step : (position + 1) * self.rows_per_step]]

    def passes(self, step):
        """Forward passes of a step: `accumulation`, or fewer at the end of an epoch; the same on every rank."""
        left = len(self.rows) - step % self.steps_per_epoch * self.rows_per_step
        left = min(left, self.rows_per_step)
        return -(-left // (self.batch * self.world))

    def micro_batches(self, step):
        """This rank's row numbers for each forward pass of a step: lists of exactly `batch` entries."""
        rows, width = self._rows_of_step(step), self.batch * self.world
        for at in range(0, len(rows), width):
            mine = rows[at : at + width][self.rank :: self.world].tolist()
            yield mine + [FILLER] * (self.batch - len(mine))


class StepSampler:
    """RowOrder's micro-batches from one step to another, as the batch_sampler of a DataLoader.

    Args:
        order: a RowOrder.
        start, stop: the first step, and the one behind the last.
        skip: steps whose rows are left out.
    """

    def __init__(self, order, start, stop, skip=()):
        self.order, self.start, self.stop, self.skip = order, start, stop, frozenset(skip)

    def __iter__(self):
        for step in self.steps():
            yield from self.order.micro_batches(step)

    def __len__(self):
        return sum(self.order.passes(step) for step in self.steps())

    def steps(self):
        """The numbers of the steps whose rows come."""
        return (step for step in range(self.start, self.stop) if step not in self.skip)
