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


def attend(q, k, v, mask, p_drop, fused, beginning=None):
    """What each position takes from those it sees.

    Args:
        q: (B, H, T, D).
        k, v: (B, K, S, D).
        mask: bool, broadcastable to (B, 1, T, S), True where looking is allowed, and never at a later position where
            T == S; None: each position sees itself and what lies before it (T == S).
        p_drop: share of the attention weights zeroed.
        fused: False: the formula as it stands, all positions at once.
        beginning: k and v (1, K, P, D) that lie in front of every row's own and that all positions see; None: nothing.
    Returns:
        (B, H, T, D).
    """
    if beginning is not None:
        return attend_behind(q, k, v, mask, *beginning)
    if not fused:
        return written_out(q, k, v, mask, p_drop, block=q.shape[2])
    if mask is None and has_flash(q):  # it shares heads where they are
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p_drop, is_causal=True, enable_gqa=True)
    if q.device.type == "cpu" and q.shape[2] == k.shape[2] <= BLOCKS_PAY_UP_TO:
        # the CPU's fused kernel takes 140 ms forwards and backwards, this 77 (B 8, H 16, T 512, D 32, bf16, compiled)
        return written_out(q, k, v, mask, p_drop, block=max(SMALLEST_BLOCK, -(-q.shape[2] // BLOCKS)))
    shares = q.device.type == "cpu"  # its kernel reads a head that is shared where it is; copied it takes three times
    if not shares:  # as long (B 16, H 16, K 8, T 1, S 190, D 32)
        k, v = (for_every_query_head(x, q) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, p_drop, is_causal=mask is None, enable_gqa=shares)


def has_flash(q):
    """Whether flash attention runs for q (…, D) on its device; elsewhere shared heads would take a slow way."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    return q.is_cuda and half and q.shape[-1] <= 256 and torch.cuda.get_device_properties(q.device).major >= 8


def for_every_query_head(x, q):
    """Keys or values (B, K, S, D) → (B, H, S, D), each head repeated for the query heads of q that share it."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if x.shape[1] < q.shape[1] else x


def attend_behind(q, k, v, mask, first_k, first_v):
    """Attention to a beginning that all rows share, computed for all rows at once, and to each row's own positions.

    The two softmaxes are joined by the logarithms of their sums. For inference only. On a CPU 20 rows of 100 positions
    behind 1,400 take 53 ms a layer so, and 98 with the beginning copied to every row.

    Source: Juravsky et al. 2024 (Hydragen), arXiv:2402.05099, section 3.

    Args:
        q, k, v, mask: as in attend.
        first_k, first_v: (1, K, P, D).
    Returns:
        (B, H, T, D).
    """
    B, H, T, D = q.shape
    first_k, first_v = (for_every_query_head(x.to(q.dtype), q) for x in (first_k, first_v))  # (1, H, P, D)
    all_rows = q.transpose(0, 1).reshape(1, H, B * T, D)
    there, there_sum = with_log_sum(all_rows, first_k, first_v)
    there, there_sum = there.view(H, B, T, D).transpose(0, 1), there_sum.view(H, B, T).transpose(0, 1)
    own, own_sum = with_log_sum(q, for_every_query_head(k, q), for_every_query_head(v, q), mask, causal=mask is None)
    share = torch.sigmoid(there_sum - own_sum).unsqueeze(-1)  # e^a / (e^a + e^b)
    return (there * share + own * (1 - share)).to(q.dtype)


def with_log_sum(q, k, v, mask=None, causal=False):
    """Attention (B, H, T, D) and the logarithm of the sum of its exponentials (B, H, T) fp32; k, v (B, H, S, D)."""
    if q.device.type != "cpu":
        return written_out_with_log_sum(q, k, v, mask, causal)
    # the kernel behind F.scaled_dot_product_attention, which keeps the sum to itself
    bias = None if mask is None else torch.where(mask, 0.0, float("-inf")).to(q.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias)


def written_out_with_log_sum(q, k, v, mask, causal):
    """The same where no kernel tells the sum."""
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])  # (B, H, T, S)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum.unsqueeze(-1)).exp().to(v.dtype) @ v, log_sum


def written_out(q, k, v, mask, p_drop, block):
    """The formula, `block` queries at a time; arguments as in attend.

    With T == S a block reads only the positions up to its last one, about half of all. The query heads that share a
    key/value head go through one product.
    """
    (B, H, T, D), K, S = q.shape, k.shape[1], k.shape[2]
    q = q.reshape(B * K, H // K, T, D)
    k, v = k.reshape(B * K, S, D), v.reshape(B * K, S, D)
    done = []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen = end if T == S else S
        bias = q.new_zeros(1, seen)
        if mask is None:
            bias = q.new_full((end - start, seen), float("-inf")).triu(start + 1).repeat(H // K, 1)
        asking = q[:, :, start:end].reshape(B * K, -1, D)  # (B K, G n, D)
        # scaled and masked inside the product: each pass over (G n, seen) less is a fifth of the time
        scores = torch.baddbmm(bias, asking, k[:, :seen].transpose(1, 2), alpha=1 / math.sqrt(D))
        if mask is not None:
            allowed = mask[..., start:end, :seen].unsqueeze(-3)  # (B or 1, 1, 1, n, seen)
            scores = scores.view(B, K, -1, end - start, seen).masked_fill(~allowed, float("-inf")).view(scores.shape)
        weights = dropout(scores.softmax(-1, dtype=torch.float32).to(q.dtype), p_drop)
        done.append(torch.bmm(weights, v[:, :seen]).view(B, H, -1, D))
    return torch.cat(done, 2)
