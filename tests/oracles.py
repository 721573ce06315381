"""Second opinions: stock Hugging Face models given our weights, and the formulas written out once more."""

import torch


def half_split(weight, heads):
    """Rows of wq or wk from adjacent rotary pairs (ours, v1's) to Llama's halves."""
    rows, C = weight.shape
    return weight.view(heads, rows // heads // 2, 2, C).transpose(1, 2).reshape(rows, C)


def rope_parameters(cfg):
    """Our rope_scaling in Hugging Face's words."""
    kind, factor = cfg.rope_rule
    base = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    if kind == "yarn":
        trained = int(cfg.max_seq_len / factor)
        return {**base, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    if kind == "ntk":  # stock Llama has no static NTK rule; a raised base is the same thing
        D = cfg.head_dim
        return {**base, "rope_theta": cfg.rope_theta * factor ** (D / (D - 2))}
    return base


def shared_arguments(cfg):
    """Constructor arguments that stock Llama and Qwen2-MoE have in common."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": True,
        "rope_parameters": rope_parameters(cfg),
        "attn_implementation": "eager",
    }


def attention_and_norms(sd, cfg):
    """The tensors that Llama and Qwen2-MoE share, under their names."""
    out = {"model.embed_tokens.weight": sd["tok_embeddings.weight"], "model.norm.weight": sd["norm.weight"]}
    out["lm_head.weight"] = sd["output.weight"]
    for i in range(cfg.n_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out[theirs + "self_attn.q_proj.weight"] = half_split(sd[ours + "attention.wq.weight"], cfg.n_heads)
        out[theirs + "self_attn.k_proj.weight"] = half_split(sd[ours + "attention.wk.weight"], cfg.n_kv_heads)
        out[theirs + "self_attn.v_proj.weight"] = sd[ours + "attention.wv.weight"]
        out[theirs + "self_attn.o_proj.weight"] = sd[ours + "attention.wo.weight"]
        out[theirs + "input_layernorm.weight"] = sd[ours + "attention_norm.weight"]
        out[theirs + "post_attention_layernorm.weight"] = sd[ours + "ffn_norm.weight"]
    return out


def stock_llama(model):
    """LlamaForCausalLM with the same function as a dense Transformer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg, sd = model.cfg, model.state_dict()
    tensors = attention_and_norms(sd, cfg)
    for i in range(cfg.n_layers):
        for theirs, ours in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            tensors[f"model.layers.{i}.mlp.{theirs}.weight"] = sd[f"layers.{i}.feed_forward.{ours}.weight"]
    llama = LlamaForCausalLM(LlamaConfig(intermediate_size=cfg.hidden_dim, **shared_arguments(cfg)))
    llama.load_state_dict(tensors, strict=True)
    return llama.eval()


def stock_qwen2_moe(model):
    """Qwen2MoeForCausalLM with the same function as a Transformer with experts and a shared expert.

    Its shared expert passes a sigmoid gate; at zero weights that is a constant ½, so down_proj is doubled.
    """
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    cfg, sd = model.cfg, model.state_dict()
    tensors = attention_and_norms(sd, cfg)
    for i in range(cfg.n_layers):
        ours, theirs = f"layers.{i}.feed_forward.", f"model.layers.{i}.mlp."
        each = lambda w: [sd[f"{ours}experts.{e}.{w}.weight"] for e in range(cfg.n_routed_experts)]  # noqa: B023, E731
        tensors[theirs + "experts.gate_up_proj"] = torch.stack([torch.cat(p) for p in zip(each("w1"), each("w3"))])
        tensors[theirs + "experts.down_proj"] = torch.stack(each("w2"))
        tensors[theirs + "gate.weight"] = sd[ours + "gate.weight"]
        tensors[theirs + "shared_expert.gate_proj.weight"] = sd[ours + "shared_experts.w1.weight"]
        tensors[theirs + "shared_expert.up_proj.weight"] = sd[ours + "shared_experts.w3.weight"]
        tensors[theirs + "shared_expert.down_proj.weight"] = sd[ours + "shared_experts.w2.weight"] * 2
        tensors[theirs + "shared_expert_gate.weight"] = torch.zeros(1, cfg.dim)
    config = Qwen2MoeConfig(
        moe_intermediate_size=cfg.hidden_dim,
        shared_expert_intermediate_size=cfg.hidden_dim,
        num_experts=cfg.n_routed_experts,
        num_experts_per_tok=cfg.num_experts_per_tok,
        norm_topk_prob=cfg.norm_topk_prob,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        qkv_bias=False,
        **shared_arguments(cfg),
    )
    qwen = Qwen2MoeForCausalLM(config)
    qwen.load_state_dict(tensors, strict=True)
    return qwen.eval()


def v1_rope(x, theta=10000.0):
    """MiniMind v1's rotary embedding, with complex numbers; x (B, T, H, D)."""
    T, D = x.shape[1], x.shape[3]
    angles = torch.outer(torch.arange(T).float(), 1.0 / theta ** (torch.arange(0, D, 2).float() / D))
    turns = torch.polar(torch.ones_like(angles), angles)[None, :, None, :]
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns).flatten(3)


def v1_logits(sd, ids, n_layers, n_heads, n_kv_heads, eps=1e-5, top_k=2):
    """MiniMind v1's forward pass, dense or with experts, from its formulas; sd its state dict, ids (B, T)."""
    norm = lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w  # noqa: E731
    x = sd["tok_embeddings.weight"][ids]
    B, T, C = x.shape
    seen = torch.ones(T, T, dtype=torch.bool).tril()

    def swiglu(x, name):
        w1, w2, w3 = (sd[f"{name}.w{i}.weight"] for i in (1, 2, 3))
        return (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    for i in range(n_layers):
        own = f"layers.{i}."
        h = norm(x, sd[own + "attention_norm.weight"])
        heads = lambda w, n: (h @ sd[f"{own}attention.{w}.weight"].T).view(B, T, n, -1)  # noqa: B023, E731
        q, k, v = v1_rope(heads("wq", n_heads)), v1_rope(heads("wk", n_kv_heads)), heads("wv", n_kv_heads)
        k, v = (y.repeat_interleave(n_heads // n_kv_heads, 2) for y in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        y = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
        x = x + y.reshape(B, T, C) @ sd[own + "attention.wo.weight"].T
        h = norm(x, sd[own + "ffn_norm.weight"])
        if own + "feed_forward.gate.weight" not in sd:
            x = x + swiglu(h, own + "feed_forward")
            continue
        weights, chosen = (h @ sd[own + "feed_forward.gate.weight"].T).softmax(-1).topk(top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        experts = len({name for name in sd if name.startswith(f"{own}feed_forward.experts.") and "w1" in name})
        for e in range(experts):
            x = x + swiglu(h, f"{own}feed_forward.experts.{e}") * (weights * (chosen == e)).sum(-1, keepdim=True)
        x = x + swiglu(h, own + "feed_forward.shared_experts")
    return norm(x, sd["norm.weight"]) @ sd["output.weight"].T
