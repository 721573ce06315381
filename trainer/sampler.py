"""Which rows go into which step, on which rank: a pure function of (seed, step), so nothing about it needs saving."""

import numpy as np

from model.batch import FILLER


class RowOrder:
    """The order of rows over a whole run.

    Every epoch is a new permutation, or without `shuffle` the rows as they are given, in which each row is seen exactly
    once, at any world size. A global step takes the next `batch x accumulation x world` rows; the last step of an epoch
    takes what is left, in as few forward passes as hold it. A forward pass that is short of rows is filled with FILLER,
    which scores nothing, so shapes never change.

    Args:
        rows: (n,) row numbers to train on.
        batch, accumulation: rows per forward pass and forward passes per step, on each rank.
        seed, rank, world, shuffle: as they say.
    """

    def __init__(self, rows, batch, accumulation, seed, rank=0, world=1, shuffle=True):
        self.rows, self.batch, self.accumulation = np.asarray(rows), batch, accumulation
        self.seed, self.rank, self.world, self.shuffle = seed, rank, world, shuffle
        if len(self.rows) == 0:
            raise ValueError("there are no rows to train on; give more data, or a smaller --val_fraction")
        self.rows_per_step = batch * accumulation * world
        self.steps_per_epoch = -(-len(self.rows) // self.rows_per_step)
        self._epoch, self._permutation = None, None

    def _rows_of_step(self, step):
        epoch, position = divmod(step, self.steps_per_epoch)
        if not self.shuffle:
            return self.rows[position * self.rows_per_step : (position + 1) * self.rows_per_step]
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


class OrderWithTail:
    """The rows of one RowOrder up to a step, those of another from there on: a run that ends on other data.

    Args:
        main, tail: RowOrders of the same batch, accumulation, rank and world.
        switch: the first step of the tail.
    """

    def __init__(self, main, tail, switch):
        self.main, self.tail, self.switch = main, tail, switch
        self.rows_per_step, self.steps_per_epoch = main.rows_per_step, main.steps_per_epoch

    def _at(self, step):
        return (self.main, step) if step < self.switch else (self.tail, step - self.switch)

    def passes(self, step):
        """See RowOrder.passes."""
        order, own = self._at(step)
        return order.passes(own)

    def micro_batches(self, step):
        """See RowOrder.micro_batches."""
        order, own = self._at(step)
        return order.micro_batches(own)


class StepSampler:
    """RowOrder's micro-batches from one step to another, as the batch_sampler of a DataLoader.

    Args:
        order: a RowOrder or OrderWithTail.
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
