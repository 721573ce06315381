"""What the stages minimise. Each loss takes a model and a Batch and returns sums, never means.

The step divides by the scored tokens (and rows) of the whole global step, so that any split into micro-batches and
ranks gives the same gradient.
"""

from typing import NamedTuple

import torch


class Losses(NamedTuple):
    """What a batch costs.

    Attributes:
        loss: 0-d sum over the batch's `units` (scored tokens, or pairs).
        balance: 0-d balance loss of the experts, mean over the batch's rows.
        load: (L, E) tokens per expert.
        facts: {name: 0-d sum over the units} for the log.
    """

    loss: torch.Tensor
    balance: torch.Tensor
    load: torch.Tensor
    facts: dict


def language_model_loss(model, batch, doc_mask=False):
    """Next-token prediction: pretraining and supervised fine-tuning.

    Args:
        model: called as model(ids, targets, docs=…, loss_only=True) → Output.
        batch: a Batch (B, T).
        doc_mask: packed documents cannot see each other.
    Returns:
        Losses; the loss is in nats.
    """
    out = model(batch.ids, batch.labels, docs=batch.docs if doc_mask else None, loss_only=True)
    return Losses(out.loss, out.balance, out.load, {})


def neftune(alpha):
    """A forward hook for the embedding that adds noise in training: uniform in ±alpha / sqrt(T C).

    Source: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    """

    def add_noise(embedding, inputs, x):  # x: (B, T, C)
        if not embedding.training:
            return x
        return x + torch.empty_like(x).uniform_(-1, 1) * alpha / (x.shape[1] * x.shape[2]) ** 0.5

    return add_noise
