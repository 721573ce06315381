"""The key/value cache: an object that the caller owns, so that two conversations can never touch."""

import torch


class KVCache:
    """Keys and values of the positions seen so far, for every layer, in memory taken once.

    Args:
        batch, capacity: rows, and how many positions each has room for, a shared beginning not counted.
        beginning: a KVCache of one row that lies in front of all rows here; it is read where it is, not copied.

    Attributes:
        length: how many positions lie in front of the next token, the beginning's included.
        shared: how many of them are the beginning's.
        keys, values: (n_layers, B, K, capacity, D).
    """

    def __init__(self, cfg, batch=1, capacity=None, device="cpu", dtype=torch.float32, beginning=None):
        self.capacity = capacity or cfg.max_seq_len
        self.beginning, self.shared = beginning, beginning.length if beginning else 0
        self.length = self.shared
        shape = (cfg.n_layers, batch, cfg.n_kv_heads, self.capacity, cfg.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def reserve(self, rows, count):
        """Makes sure that `count` more positions of `rows` sequences fit; ValueError with both numbers if not."""
        if rows != self.keys.shape[1]:
            raise ValueError(f"the cache was made for {self.keys.shape[1]} sequences, not {rows}; make a new KVCache")
        if self.length - self.shared + count > self.capacity:
            own = self.length - self.shared
            raise ValueError(f"the cache holds {self.capacity} positions; {own} + {count} do not fit")

    def append(self, layer, k, v):
        """Stores k, v (B, K, T, D) behind what is there; returns all of the rows' own k, v (B, K, S, D)."""
        start = self.length - self.shared
        end = start + k.shape[2]
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        return self.keys[layer, :, :, :end].to(k.dtype), self.values[layer, :, :, :end].to(v.dtype)

    def seen_by_all(self, layer):
        """k, v (1, K, shared, D) of the beginning; None without one."""
        if not self.shared:
            return None
        return tuple(x[layer, :, :, : self.shared] for x in (self.beginning.keys, self.beginning.values))

    def advance(self, count):
        """Marks `count` appended positions as seen; called once per forward pass, after the last layer."""
        self.length += count


class SlotCache:
    """Caches of many conversations in one piece of memory, each with a length of its own: slot s holds `texts[s]`.

    What a slot held stays readable until its place is needed, so that a later text with the same beginning can start
    from there (`begin`).

    Attributes:
        texts: for each slot, the list of ids whose keys and values it holds.
        keys, values: L tensors (slots, K, capacity, D), one for each layer: a compiled step would copy all of them to
            change a part of one piece.
    """

    def __init__(self, cfg, slots, capacity=None, device="cpu", dtype=torch.float32):
        self.capacity = capacity or cfg.max_seq_len
        self.texts = [[] for _ in range(slots)]
        shape = (slots, cfg.n_kv_heads, self.capacity, cfg.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(cfg.n_layers)] for _ in range(2)
        )

    def swap(self, a, b):
        """Lets two slots change places."""
        if a != b:
            for memory in (*self.keys, *self.values):
                memory[[a, b]] = memory[[b, a]]
            self.texts[a], self.texts[b] = self.texts[b], self.texts[a]

    def begin(self, slot, ids, reuse=True):
        """Makes `slot` ready for the text `ids` and returns how many of its first ids are there already.

        Slots before `slot` are in use; those behind it only hold what may be reused. At least one id is left to read,
        because its logits are wanted.
        """
        shared = [common_prefix(text, ids[:-1]) if reuse else 0 for text in self.texts]
        best = max(range(len(shared)), key=shared.__getitem__)
        count = shared[best]
        if best > slot:
            self.swap(slot, best)
        elif best < slot and count:
            for memory in (*self.keys, *self.values):
                memory[slot, :, :count] = memory[best, :, :count]
        self.texts[slot] = list(ids[:count])
        for memory in self.values:
            memory[slot, :, count:] = 0  # weight 0 times a NaN somebody left there would be NaN
        return count

    def rows(self, first, ids):
        """Notes B lists of ids behind slots first, first + 1, …; returns what the forward pass over them needs.

        Shorter lists are padded behind their ids, at positions that the slot's next ids will take; a padded slot must
        have one left.

        Returns:
            tokens: (B, T) the ids; their SlotRows.
        Raises:
            ValueError: they do not fit.
        """
        texts, device = self.texts[first : first + len(ids)], self.keys[0].device
        starts, T = [len(text) for text in texts], max(map(len, ids))
        ends = [start + len(new) for start, new in zip(starts, ids, strict=True)]
        needed = max(end + (len(new) < T) for end, new in zip(ends, ids))
        if needed > self.capacity:
            raise ValueError(f"a slot holds {self.capacity} positions; {needed} do not fit")
        for text, new in zip(texts, ids):
            text += new
        positions = torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(T, device=device)
        positions = positions.clamp(max=self.capacity - 1)
        rows = SlotRows(self.keys, self.values, first, positions, max(ends), empty=not any(starts))
        return torch.tensor([[*new, *[0] * (T - len(new))] for new in ids], device=device), rows


class SlotRows:
    """Some slots of a SlotCache during one forward pass: `cache` and `tree` of `Transformer.states` at once.

    Made of tensors and numbers only, so that a compiled step can make it.

    Attributes:
        positions: (B, T) of each new id in its own text.
        longest: S, 1 + the largest position, or more.
        empty: nothing lies in front of any row, so that T == S.
        length, shared: 0, because the positions count from the beginning of each text.
    """

    length = shared = 0

    def __init__(self, keys, values, first, positions, longest, empty=False):
        self.keys, self.values, self.first = keys, values, first
        self.positions, self.longest, self.empty = positions, longest, empty

    def mask(self, start=0):
        """(B, 1, T, S) bool, True for what lies not behind a position in its own text; None: plain causal, T == S."""
        if self.empty:
            return None
        seen = torch.arange(self.longest, device=self.positions.device) <= self.positions.unsqueeze(-1)
        return seen.unsqueeze(1)

    def reserve(self, rows, count):
        """There is room: SlotCache.rows has looked."""

    def append(self, layer, k, v):
        """Stores k, v (B, K, T, D) at each row's positions; returns the slots' k, v (B, K, S, D)."""
        end = self.first + len(self.positions)
        row = torch.arange(self.first, end, device=self.positions.device).unsqueeze(1)  # (B, 1)
        found = []
        for memory, new in ((self.keys[layer], k), (self.values[layer], v)):
            memory[row, :, self.positions] = new.transpose(1, 2).to(memory.dtype)  # (B, T, K, D)
            found.append(memory[self.first : end, :, : self.longest].to(new.dtype))
        return found

    def seen_by_all(self, layer):
        """None: what slots share is copied to each."""
        return None

    def advance(self, count):
        """The texts are longer already."""


def common_prefix(a, b):
    """How many first ids two lists share."""
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
