"""From logits to the next id: pure functions of tensors, in the order they are applied."""

import torch


def penalise_repeats(logits, seen, penalty):
    """Makes ids that already occurred less likely.

    Args:
        logits: (B, V).
        seen: (B, S) ids that occurred.
        penalty: > 1 discourages. Positive logits are divided by it and negative ones multiplied, so that both fall
            (Keskar et al. 2019, arXiv:1909.05858, with the sign that paper's formula lacks).
    """
    if penalty == 1.0 or seen.shape[1] == 0:
        return logits
    values = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(values > 0, values / penalty, values * penalty))


def keep_top_k(logits, k):
    """(B, V) with all but the k highest logits of each row at -inf; k 0 keeps all. Ties with the k-th are kept."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits, p):
    """(B, V) with only the fewest ids whose probabilities reach p together (Holtzman et al. 2019, arXiv:1904.09751)."""
    if p >= 1.0:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = (
        probabilities.cumsum(-1) - probabilities
    )  # mass of the more likely ids; 0 for the first, so one is always kept
    return torch.empty_like(logits).scatter(1, ids, ordered.masked_fill(before >= p, float("-inf")))


def pick(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """The next id of each row.

    Args:
        logits: (B, V).
        temperature: 0 takes the most likely id (greedy, deterministic); larger is more varied.
        top_k, top_p: see above; applied after the temperature.
        generator: torch.Generator on the logits' device, for repeatable sampling.
    Returns:
        (B,) ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = keep_top_p(keep_top_k(logits.float() / temperature, top_k), top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
