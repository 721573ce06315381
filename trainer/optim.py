"""Which optimizer moves which parameter."""

import contextlib

import torch

from trainer.muon import Muon
from trainer.parallel import own_part


def parameter_groups(model):
    """Splits trainable parameters by what suits them.

    Returns:
        matrices: 2-d weights inside the blocks; they decay, and Muon is made for them.
        embeddings: the vocabulary and the routers: 2-d but rows are looked up or compared, not multiplied through.
        vectors: norm weights; they do not decay.
    """
    matrices, embeddings, vectors = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.dim() < 2:
            vectors.append(p)
        elif "tok_embeddings" in name or name.startswith("output") or ".gate." in name:
            embeddings.append(p)
        else:
            matrices.append(p)
    return matrices, embeddings, vectors


def make_optimizers(model, cfg):
    """The optimizers of a run: [AdamW], or [AdamW, Muon].

    Muon orthogonalises each matrix's momentum, and shares AdamW's learning rate and decay; see trainer/muon.py.
    """
    matrices, embeddings, vectors = parameter_groups(model)
    decayed = embeddings + (matrices if cfg.optimizer == "adamw" else [])
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    optimizers = []
    if groups:
        betas = cfg.beta1, cfg.beta2  # fused: on the device, it can be told to leave the weights, see step.py
        optimizers.append(torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=betas, fused=True))
    if cfg.optimizer == "muon" and matrices:
        optimizers.append(Muon(matrices, cfg.learning_rate, cfg.weight_decay))
    if not optimizers:
        raise ValueError("the model has no trainable parameters")
    return optimizers


def set_learning_rate(optimizers, rate):
    """Sets the learning rate of every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


class WeightAverage:
    """A running mean of the trained weights, which forgets: mean = decay x mean + (1 - decay) x weights.

    Early on the decay is (1 + n) / (10 + n) at step n where that is less, so that the random start is forgotten.
    Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.

    Attributes:
        mean: {name: tensor} of the trained parameters.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self.mean = {name: p.detach().clone() for name, p in trained(model).items()}

    @torch.no_grad()
    def update(self, model, step, good):
        """Takes in the weights after optimizer step number `step`, from 1, if it was a `good` one (0-d bool)."""
        share = good * (1 - min(self.decay, (1 + step) / (10 + step)))
        for name, p in trained(model).items():
            own_part(self.mean[name]).lerp_(own_part(p), share)

    @contextlib.contextmanager
    def in_place(self, model):
        """A context in which the model holds the mean."""
        weights = trained(model)
        own = {name: p.detach().clone() for name, p in weights.items()}
        try:
            fill(weights, self.mean)
            yield
        finally:
            fill(weights, own)


@torch.no_grad()
def fill(weights, values):
    """Copies values into the parameters of their names; in place, because FSDP and DDP hold on to their memory."""
    for name, value in values.items():
        weights[name].copy_(value)


def trained(model):
    """{name: parameter} of those that the optimizers move."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
