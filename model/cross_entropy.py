"""Cross-entropy of the output layer: hidden states in, one sum of nats out."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.labels import IGNORE

CHUNK = 4096  # positions whose logits are in memory at once


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


def linear_cross_entropy_sum(states, weight, labels):
    """cross_entropy_sum(states W^T, labels), but the logits of all positions are never there together.

    On a GPU they are most of what a step of a small model keeps: at 32 rows of 512 and 6,400 ids 0.2 GB in bf16, and
    three times 0.4 GB for their fp32 copy, log-softmax and gradient. A CPU is slower so (benchmarks/RESULTS.md).

    Args:
        states: (B, T, C); weight: (V, C); labels: (B, T).
    """
    if not in_chunks(states):
        return cross_entropy_sum(F.linear(states, weight), labels)
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    return Chunked.apply(states.flatten(0, -2).to(dtype), weight, labels.flatten(), dtype)


def in_chunks(states):
    """Whether that pays: on a GPU, where a backward pass follows."""
    return states.is_cuda and torch.is_grad_enabled()


class Chunked(torch.autograd.Function):
    """The loss and, while a chunk's logits are there, its part of both gradients.

    Source: Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989, section 3.2.
    """

    @staticmethod
    def forward(ctx, states, weight, labels, dtype):
        """states (N, C) in dtype, weight (V, C), labels (N,) → 0-d fp32."""
        wants_states, wants_weight, *_ = ctx.needs_input_grad
        own = weight.to(dtype)
        loss = torch.zeros((), device=states.device)
        d_states = torch.empty_like(states) if wants_states else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for x, label, place in zip(states.split(CHUNK), labels.split(CHUNK), range(0, len(states), CHUNK)):
            logits = (x @ own.t()).float()  # (n, V)
            scored, at = (label != IGNORE).unsqueeze(1), label.clamp(min=0).unsqueeze(1)
            log_sum = logits.logsumexp(1, keepdim=True)
            loss += ((log_sum - logits.gather(1, at)) * scored).sum()
            # d(-log p)/d(logits) = softmax - one at the label
            slope = logits.sub_(log_sum).exp_().scatter_add_(1, at, logits.new_full(at.shape, -1.0)).mul_(scored)
            slope = slope.to(dtype)
            if wants_states:
                d_states[place : place + len(x)] = slope @ own
            if wants_weight:
                d_weight += slope.t() @ x
        ctx.save_for_backward(d_states, d_weight)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        """0-d → gradients of states and weight."""
        d_states, d_weight = ctx.saved_tensors
        return (
            None if d_states is None else (d_states * slope).to(d_states.dtype),
            None if d_weight is None else (d_weight * slope).to(ctx.dtype),
            None,
            None,
        )
