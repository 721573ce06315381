"""From logits to the next id: pure functions of tensors, in the order they are applied."""

import math

import torch

COLDEST = 1e-5  # temperature; from there on the likeliest id is chosen


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


def penalise_counts(logits, written, presence, frequency):
    """Lowers the logits of ids that were written: logit - presence x [count > 0] - frequency x count.

    Args:
        logits: (B, V).
        written: (B, S) ids written so far, without the prompt.
        presence, frequency: in nats; negative ones encourage. The formula is the OpenAI API's.
    """
    if (presence == 0 and frequency == 0) or written.shape[1] == 0:
        return logits
    counts = torch.zeros_like(logits).scatter_add(1, written, torch.ones_like(written, dtype=logits.dtype))
    return logits - presence * (counts > 0) - frequency * counts


def penalise(logits, text, prompted, sampling):
    """Logits (1, V) after all three penalties of a Sampling.

    Args:
        text: list of ids so far, of which the first `prompted` are the prompt.
    """
    if not sampling.penalises:
        return logits
    ids = torch.tensor([text], device=logits.device)
    logits = penalise_repeats(logits, ids, sampling.repetition_penalty)
    return penalise_counts(logits, ids[:, prompted:], sampling.presence_penalty, sampling.frequency_penalty)


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


def keep_min_p(logits, min_p):
    """(B, V) with only ids at least min_p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    if min_p <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), float("-inf"))


def at_temperature(logits, temperature):
    """(B, V) fp32 logits over the temperature, a number or (B, 1), the highest at 0; next to 0 nothing overflows."""
    logits = logits.float()
    return (logits - logits.amax(-1, keepdim=True)) / torch.as_tensor(temperature).clamp(min=COLDEST)


def pick(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None, min_p=0.0):
    """The next id of each row.

    Args:
        logits: (B, V).
        temperature: 0 takes the most likely id (greedy, deterministic); larger is more varied.
        top_k, top_p, min_p: see above; applied in this order, after the temperature.
        generator: torch.Generator on the logits' device, for repeatable sampling.
    Returns:
        (B,) ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = at_temperature(logits, temperature)
    logits = keep_min_p(keep_top_p(keep_top_k(logits, top_k), top_p), min_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def keep_rows(logits, top_k, top_p, min_p):
    """keep_top_k, keep_top_p and keep_min_p with limits of its own for each row, after one sort.

    Args:
        logits: (B, V) fp32.
        top_k, top_p, min_p: (B, 1); 0, 1 and 0 keep all.
    """
    ordered, ids = logits.sort(dim=-1, descending=True)
    last = torch.where(top_k > 0, top_k, logits.shape[-1]).clamp(max=logits.shape[-1]).long() - 1
    ordered = ordered.masked_fill(ordered < ordered.gather(1, last), float("-inf"))
    p = ordered.softmax(-1)
    beyond = (p.cumsum(-1) - p >= top_p) & (top_p < 1)
    beyond |= ordered < ordered[:, :1] + min_p.log()
    return torch.empty_like(logits).scatter(1, ids, ordered.masked_fill(beyond, float("-inf")))


def draw(logits, u):
    """The id of each row at which the cumulated probability passes u (inverse transform sampling).

    Args:
        logits: (B, V); -inf is never chosen.
        u: (B, 1) numbers in [0, 1). The same number gives the same id, whatever the other rows are.
    """
    passed = logits.softmax(-1).to(exact_type(logits)).cumsum(-1)
    below = u.to(passed.dtype).clamp(max=1 - torch.finfo(passed.dtype).eps)
    return (passed <= below * passed[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


def exact_type(logits):
    """The widest float of the logits' device; Apple's GPUs have no fp64."""
    return torch.float32 if logits.device.type == "mps" else torch.float64


def pick_rows(logits, settings, draws):
    """The next id of each row under settings of its own.

    Args:
        logits: (B, V), penalties applied.
        settings: B Samplings.
        draws: B numbers in [0, 1); greedy rows do not use theirs.
    Returns:
        (B,) ids.
    """
    chosen = logits.argmax(-1)
    warm = [b for b, s in enumerate(settings) if s.temperature > 0]
    if not warm:
        return chosen
    column = lambda rows, name: torch.tensor([[getattr(settings[b], name)] for b in rows], device=logits.device)  # noqa: E731
    scaled = at_temperature(logits[warm], column(warm, "temperature"))
    limited = [n for n, b in enumerate(warm) if settings[b].top_k or settings[b].top_p < 1 or settings[b].min_p]
    if limited:  # a sort of the vocabulary is as long as a layer
        rows = [warm[n] for n in limited]
        scaled[limited] = keep_rows(scaled[limited], *(column(rows, name) for name in ("top_k", "top_p", "min_p")))
    u = torch.tensor([[draws[b]] for b in warm], device=logits.device, dtype=exact_type(logits))
    chosen[warm] = draw(scaled, u)
    return chosen
