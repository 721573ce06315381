"""Cross-entropy of the output layer: hidden states in, one sum of nats out."""

import torch.nn.functional as F

from model.labels import IGNORE


def cross_entropy_sum(logits, labels):
    """Sum over scored positions of -log p(label), in nats and fp32.

    Args:
        logits: (B, T, V); cast to fp32, since a bf16 log-softmax over V ids is off in the second digit.
        labels: (B, T) ids, IGNORE where nothing is scored.
    Returns:
        0-d sum. A sum, not a mean: dividing by the scored tokens of the whole global step is the caller's, so that any
        split into micro-batches and ranks gives the same gradient.
    """
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")
