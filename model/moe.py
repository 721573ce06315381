"""A feed-forward of several experts, of which a router picks a few for each token.

Parameter names are MiniMind v1's. Sources: Shazeer et al. 2017, arXiv:1701.06538 (top-k gating); Fedus et al. 2021,
arXiv:2101.03961 (balance loss); DeepSeek-AI 2024, arXiv:2405.04434 (balance within a sequence, shared experts).
"""

import torch
import torch.nn.functional as F
from torch import nn


class Router(nn.Module):
    """Scores every expert for every token; kept in fp32, because a rounded score changes which expert is chosen."""

    def __init__(self, cfg):
        super().__init__()
        self.top_k, self.normalise = cfg.num_experts_per_tok, cfg.norm_topk_prob and cfg.num_experts_per_tok > 1
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.dim))

    def forward(self, x):
        """x (N, C) → scores (N, E) summing to 1, weights (N, k) and indices (N, k) of the chosen experts."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return scores, weights, chosen


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


class MoEFeedForward(nn.Module):
    """Router, E routed experts and (if configured) one shared expert that every token passes."""

    def __init__(self, cfg, make_expert):
        super().__init__()
        self.alpha, self.per_sequence = cfg.aux_loss_alpha, cfg.seq_aux
        self.gate = Router(cfg)
        self.experts = nn.ModuleList(make_expert(cfg) for _ in range(cfg.n_routed_experts))
        self.shared_experts = make_expert(cfg) if cfg.n_shared_experts else None

    def forward(self, x, counted):
        """x (B, T, C) → y (B, T, C), weighted balance loss (0-d), tokens sent to each expert (E,)."""
        B, T, C = x.shape
        flat = x.view(-1, C)
        scores, weights, chosen = self.gate(flat)
        y = self.route(flat, weights.to(x.dtype), chosen).view(B, T, C)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        balance = balance_loss(scores.view(B, T, -1), chosen.view(B, T, -1), counted, self.per_sequence)
        return y, self.alpha * balance, torch.bincount(chosen.flatten(), minlength=len(self.experts))

    def route(self, x, weights, chosen):
        """Sends each token (N, C) through its experts and adds up their weighted answers."""
        k, E = chosen.shape[1], len(self.experts)
        order = chosen.flatten().argsort(stable=True)  # the N*k visits, sorted by expert
        visits = x[order // k]
        sizes = torch.bincount(chosen.flatten(), minlength=E).tolist()
        answers = torch.cat([expert(part) for expert, part in zip(self.experts, visits.split(sizes))])
        # Back in token order each token's k answers lie together: a sum without atomics, the same on every run.
        return (answers[order.argsort()].view(-1, k, x.shape[1]) * weights.unsqueeze(-1)).sum(1)
