"""How stock Llama and Qwen2-MoE name and lay out the weights of this model.

Names follow a table. Rotary pairs are adjacent here (v1's layout) and half a head apart there, so the rows of wq and
wk change places. Qwen2-MoE multiplies its shared expert by sigmoid(gate): with a gate of zeros that is a constant one
half, so the shared expert's down-projection is doubled there.
"""

import re

PARTS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.gate": "mlp.gate",
}
OURS = {theirs: ours for ours, theirs in PARTS.items()}


def stock_name(name):
    """'layers.0.attention.wq' → 'model.layers.0.self_attn.q_proj'; experts and the shared expert likewise."""
    layer, part = re.fullmatch(r"(layers\.\d+\.)(.+)", name).groups()
    expert = re.fullmatch(r"feed_forward\.(experts\.\d+|shared_experts)\.(w[123])", part)
    if expert:
        which = expert[1].replace("shared_experts", "shared_expert")
        return f"model.{layer}mlp.{which}.{PARTS['feed_forward.' + expert[2]].removeprefix('mlp.')}"
    return f"model.{layer}{PARTS[part]}"


def own_name(name):
    """The inverse of stock_name."""
    layer, part = re.fullmatch(r"model\.(layers\.\d+\.)(.+)", name).groups()
    expert = re.fullmatch(r"mlp\.(experts\.\d+|shared_expert)\.(\w+_proj)", part)
    if expert:
        which = expert[1].replace("shared_expert", "shared_experts")
        return f"{layer}feed_forward.{which}.{OURS['mlp.' + expert[2]].removeprefix('feed_forward.')}"
    return f"{layer}{OURS[part]}"


def rotary_heads(name, cfg):
    """Heads whose rows a weight's output is made of, for wq and wk; 0 for weights that are laid out alike."""
    return cfg.n_heads if name.endswith(".wq") else cfg.n_kv_heads if name.endswith(".wk") else 0


def to_half_split(weight, heads):
    """(heads x D, …) rows from adjacent rotary pairs to pairs half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def to_adjacent(weight, heads):
    """The inverse of to_half_split."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def to_stock(name, weight, cfg):
    """A weight with outputs as rows (or a LoRA B) → as stock transformers lays it out."""
    heads = rotary_heads(name, cfg)
    weight = to_half_split(weight, heads) if heads else weight
    return weight * 2 if name.endswith("shared_experts.w2") else weight


def from_stock(name, weight, cfg):
    """The inverse of to_stock."""
    heads = rotary_heads(name, cfg)
    weight = to_adjacent(weight, heads) if heads else weight
    return weight / 2 if name.endswith("shared_experts.w2") else weight
