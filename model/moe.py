"""A feed-forward of several experts, of which a router picks a few for each token.

Parameter names are MiniMind v1's. Sources: Shazeer et al. 2017, arXiv:1701.06538 (top-k gating); Fedus et al. 2021,
arXiv:2101.03961 (balance loss); DeepSeek-AI 2024, arXiv:2405.04434 (balance within a sequence, shared experts).
"""

import torch
import torch.nn.functional as F
from torch import nn

from model.dropout import dropout

GROUPING_PAYS_FROM = 256  # visits; for fewer, as in decoding, putting the experts' weights together costs more


class Router(nn.Module):
    """Scores every expert for every token; kept in fp32, because a rounded score changes which expert is chosen.

    With cfg.router_bias_rate, experts are chosen by score plus a bias that each of them has, which `rebalance` moves;
    their weights stay those of the scores (Wang et al. 2024, arXiv:2408.15664).
    """

    def __init__(self, cfg):
        super().__init__()
        self.top_k, self.normalise = cfg.num_experts_per_tok, cfg.norm_topk_prob and cfg.num_experts_per_tok > 1
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.dim))
        self.rate = cfg.router_bias_rate
        if self.rate:
            self.register_buffer("bias", torch.zeros(cfg.n_routed_experts))

    def forward(self, x):
        """x (N, C) → logits (N, E), scores (N, E) summing to 1, weights (N, k) and indices (N, k) of the chosen."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())
        scores = logits.softmax(-1)
        if self.rate:
            chosen = (scores + self.bias).topk(self.top_k, dim=-1).indices
            weights = scores.gather(1, chosen)
        else:
            weights, chosen = scores.topk(self.top_k, dim=-1)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, scores, weights, chosen

    @torch.no_grad()
    def rebalance(self, load):
        """Moves the bias up for experts that got fewer tokens than the mean and down for the others; load (E,)."""
        load = load.float()
        self.bias += self.rate * (load.mean() - load).sign()


def balance_loss(scores, chosen, counted, per_sequence):
    """How unevenly tokens are spread over experts; 1 when perfectly even.

    Args:
        scores: (B, T, E) router probabilities.
        chosen: (B, T, k) expert indices.
        counted: (B,) bool; rows that only fill up a batch are left out.
        per_sequence: one value per row, then the mean over rows; otherwise one value over all tokens.
    Returns:
        0-d: sum over experts of (share of choices x E) x (mean score); 0 when no row counts.
    """
    E = scores.shape[-1]
    share = F.one_hot(chosen, E).sum(-2).float() / chosen.shape[-1]  # (B, T, E), sums to 1 over experts
    weight = counted.float()
    mean_over_rows = lambda x: (x * weight.unsqueeze(-1)).sum(0) / weight.sum().clamp(min=1)  # noqa: E731
    share, scores = share.mean(1), scores.mean(1)  # (B, E)
    if per_sequence:
        return mean_over_rows(E * share * scores).sum()
    return (E * mean_over_rows(share) * mean_over_rows(scores)).sum()


def z_loss(logits, counted):
    """Mean over counted tokens of log(sum(exp(logits)))², which keeps router logits (B, T, E) small; 0-d.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, equation 5.
    """
    squares = logits.logsumexp(-1).square().mean(1)  # (B,)
    weight = counted.float()
    return (squares * weight).sum() / weight.sum().clamp(min=1)


class MoEFeedForward(nn.Module):
    """Router, E routed experts and (if configured) one shared expert that every token passes."""

    def __init__(self, cfg, make_expert):
        super().__init__()
        self.alpha, self.z_alpha, self.per_sequence = cfg.aux_loss_alpha, cfg.router_z_alpha, cfg.seq_aux
        self.gate = Router(cfg)
        self.experts = nn.ModuleList(make_expert(cfg) for _ in range(cfg.n_routed_experts))
        self.shared_experts = make_expert(cfg) if cfg.n_shared_experts else None

    def forward(self, x, counted):
        """x (B, T, C) → y (B, T, C), weighted extra losses (0-d), tokens of counted rows sent to each expert (E,)."""
        B, T, C = x.shape
        flat = x.view(-1, C)
        logits, scores, weights, chosen = self.gate(flat)
        visits = chosen.view(B, -1, 1) == torch.arange(len(self.experts), device=x.device)  # bincount would sync
        y = self.route(flat, weights.to(x.dtype), chosen, visits.sum((0, 1))).view(B, T, C)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        extra = self.alpha * balance_loss(scores.view(B, T, -1), chosen.view(B, T, -1), counted, self.per_sequence)
        if self.z_alpha:
            extra = extra + self.z_alpha * z_loss(logits.view(B, T, -1), counted)
        return y, extra, (visits & counted.view(-1, 1, 1)).sum((0, 1))

    def route(self, x, weights, chosen, sizes):
        """Sends each token (N, C) through its experts, sizes (E,) of them each, and adds up their weighted answers."""
        k = chosen.shape[1]
        if chosen.numel() < GROUPING_PAYS_FROM and (x.is_cuda or torch.compiler.is_compiling()):
            return everyone(self.experts, x, weights, chosen)
        order = chosen.flatten().argsort(stable=True)  # the N*k visits, sorted by expert
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        visits = Visits.apply(x, order, back, k)
        if can_group(self.experts, visits):
            answers = grouped(self.experts, visits, sizes)
        else:
            answers = one_by_one(self.experts, visits, sizes)
        return (Reordered.apply(answers, back, order).view(-1, k, x.shape[1]) * weights.unsqueeze(-1)).sum(1)


# Each token's k visits lie together in token order: both ways are gathers and sums of k, without the atomic additions
# or the sorting by which PyTorch takes an index backwards, and give the same bits on every run.
class Visits(torch.autograd.Function):
    """x (N, C) → (N k, C), a copy of a token for each expert that it visits, sorted by expert."""

    @staticmethod
    def forward(ctx, x, order, back, k):
        """order, back: (N k,), see Reordered."""
        ctx.save_for_backward(back)
        ctx.k = k
        return x[order // k]

    @staticmethod
    def backward(ctx, slope):
        """(N k, C) → (N, C): a token's gradient is the sum over its visits."""
        (back,) = ctx.saved_tensors
        return slope[back].view(-1, ctx.k, slope.shape[1]).sum(1), None, None, None


class Reordered(torch.autograd.Function):
    """x (M, C) in another order: row i of the result is row places[i] of x."""

    @staticmethod
    def forward(ctx, x, places, inverse):
        """places, inverse: (M,) permutations, each the other's inverse."""
        ctx.save_for_backward(inverse)
        return x[places]

    @staticmethod
    def backward(ctx, slope):
        """(M, C) → (M, C)."""
        (inverse,) = ctx.saved_tensors
        return slope[inverse], None, None


def everyone(experts, x, weights, chosen):
    """What the chosen experts answer, from all experts for all tokens (N, C): nobody asks how many tokens each got.

    For few tokens, whose time goes into reading the experts' weights. Asking makes a GPU wait at every layer, cannot be
    recorded as a CUDA graph, and is compiled anew for every answer.
    """
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        here = chosen == e  # (N, k)
        share = (weights * here).sum(1, keepdim=True)
        y = y + torch.where(here.any(1, keepdim=True), expert(x) * share, 0.0)  # others' overflow stays out
    return y


@torch.compiler.disable(recursive=False)  # other sizes in every step; the experts, each of many tokens, are compiled
def one_by_one(experts, visits, sizes):
    """Each expert's answers to its visits (M, C), sizes (E,) of them, sorted by expert."""
    return torch.cat([expert(part) for expert, part in zip(experts, visits.split(sizes.tolist()))])


def can_group(experts, visits):
    """Whether all experts can be computed in one product: not those of an old PyTorch, nor with adapters beside."""
    if not hasattr(F, "grouped_mm") or len(visits) < GROUPING_PAYS_FROM:
        return False
    matrices = [m for e in experts for m in (e.w1, e.w2, e.w3)]
    plain = all(isinstance(m, nn.Linear) for m in matrices)
    aligned = all(n % 8 == 0 for n in matrices[0].weight.shape)  # 16 bytes, which the kernel asks for
    # in fp32 there is a kernel for CPUs only, and the compiler does not know of it
    half = product_dtype(visits) == torch.bfloat16
    return plain and aligned and (half or (visits.device.type == "cpu" and not torch.compiler.is_compiling()))


def product_dtype(x):
    """The format in which a matrix product of x is computed here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def grouped(experts, visits, sizes):
    """All experts' SwiGLU on visits (N k, C) sorted by expert, sizes (E,) of them each, without asking how many."""
    dtype, ends = product_dtype(visits), sizes.cumsum(0).to(torch.int32)
    w1, w2, w3 = (torch.stack([getattr(e, w).weight for e in experts]).to(dtype).mT for w in ("w1", "w2", "w3"))
    visits = visits.to(dtype)
    inside = F.silu(F.grouped_mm(visits, w1, offs=ends)) * F.grouped_mm(visits, w3, offs=ends)  # (N k, hidden)
    first = experts[0]
    return dropout(F.grouped_mm(inside, w2, offs=ends), first.dropout, first.training)
