"""softmax(q k^T / sqrt(D) + mask) v, by the fastest way that the device has.

Shapes: B rows, T positions that ask, S positions attended to, H query heads, K key/value heads, G = H / K query heads
for each of them, D head size.
"""

import math

import torch
import torch.nn.functional as F

from model.dropout import dropout

BLOCKS, SMALLEST_BLOCK = 4, 64  # more blocks skip more of the future, but each is compiled by itself
BLOCKS_PAY_UP_TO = 1024  # positions; past that, keeping all weights for the backward pass costs more than it saves


def attend(q, k, v, mask, p_drop, fused):
    """What each position takes from those it sees.

    Args:
        q: (B, H, T, D).
        k, v: (B, K, S, D).
        mask: bool, broadcastable to (B, 1, T, S), True where looking is allowed, and never at a later position where
            T == S; None: each position sees itself and what lies before it (T == S).
        p_drop: share of the attention weights zeroed.
        fused: False: the formula as it stands, all positions at once.
    Returns:
        (B, H, T, D).
    """
    if not fused:
        return written_out(q, k, v, mask, p_drop, block=q.shape[2])
    if q.is_cuda and mask is None and q.dtype != torch.float32:  # where flash attention runs, it shares heads
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p_drop, is_causal=True, enable_gqa=True)
    trained_on_a_cpu = q.device.type == "cpu" and q.requires_grad
    if trained_on_a_cpu and q.shape[2] == k.shape[2] <= BLOCKS_PAY_UP_TO:
        # the CPU's fused kernel is slow backwards: 140 ms against 77 for B 8, H 16, T 512, D 32, bf16, compiled
        return written_out(q, k, v, mask, p_drop, block=max(SMALLEST_BLOCK, -(-q.shape[2] // BLOCKS)))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if k.shape[1] < q.shape[1] else x for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, p_drop, is_causal=mask is None)


def written_out(q, k, v, mask, p_drop, block):
    """The formula, `block` queries at a time; arguments as in attend.

    With T == S a block reads only the positions up to its last one, about half of all. The query heads that share a
    key/value head go through one product.
    """
    (B, H, T, D), K, S = q.shape, k.shape[1], k.shape[2]
    q = q.reshape(B, K, H // K, T, D)
    done = []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen = end if T == S else S
        n = end - start
        if mask is None:
            allowed = torch.ones(n, seen, dtype=torch.bool, device=q.device).tril(start)
        else:
            allowed = mask[..., start:end, :seen].unsqueeze(-3)  # one more dimension: G
        asking = q[:, :, :, start:end].reshape(B, K, -1, D)  # (B, K, G n, D)
        scores = asking @ k[:, :, :seen].transpose(-1, -2)  # (B, K, G n, seen)
        scores = scores.view(B, K, -1, n, seen).float() / math.sqrt(D)
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).to(q.dtype)
        weights = dropout(weights, p_drop).view(B, K, -1, seen)
        done.append((weights @ v[:, :, :seen]).view(B, K, -1, n, D))
    return torch.cat(done, 3).view(B, H, T, D)
