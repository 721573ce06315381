"""The recipe that speed is compared with: a small Llama trained the plain way, as MiniMind v1 did.

Written from the formulas. Complex RoPE, key/value heads repeated, RMSNorm spelled out, one matrix product per weight, a
document per padded row, default AdamW, no compiler. Parameter names are MiniMind v1's, so the project's weights load
strictly, and `train_speed.py` proves that the logits are equal before it compares any time. Dense models only.
"""

import contextlib
import dataclasses
import itertools
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cleaning.readers import Drops, read_texts
from model.batch import Sample, collate
from model.bin_data import find_documents
from model.dataset import PretrainDataset
from model.labels import IGNORE


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) x weight, an operation at a time."""

    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


def rotations(D, T, theta):
    """(T, D/2) complex64: e^(i position frequency)."""
    frequencies = 1.0 / theta ** (torch.arange(0, D, 2).float() / D)
    angles = torch.outer(torch.arange(T).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x, turns):
    """Each adjacent pair of x (B, T, H, D) as a complex number, times its turn (T, D/2)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))  # (B, T, H, D/2)
    return torch.view_as_real(pairs * turns[:, None, :]).flatten(3).type_as(x)


def repeat_heads(x, times):
    """(B, T, K, D) → (B, T, K * times, D), each head copied `times` times in a row."""
    B, T, K, D = x.shape
    return x[:, :, :, None, :].expand(B, T, K, times, D).reshape(B, T, K * times, D)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.H, self.K, self.D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.wq = nn.Linear(cfg.dim, self.H * self.D, bias=False)
        self.wk = nn.Linear(cfg.dim, self.K * self.D, bias=False)
        self.wv = nn.Linear(cfg.dim, self.K * self.D, bias=False)
        self.wo = nn.Linear(self.H * self.D, cfg.dim, bias=False)

    def forward(self, x, turns):
        B, T, _ = x.shape
        q = rotate(self.wq(x).view(B, T, self.H, self.D), turns)
        k = rotate(self.wk(x).view(B, T, self.K, self.D), turns)
        v = self.wv(x).view(B, T, self.K, self.D)
        k, v = repeat_heads(k, self.H // self.K), repeat_heads(v, self.H // self.K)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).contiguous().view(B, T, -1))


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.w1 = nn.Linear(cfg.dim, cfg.hidden_dim, bias=False)
        self.w2 = nn.Linear(cfg.hidden_dim, cfg.dim, bias=False)
        self.w3 = nn.Linear(cfg.dim, cfg.hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.attention, self.feed_forward = Attention(cfg), FeedForward(cfg)
        self.attention_norm, self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps), RMSNorm(cfg.dim, cfg.norm_eps)

    def forward(self, x, turns):
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feed_forward(self.ffn_norm(x))


class PlainTransformer(nn.Module):
    """(B, T) ids → (B, T, V) logits."""

    def __init__(self, cfg):
        super().__init__()
        if cfg.use_moe or cfg.rope_scaling:
            raise ValueError("the plain recipe is a dense model without rope_scaling; use --preset tiny, small or base")
        self.tok_embeddings = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.output = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.tok_embeddings.weight = self.output.weight
        self.register_buffer("turns", rotations(cfg.head_dim, cfg.max_seq_len, cfg.rope_theta), persistent=False)

    def forward(self, ids):
        x, turns = self.tok_embeddings(ids), self.turns[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, turns)
        return self.output(self.norm(x))


def mean_loss(logits, labels):
    """One loss per slot, padding included, then the mean of the scored ones."""
    losses = F.cross_entropy(
        logits.float().view(-1, logits.shape[-1]), labels.view(-1), reduction="none", ignore_index=IGNORE
    )
    scored = (labels.view(-1) != IGNORE).float()
    return (losses * scored).sum() / scored.sum()


class PlainRecipe:
    """Forward, backward, clip, step; `forward` is the model as it is called: itself, or compiled."""

    def __init__(self, model, forward, optimizer, dtype, device):
        self.model, self.forward, self.optimizer = model, forward, optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        plain = dtype == torch.float32
        self.autocast = contextlib.nullcontext() if plain else torch.autocast(device.type, dtype=dtype)

    def loss(self, ids, labels):
        with self.autocast:
            return mean_loss(self.forward(ids), labels)

    def step(self, ids, labels):
        """One optimizer step; returns the loss in nats per scored token, 0-d, for which nobody has waited yet."""
        loss = self.loss(ids, labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


# --- the rows it is fed, and the same data packed ---------------------------------------------------------------------


def padded_rows(documents, T):
    """One document a row: its first T + 1 ids, padding behind them, as `model.batch.collate` takes them."""
    rows = []
    for number, document in enumerate(documents):
        ids, docs = np.zeros(T + 1, np.int64), np.full(T + 1, -1)
        n = min(len(document), T + 1)
        ids[:n], docs[:n] = document[:n], 0
        rows.append(Sample(number, ids, docs, ids))
    return rows


def scored_share_of_padded(lengths, T):
    """Share of the slots that are scored when each document fills one row: what is over T + 1 ids is lost."""
    return float(np.clip(lengths - 1, 0, T).sum() / (len(lengths) * T))


def write_bin(paths, tokenizer, file):
    """Raw texts → a .bin of <s>text</s> documents; says what could not be read."""
    drops = Drops()
    texts = read_texts(paths, drops)
    with open(file, "wb") as out:
        while some := list(itertools.islice(texts, 1000)):
            for ids in tokenizer.encode_batch(some):
                out.write(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype="<u2").tobytes())
    if drops.counts:
        print(drops.table(), file=sys.stderr)


@dataclasses.dataclass
class Rows:
    """The same data packed (True) and padded (False)."""

    dataset: PretrainDataset
    share: dict  # {packed?: scored slots ÷ slots, over all of the data}
    batches: dict  # {packed?: list of Batch, which are timed}
    lengths: np.ndarray  # (documents,) ids in each


def load_rows(path, T, tokenizer, cache_dir, batch_size, steps):
    """Packs the whole .bin at `path`, and draws `steps` batches of each kind."""
    dataset, rng = PretrainDataset(path, T, tokenizer, cache_dir), np.random.default_rng(1337)
    found = [(s, *find_documents(s, tokenizer.bos_id, tokenizer.vocab_size, path)) for s in dataset.shards]
    documents = [(ids, start, n) for ids, starts, lengths in found for start, n in zip(starts, lengths)]
    lengths = np.array([n for _, _, n in documents])
    packed, padded = [], []
    for _ in range(steps):
        packed.append(collate([dataset[int(i)] for i in rng.integers(len(dataset), size=batch_size)]))
        drawn = [documents[i] for i in rng.integers(len(documents), size=batch_size)]
        padded.append(collate(padded_rows([ids[start : start + n] for ids, start, n in drawn], T)))
    scored = int(np.maximum(dataset.pieces[:, 2] - 1, 0).sum())  # pieces of a document share the id at the cut
    share = {True: scored / (len(dataset) * T), False: scored_share_of_padded(lengths, T)}
    return Rows(dataset, share, {True: packed, False: padded}, lengths)
