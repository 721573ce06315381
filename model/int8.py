"""Weights of 8 bits: a quarter of the memory of fp32, half of bf16's; what is computed with them is not rounded.

Each row of a matrix becomes whole numbers from -127 to 127 and one fp32 scale, so a weight is off by at most half a
scale: 1/254 of the largest in its row. `python -m evaluation.perplexity --int8` says what that costs a model.

Source: Dettmers et al. 2022, arXiv:2208.07339, section 2 (absmax, a scale per row).
"""

import torch
from torch import nn

from model.linear import product
from model.lora import merge_lora


def rounded(weight):
    """(O, C) numbers → (O, C) int8 and scales (O, 1) fp32, whose product is near them."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


class Int8Linear(nn.Module):
    """x W^T, no bias, with W in 8 bits."""

    def __init__(self, weight):
        super().__init__()
        weight, scale = rounded(weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale.squeeze(1))  # (O,)

    def forward(self, x):
        """x (…, C) → (…, O)."""
        return (product(x, self.weight.to(x.dtype)).float() * self.scale).to(x.dtype)


class Int8Embedding(nn.Module):
    """Rows of an Int8Linear: the vocabulary is read and written by one matrix.

    Args:
        linear: the Int8Linear; dtype: of the rows.
    """

    def __init__(self, linear, dtype):
        super().__init__()
        self.weight, self.dtype = linear.weight, dtype
        self.register_buffer("scale", linear.scale)

    def forward(self, ids):
        """ids (B, T) → (B, T, C)."""
        return (self.weight[ids].float() * self.scale[ids].unsqueeze(-1)).to(self.dtype)


@torch.no_grad()
def to_int8(model):
    """Rounds all matrices of a Transformer to 8 bits, with its adapter in them, and returns it; only for inference.

    Norms and routers stay as they are: they are small, and a rounded router chooses other experts.
    """
    merge_lora(model)
    dtype = model.norm.weight.dtype
    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Int8Linear(linear.weight))
    model.tok_embeddings = Int8Embedding(model.output, dtype)
    return model.eval()


def is_int8(model):
    """Whether a model's matrices are of 8 bits: no adapter can be put on them or taken off."""
    return model.output.weight.dtype == torch.int8
