"""Rotary position embedding in real arithmetic, with NTK and YaRN stretching.

Each adjacent pair (x0, x1) of a head is turned by position x frequency. Adjacent pairs are MiniMind v1's layout; stock
Llama pairs i with i + D/2, so export permutes the rows of wq and wk. No complex tensors: the compiler generates no code
for them.

Sources: Su et al. 2021, arXiv:2104.09864; NTK-aware scaling: bloc97, 2023; YaRN: Peng et al. 2023, arXiv:2309.00071.
"""

import math

import torch

YARN_FAST, YARN_SLOW = 32.0, 1.0  # turns within the trained length above / below which a frequency is kept / stretched


def rope_frequencies(cfg):
    """(D/2,) float32 radians per position, and the factor that cos and sin are multiplied by (1 except for YaRN)."""
    D = cfg.head_dim
    kind, factor = cfg.rope_rule
    exponents = torch.arange(0, D, 2, dtype=torch.float32) / D
    if kind == "ntk":  # raise the base so that the slowest pair turns exactly `factor` times slower
        return 1.0 / (cfg.rope_theta * factor ** (D / (D - 2))) ** exponents, 1.0
    frequencies = 1.0 / cfg.rope_theta**exponents
    if kind != "yarn":
        return frequencies, 1.0

    trained = cfg.max_seq_len / factor  # the length before stretching

    def pair_with(turns):  # index of the pair that turns this often within the trained length
        return D * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))

    low = max(math.floor(pair_with(YARN_FAST)), 0)
    high = min(math.ceil(pair_with(YARN_SLOW)), D - 1)
    stretched = ((torch.arange(D // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - stretched) + frequencies / factor * stretched, 0.1 * math.log(factor) + 1.0


def rope_table(cfg, length):
    """cos and sin of every (position, pair): two float32 tensors (length, D/2)."""
    frequencies, scale = rope_frequencies(cfg)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos() * scale, angles.sin() * scale


def apply_rope(x, cos, sin):
    """Turns adjacent pairs of x (B, T, H, D) by the angles of cos, sin, in fp32; returns x's dtype.

    cos, sin: (T, D/2), or (B, T, D/2) where rows count their positions differently.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, T, H, D/2, 2)
    a, b = pairs.unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # the same for all heads
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)
