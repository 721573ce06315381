"""The order of rows: every row once per epoch, at any world size, and the same global steps however they are split."""

import itertools

import numpy as np
import pytest

from model.batch import FILLER
from trainer.sampler import OrderWithTail, RowOrder, StepSampler

ROWS = np.arange(100, 203)  # 103 rows: no batch size divides it


def rows_of(order, steps):
    return [i for s in steps for m in order.micro_batches(s) for i in m if i != FILLER]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (4, 3), (16, 2)])
def test_every_row_is_seen_exactly_once_per_epoch(world, batch, accumulation):
    ranks = [RowOrder(ROWS, batch, accumulation, 7, rank, world) for rank in range(world)]
    per_epoch = ranks[0].steps_per_epoch
    epochs = [sorted(i for o in ranks for i in rows_of(o, range(e * per_epoch, (e + 1) * per_epoch))) for e in (0, 1)]
    assert epochs == [ROWS.tolist(), ROWS.tolist()]


def test_the_order_differs_between_epochs_and_seeds():
    order = RowOrder(ROWS, 8, 1, 7)
    n = order.steps_per_epoch
    first, second = rows_of(order, range(n)), rows_of(order, range(n, 2 * n))
    assert first != second and first != rows_of(RowOrder(ROWS, 8, 1, 8), range(n))
    assert first == rows_of(RowOrder(ROWS, 8, 1, 7), range(n))


def test_a_global_step_has_the_same_rows_however_it_is_split():
    splits = [(32, 1, 1), (4, 8, 1), (16, 1, 2), (8, 2, 2)]
    steps = [
        [sorted(i for r in range(w) for i in rows_of(RowOrder(ROWS, b, a, 7, r, w), [s])) for s in range(8)]
        for b, a, w in splits
    ]
    assert all(s == steps[0] for s in steps)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_makes_the_same_number_of_full_forward_passes(world):
    orders = [RowOrder(ROWS, 4, 3, 7, rank, world) for rank in range(world)]
    for step in range(2 * orders[0].steps_per_epoch):
        micro = [list(o.micro_batches(step)) for o in orders]
        assert {len(m) for m in micro} == {orders[0].passes(step)}
        assert {len(b) for m in micro for b in m} == {4}


def test_starting_at_a_step_gives_what_a_whole_run_gives_there():
    whole = list(StepSampler(RowOrder(ROWS, 4, 3, 7), 0, 30))
    tail = list(StepSampler(RowOrder(ROWS, 4, 3, 7), 11, 30))
    assert whole[-len(tail) :] == tail
    assert len(StepSampler(RowOrder(ROWS, 4, 3, 7), 11, 30)) == len(tail)
    order = RowOrder(ROWS, 4, 3, 7)
    assert [len(list(order.micro_batches(s))) for s in range(30)] == [order.passes(s) for s in range(30)]
    assert list(itertools.chain.from_iterable(order.micro_batches(s) for s in range(30))) == whole


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows to train on"):
        RowOrder([], 4, 1, 7)


@pytest.mark.parametrize("world", [1, 3])
def test_without_shuffling_rows_come_as_they_are_given_in_every_epoch(world):
    ranks = [RowOrder(ROWS, 4, 2, 7, rank, world, shuffle=False) for rank in range(world)]
    n, width = ranks[0].steps_per_epoch, ranks[0].rows_per_step
    steps = [sorted(i for o in ranks for i in rows_of(o, [s])) for s in range(2 * n)]
    assert steps == 2 * [ROWS[at : at + width].tolist() for at in range(0, len(ROWS), width)]


def test_a_run_with_a_tail_reads_one_set_before_the_switch_and_the_other_from_there_on():
    tail = np.arange(500, 520)
    order = OrderWithTail(RowOrder(ROWS, 4, 2, 7), RowOrder(tail, 4, 2, 8), switch=20)
    assert rows_of(order, range(20)) == rows_of(RowOrder(ROWS, 4, 2, 7), range(20))
    assert sorted(rows_of(order, range(20, 23))) == tail.tolist() and set(rows_of(order, range(20, 40))) == set(tail)
    sampler = StepSampler(order, 18, 24)
    assert len(sampler) == len(list(sampler)) == sum(order.passes(s) for s in range(18, 24))
    assert (order.passes(12), order.passes(22)) == (2, 1)  # where an epoch of either ends
