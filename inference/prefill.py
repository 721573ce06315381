"""Prompts → keys and values in their slots, several in one forward pass where that is less work."""

from model.kv_cache import common_prefix

# How many ids a forward pass costs besides its own: a CPU reads all weights, a GPU waits for its kernels to be started.
PASS = {"cpu": 32}
PASS_ELSEWHERE = 1024


class Prefill:
    """Fills slots of a SlotCache with texts. Those that come one behind the other are read together, at `flush`.

    Shorter texts are padded to the longest. The padding lies behind them, where no position looks and their next ids
    will be stored.

    Args:
        model: a Transformer in eval mode; cache: the SlotCache.
    """

    def __init__(self, model, cache):
        self.model, self.cache, self.first = model, cache, 0
        self.waiting = []  # (text, how many of its first ids are there) of slots first, first + 1, …
        self.pass_costs = PASS.get(cache.keys[0].device.type, PASS_ELSEWHERE)

    def add(self, slot, ids, reuse):
        """Fills a slot with all but the last of ids, now or at `flush`; returns how many have to be computed.

        Args:
            reuse: start from what another slot holds of the same beginning.
        """
        if reuse and self._gains_by_waiting(ids):
            self.flush()
        start = self.cache.begin(slot, ids, reuse)
        count = len(ids) - 1 - start
        if not count or not self._fits(slot, count):
            self.flush()
        if count:
            self.first = slot - len(self.waiting)
            self.waiting.append((ids, start))
        return count

    def _gains_by_waiting(self, ids):
        """Whether a text that is read with the next pass begins like `ids` for longer than a pass costs."""
        return any(common_prefix(text, ids) - start >= self.pass_costs for text, start in self.waiting)

    def _fits(self, slot, count):
        """Whether a slot lies behind the others, and padding costs less than a pass of its own."""
        if not self.waiting:
            return True
        sizes = [len(text) - 1 - start for text, start in self.waiting]
        padding = (len(sizes) + 1) * max(*sizes, count) - len(sizes) * max(sizes) - count
        return slot == self.first + len(sizes) and padding <= self.pass_costs

    def flush(self):
        """Reads what waits, in one forward pass."""
        if self.waiting:
            tokens, rows = self.cache.rows(self.first, [text[start:-1] for text, start in self.waiting])
            # no logits are wanted: of the last layer only keys and values are
            self.model.states(tokens, cache=rows, tree=rows, at=tokens.new_zeros(len(tokens), 1))
            self.waiting = []
