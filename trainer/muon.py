"""Muon on many matrices at once, in a format that the hardware multiplies.

Each matrix moves along its momentum with all singular values made about equal. Source: Jordan et al. 2024,
kellerjordan.github.io/posts/muon. torch.optim.Muon is the same arithmetic for one matrix after the other and always in
bf16, which a CPU without bf16 units emulates: a step of `tiny` took 6.2 s there instead of 0.26.
"""

from collections import defaultdict

import torch

from trainer.parallel import own_part, part_like, stack_in_full
from trainer.runtime import has_bf16

TOGETHER = 1 << 24  # numbers that are worked on at once: 28 matrices of `small`, and 32 MB in bf16


def orthogonalised(x, coefficients, steps, eps):
    """(n, A, B) → n matrices with the same singular vectors and singular values of about 0.7 to 1.2.

    Newton-Schulz iteration of the fifth order; `coefficients` (a, b, c) of s → a s + b s³ + c s⁵ for each value s.
    """
    a, b, c = coefficients
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """torch.optim.Muon with another step(); settings and state are the same, so that either continues the other.

    A step is as large as AdamW's, so that both share rate and decay. Source: Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(self, matrices, lr, weight_decay):
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None):
        """Moves every matrix that has a gradient; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same[p.shape].append(p)
            for (A, B), matrices in same.items():
                n = max(1, TOGETHER // (A * B))
                for begin in range(0, len(matrices), n):
                    self._move(matrices[begin : begin + n], group)
        return loss

    def _move(self, matrices, group):
        """A step of matrices of one shape. Of those shared out, every rank orthogonalises the whole.

        Like torch's fused optimizers it does nothing where the 0-d tensor `found_inf` is 1, and nobody waits for it.
        """
        kept = [self.state[p] for p in matrices]
        for p, state in zip(matrices, kept):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p.grad)
        weights, buffers = [own_part(p) for p in matrices], [own_part(state["momentum_buffer"]) for state in kept]
        gradients, momentum = torch.stack([own_part(p.grad) for p in matrices]), torch.stack(buffers)
        bad = getattr(self, "found_inf", None)
        bad = gradients.new_zeros(()) if bad is None else bad
        good = 1 - bad
        gradients.masked_fill_(bad > 0, 0.0)  # what is no number would stay so, times 0
        momentum.lerp_(gradients, good * (1 - group["momentum"]))
        torch._foreach_copy_(buffers, momentum.unbind())
        update = gradients.lerp_(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = stack_in_full(update, matrices[0])
        dtype = torch.bfloat16 if has_bf16(update.device) else torch.float32
        turned = orthogonalised(update.to(dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(turned.shape[1:]) ** 0.5  # the root mean square of AdamW's steps is about 0.2
        parts = [own_part(part_like(x, p)) for x, p in zip(turned.float() * good, matrices)]
        torch._foreach_mul_(weights, 1 - good * (group["lr"] * group["weight_decay"]))
        torch._foreach_add_(weights, parts, alpha=-rate)
