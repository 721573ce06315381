"""Which optimizer moves which parameter."""

import torch


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

    Muon orthogonalises each matrix's momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon); with
    `match_rms_adamw` (Liu et al. 2025, arXiv:2502.16982) it shares AdamW's learning rate and decay.
    """
    matrices, embeddings, vectors = parameter_groups(model)
    decayed = embeddings + (matrices if cfg.optimizer == "adamw" else [])
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    optimizers = []
    if groups:
        fused = groups[0]["params"][0].device.type in ("cuda", "cpu")
        optimizers.append(torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), fused=fused))
    if cfg.optimizer == "muon" and matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if not optimizers:
        raise ValueError("the model has no trainable parameters")
    return optimizers


def set_learning_rate(optimizers, rate):
    """Sets the learning rate of every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
