"""The key/value cache: an object that the caller owns, so that two conversations can never touch."""

import torch


class KVCache:
    """Keys and values of the positions seen so far, for every layer, in memory taken once.

    Attributes:
        length: how many positions are stored; the next token gets this position.
        keys, values: (n_layers, B, K, capacity, D).
    """

    def __init__(self, cfg, batch=1, capacity=None, device="cpu", dtype=torch.float32):
        self.capacity = capacity or cfg.max_seq_len
        self.length = 0
        shape = (cfg.n_layers, batch, cfg.n_kv_heads, self.capacity, cfg.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def reserve(self, rows, count):
        """Makes sure that `count` more positions of `rows` sequences fit; ValueError with both numbers if not."""
        if rows != self.keys.shape[1]:
            raise ValueError(f"the cache was made for {self.keys.shape[1]} sequences, not {rows}; make a new KVCache")
        if self.length + count > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions; {self.length} + {count} do not fit")

    def append(self, layer, k, v):
        """Stores k, v (B, K, T, D) behind what is there; returns all of the layer's k, v (B, K, length + T, D)."""
        start, end = self.length, self.length + k.shape[2]
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        return self.keys[layer, :, :, :end].to(k.dtype), self.values[layer, :, :, :end].to(v.dtype)

    def advance(self, count):
        """Marks `count` appended positions as seen; called once per forward pass, after the last layer."""
        self.length += count
