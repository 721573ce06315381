"""A Llama-style Transformer on one page: RMSNorm, grouped-query attention with RoPE, SwiGLU or experts.

Shapes: B rows, T positions, C width, H query heads, K key/value heads, D head size, V vocabulary, E experts,
L layers, S positions attended to (T, or cache + T). Parameter names are MiniMind v1's.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.attention import attend
from model.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum
from model.dropout import dropout
from model.labels import IGNORE
from model.linear import Linear
from model.LMConfig import LMConfig
from model.moe import MoEFeedForward
from model.rope import apply_rope, rope_table


class Output(NamedTuple):
    """What one forward pass learned.

    Attributes:
        logits: (B, T, V), or (B, 1, V) with last_only; None where only the loss was asked for.
        loss: 0-d sum of nats over the scored targets, fp32; None without targets.
        balance: 0-d balance loss of the experts, already weighted, mean over rows; 0 in a dense model.
        load: (L, E) tokens sent to each expert; (L, 0) in a dense model.
    """

    logits: torch.Tensor | None
    loss: torch.Tensor | None
    balance: torch.Tensor
    load: torch.Tensor


class Wanted(NamedTuple):
    """The positions that are read after the last layer: only they need its queries and its feed-forward.

    Attributes:
        positions: (B, R) places in the row.
        turned: cos and sin of their angles, (B, R, D/2).
        mask: (B, 1, R, S) bool, what they see.
    """

    positions: torch.Tensor
    turned: tuple
    mask: torch.Tensor

    def of(self, x):
        """Their part (B, R, C) of x (B, T, C)."""
        return take(x, self.positions)


def take(x, positions):
    """The (B, R, C) at `positions` (B, R) of x (B, T, C)."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class RMSNorm(nn.Module):
    """x / rms(x) x weight, computed in fp32. Source: Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        # fp32 in, fp32 weight: a bf16 input with an fp32 weight would leave the fused kernel
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention. Source: Ainslie et al. 2023, arXiv:2305.13245."""

    def __init__(self, cfg):
        super().__init__()
        self.H, self.K, self.D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.dropout, self.fused = cfg.dropout, cfg.flash_attn
        self.wq = Linear(cfg.dim, self.H * self.D)
        self.wk = Linear(cfg.dim, self.K * self.D)
        self.wv = Linear(cfg.dim, self.K * self.D)
        self.wo = Linear(self.H * self.D, cfg.dim)

    def forward(self, x, cos, sin, mask, cache, layer, wanted=None):
        """x (B, T, C) → (B, T, C), or (B, R, C) where only the positions `wanted` (a Wanted) ask."""
        B, T, _ = x.shape
        asking, turned, mask = (x, (cos, sin), mask) if wanted is None else (wanted.of(x), wanted.turned, wanted.mask)
        q = apply_rope(self.wq(asking).view(B, -1, self.H, self.D), *turned).transpose(1, 2)  # (B, H, T or R, D)
        k = apply_rope(self.wk(x).view(B, T, self.K, self.D), cos, sin).transpose(1, 2)  # (B, K, T, D)
        v = self.wv(x).view(B, T, self.K, self.D).transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, D)
        beginning = cache.seen_by_all(layer) if cache is not None else None
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0, self.fused, beginning)
        return dropout(self.wo(y.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x). Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, cfg):
        super().__init__()
        self.dropout = cfg.dropout
        self.w1 = Linear(cfg.dim, cfg.hidden_dim)
        self.w2 = Linear(cfg.hidden_dim, cfg.dim)
        self.w3 = Linear(cfg.dim, cfg.hidden_dim)

    def forward(self, x):
        return dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward."""

    def __init__(self, cfg):
        super().__init__()
        self.attention = Attention(cfg)
        self.feed_forward = MoEFeedForward(cfg, FeedForward) if cfg.use_moe else FeedForward(cfg)
        self.attention_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps)

    def forward(self, x, cos, sin, mask, counted, cache, layer, wanted=None):
        """x (B, T, C) → x (B, T, C), or (B, R, C) of the positions `wanted`; balance loss (0-d), expert load (E,)."""
        asked = self.attention(self.attention_norm(x), cos, sin, mask, cache, layer, wanted)
        x = asked + (x if wanted is None else wanted.of(x))
        if isinstance(self.feed_forward, FeedForward):
            return x + self.feed_forward(self.ffn_norm(x)), x.new_zeros((), dtype=torch.float32), x.new_zeros(0)
        y, balance, load = self.feed_forward(self.ffn_norm(x), counted)
        return x + y, balance, load


class Transformer(nn.Module):
    """ids in, logits (and loss) out; keeps nothing of a forward pass on itself."""

    def __init__(self, cfg: LMConfig | None = None):
        super().__init__()
        self.cfg = cfg = cfg or LMConfig()
        self.recompute = False  # in training keep each layer's input only, and compute the rest again for the gradient
        self.tok_embeddings = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.output = Linear(cfg.dim, cfg.vocab_size)
        self.tok_embeddings.weight = self.output.weight  # tied: one matrix reads and writes the vocabulary
        self._make_rope(device=None)
        self.init_weights()

    def _make_rope(self, device):
        for name, table in zip(("rope_cos", "rope_sin"), rope_table(self.cfg, self.cfg.max_seq_len)):
            self.register_buffer(name, table.to(device), persistent=False)  # (max_seq_len, D/2)

    def _apply(self, fn, recurse=True):
        """Moves or casts the module; the angles stay fp32, because position 511 is not a bf16 number."""
        super()._apply(fn, recurse)
        self._make_rope(self.rope_cos.device)
        return self

    @torch.no_grad()
    def init_weights(self):
        """normal(0, 0.02); 0.02 / sqrt(2 L) for wo and w2, as 2 L of them add up in the residual stream (GPT-2)."""
        for name, p in self.named_parameters():
            if p.dim() < 2:
                p.fill_(1.0)
            else:
                residual = name.endswith(("wo.weight", "w2.weight"))
                p.normal_(0.0, 0.02 / math.sqrt(2 * self.cfg.n_layers) if residual else 0.02)

    def compile(self, *args, **kwargs):
        """torch.compile for each layer: all share one's code, made in a third of the whole model's time."""
        for layer in self.layers:
            layer.compile(*args, **kwargs)

    def forward(self, tokens, targets=None, docs=None, cache=None, last_only=False, loss_only=False, counted=None):
        """Runs the model once.

        Args:
            tokens: (B, T) ids.
            targets: (B, T) ids to predict, -100 where nothing is scored; rows without any do not count for balance.
            docs: (B, T) document numbers; given, a position sees only its own document. None: all before it.
            cache: a KVCache; tokens go behind what it holds and it is advanced.
            last_only: logits of the last position only, which is all that generation needs.
            loss_only: the loss of the targets and no logits, which need not be there together then.
            counted: (B,) bool, the rows that count for balance; None: those with targets, or all.
        Returns:
            Output(logits, loss, balance, load).
        Raises:
            ValueError: more positions than max_seq_len, or docs together with a cache.
        """
        if counted is None and targets is not None:
            counted = (targets != IGNORE).any(1)
        last = tokens.new_full((len(tokens), 1), tokens.shape[1] - 1) if last_only else None
        x, balance, load = self.states(tokens, docs, cache, counted=counted, at=last)
        if loss_only:
            return Output(None, linear_cross_entropy_sum(x, self.output.weight, targets), balance, load)
        logits = self.output(x)  # (B, T or 1, V)
        loss = cross_entropy_sum(logits, targets) if targets is not None else None
        return Output(logits, loss, balance, load)

    def states(self, tokens, docs=None, cache=None, tree=None, counted=None, at=None):
        """What the vocabulary matrix reads: `output(states)` are the logits.

        Args:
            tokens, docs, cache: as in forward.
            tree: a Tree (model/tree.py) where rows hold several continuations of one text.
            counted: (B,) bool, the rows that count for balance; None: all.
            at: (B, R) positions in the row; None: all.
        Returns:
            (B, T or R, C), the 0-d balance loss, the (L, E) expert load.
        """
        B, T = tokens.shape
        start = cache.length if cache is not None else 0
        end = start + (T if tree is None else tree.longest)
        if end > self.cfg.max_seq_len:
            raise ValueError(f"{end} positions do not fit into max_seq_len {self.cfg.max_seq_len}; shorten the text")
        if cache is not None:
            cache.reserve(B, T)
        own = start - (cache.shared if cache is not None else 0)  # positions in front that the mask speaks of
        mask = self._mask(T, own, docs, cache, tokens.device) if tree is None else tree.mask(own)
        places = slice(start, end) if tree is None else start + tree.positions
        cos, sin = self.rope_cos[places], self.rope_sin[places]  # (T, D/2), or (B, T, D/2) of a tree
        fewer = at is not None and at.shape[1] < T
        wanted = self._wanted(at, cos, sin, mask, own + T) if fewer else None
        counted = tokens.new_ones(B, dtype=torch.bool) if counted is None else counted

        x = dropout(self.tok_embeddings(tokens), self.cfg.dropout, self.training)  # (B, T, C)
        balance, load = 0.0, []
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            run = partial(checkpoint, layer, use_reentrant=False) if self.recompute and self.training else layer
            x, layer_balance, layer_load = run(x, cos, sin, mask, counted, cache, i, wanted if last else None)
            balance = balance + layer_balance
            load.append(layer_load)
        if cache is not None:
            cache.advance(T)
        if at is not None and not fewer:
            x = take(x, at)
        return self.norm(x), balance, torch.stack(load)

    @staticmethod
    def _mask(T, start, docs, cache, device):
        """The (.., T, S) bool mask, or None where plain causal attention over T == S positions is meant."""
        if docs is not None:
            if cache is not None:
                raise ValueError(
                    "docs and cache exclude each other: packed rows are for training, a cache for generation"
                )
            same = docs[:, :, None] == docs[:, None, :]  # (B, T, T)
            return (same & torch.ones(T, T, dtype=torch.bool, device=device).tril()).unsqueeze(1)
        if start == 0:
            return None
        return torch.ones(T, start + T, dtype=torch.bool, device=device).tril(diagonal=start)  # (T, S)

    @staticmethod
    def _wanted(at, cos, sin, mask, S):
        """The Wanted of positions `at` (B, R) in rows with these angles and this mask over S positions."""
        row = torch.arange(len(at), device=at.device).unsqueeze(1)  # (B, 1)
        turned = tuple(angles[at] if angles.dim() == 2 else angles[row, at] for angles in (cos, sin))
        if mask is None:
            seen = torch.arange(S, device=at.device) <= at.unsqueeze(-1)  # (B, R, S)
        else:
            seen = mask[at] if mask.dim() == 2 else mask[row, 0, at]
        return Wanted(at, turned, seen.unsqueeze(1))

    def n_params(self):
        """Number of parameters; the tied matrix counts once."""
        return sum(p.numel() for p in self.parameters())
