"""How likely a model finds texts that follow others: exactly, and with nothing computed twice.

A request is a context and what may follow it. Three things make it fast and change no number by more than rounding:
contexts of like length share a batch; the continuations of one context are branches of one row (model/tree.py); and
the beginning that all requests of a group share (solved examples, a system prompt) is computed once and cached. Only
the positions that predict something meet the vocabulary matrix.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch

from model.kv_cache import common_prefix

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 8192}  # positions per forward; on CPUs more only leaves the caches
FULL_ENOUGH = 0.85  # of the longest row of a batch; much shorter ones wait for the next, unless it is still small
WORTH_SHARING = 16  # ids; a shorter common beginning is computed again with each row


@dataclass
class Request:
    """Ids to score behind a context.

    Attributes:
        context: at least one id, BOS included.
        continuations: lists of ids, each at least one.
        group: requests of one group are likely to begin alike.
    """

    context: list
    continuations: list
    group: str = ""


@dataclass
class Row:
    """A trunk and its branches on their way through the model.

    A trunk's last position predicts the first id of each branch; a branch's last id predicts nothing, and is left out.
    `reads` are (position in the row, id, slot of the result) of every scored id.
    """

    trunk: list
    branches: list
    reads: list

    def length(self):
        """Positions the row takes."""
        return len(self.trunk) + sum(map(len, self.branches))


def make_rows(requests, limit, branching):
    """Requests → ({group: Rows}, number of results); each continuation has one result, in order.

    A context and a continuation that are together longer than limit + 1 ids keep their end, as in lm-eval.
    """
    groups, slot = defaultdict(list), 0
    for request in requests:
        whole = []  # the continuations that fit behind the whole context
        for continuation in request.continuations:
            too_long = len(request.context) + len(continuation) - (limit + 1)
            if too_long > 0:  # the question is nearer to the answer than the examples are
                context = request.context[min(too_long, len(request.context) - 1) :]
                groups[request.group].append(row_of(context, [(continuation[:limit], slot)]))
            else:
                whole.append((continuation, slot))
            slot += 1
        alone = not branching and any(len(c) > 1 for c, _ in whole)
        parts = [[entry] for entry in whole] if alone else [whole] if whole else []
        groups[request.group] += [row_of(request.context, part) for part in parts]
    return groups, slot


def row_of(context, continuations):
    """One Row of a context and [(continuation, slot)]."""
    branches, reads, at = [], [], len(context)
    for continuation, slot in continuations:
        reads.append((len(context) - 1, continuation[0], slot))
        reads += [(at + i, target, slot) for i, target in enumerate(continuation[1:])]
        branches.append(continuation[:-1])
        at += len(continuation) - 1
    return Row(context, branches, reads)


def common_beginning(rows):
    """How many ids all trunks share, the last of each not counted."""
    trunks = [row.trunk for row in rows]
    shared = common_prefix(min(trunks), max(trunks))  # the others lie between these two
    return min(shared, min(map(len, trunks)) - 1)


@torch.inference_mode()
def log_probs(reader, requests, progress=lambda n: None):
    """Summed log-probability of every continuation behind its context.

    Args:
        reader: a Reader (evaluation/reader.py): what a model computes, behind one face.
        requests: Requests.
        progress: called with the number of continuations done.
    Returns:
        (N,) float64 nats, the continuations of all requests in order.
    """
    groups, n = make_rows(requests, reader.limit, reader.branching)
    nats = torch.zeros(n, dtype=torch.float64)
    pool = []  # rows without a common beginning, of all groups
    for rows in groups.values():
        shared = common_beginning(rows) if len(rows) > 1 and reader.branching else 0
        if shared < WORTH_SHARING:
            pool += rows
            continue
        beginning = reader.begin(rows[0].trunk[:shared])
        for row in rows:
            row.trunk = row.trunk[shared:]
            row.reads = [(at - shared, target, slot) for at, target, slot in row.reads]
        score_rows(reader, rows, nats, progress, beginning)
    score_rows(reader, pool, nats, progress)
    return nats


def batches(rows, budget):
    """Rows, the longest first, in runs of at most `budget` positions; a run ends early where padding would grow."""
    batch = []
    for row in sorted(rows, key=lambda r: -r.length()):
        if batch:
            longest, n = batch[0].length(), len(batch)
            padded = row.length() < FULL_ENOUGH * longest and n * longest >= budget / 4
            if padded or (n + 1) * longest > budget:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def score_rows(reader, rows, nats, progress, beginning=None):
    """Adds the log-probabilities of `rows` to `nats`, batch by batch."""
    for batch in batches(rows, BATCH_TOKENS[reader.device.type]):
        places = sorted({(b, position) for b, row in enumerate(batch) for position, _, _ in row.reads})
        number = {place: i for i, place in enumerate(places)}  # the four letters are read from one place
        wanted = [(number[b, p], target, slot) for b, row in enumerate(batch) for p, target, slot in row.reads]
        logits = reader.read([r.trunk for r in batch], [r.branches for r in batch], places, beginning)  # (places, V)
        from_place, target, slot = (torch.tensor(column) for column in zip(*wanted))
        found = logits.log_softmax(-1)[from_place.to(reader.device), target.to(reader.device)]
        nats.index_add_(0, slot, found.double().cpu())
        progress(len(set(slot.tolist())))
