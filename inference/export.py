"""Checkpoints → folders that stock transformers loads without remote code: Llama when dense, Qwen2-MoE with experts.

The weights change names and layout (model/huggingface.py), never values, so the logits stay the same; NTK becomes a
larger RoPE base, which is what it is.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from inference.engine import Sampling, generate
from model.huggingface import stock_name, to_stock

NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
SAMPLE = 64  # ids of the parity check


def refuse_biases(cfg):
    """ValueError for a router with biases, which none of the architectures here has that others load."""
    if cfg.use_moe and cfg.router_bias_rate:
        raise ValueError(
            "this model's experts were balanced by biases (router_bias_rate), which the architectures that others load "
            "do not have; train with --aux_loss_alpha alone to export it"
        )


def stock_config(cfg, tokenizer):
    """The LlamaConfig or Qwen2MoeConfig of an LMConfig."""
    from transformers import LlamaConfig, Qwen2MoeConfig

    refuse_biases(cfg)
    kind, factor = cfg.rope_rule
    rope = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    if kind == "yarn":
        rope = {**rope, "rope_type": "yarn", "factor": factor}
        rope["original_max_position_embeddings"] = int(cfg.max_seq_len / factor)
    if kind == "ntk":
        rope["rope_theta"] = cfg.rope_theta * factor ** (cfg.head_dim / (cfg.head_dim - 2))
    shared = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": True,
        "rope_parameters": rope,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    if not cfg.use_moe:
        return LlamaConfig(intermediate_size=cfg.hidden_dim, **shared)
    return Qwen2MoeConfig(
        moe_intermediate_size=cfg.hidden_dim,
        shared_expert_intermediate_size=cfg.hidden_dim,
        num_experts=cfg.n_routed_experts,
        num_experts_per_tok=cfg.num_experts_per_tok,
        norm_topk_prob=cfg.norm_topk_prob and cfg.num_experts_per_tok > 1,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        qkv_bias=False,
        **shared,
    )


def stock_state(model):
    """The state dict under stock names; experts stacked as transformers keeps them."""
    cfg, tensors = model.cfg, {}
    for name, weight in model.state_dict().items():
        weight = weight.detach().float()
        parts = name.removesuffix(".weight").split(".")
        if parts[0] != "layers":
            renamed = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}[parts[0]]
        elif parts[2] in NORMS:
            renamed = f"model.layers.{parts[1]}.{NORMS[parts[2]]}"
        else:
            own = name.removesuffix(".weight")
            renamed, weight = stock_name(own), to_stock(own, weight, cfg)
        tensors[f"{renamed}.weight"] = weight
    if cfg.use_moe:
        for i in range(cfg.n_layers):
            stack_experts(tensors, f"model.layers.{i}.mlp.", cfg)
    return tensors


def stack_experts(tensors, layer, cfg):
    """Replaces one layer's experts by the two tensors that hold all of them, and adds the shared expert's gate."""
    take = lambda e, part: tensors.pop(f"{layer}experts.{e}.{part}_proj.weight")  # noqa: E731
    each = range(cfg.n_routed_experts)
    gate_up = [torch.cat([take(e, "gate"), take(e, "up")]) for e in each]
    tensors[f"{layer}experts.gate_up_proj"] = torch.stack(gate_up)
    tensors[f"{layer}experts.down_proj"] = torch.stack([take(e, "down") for e in each])
    tensors[f"{layer}shared_expert_gate.weight"] = torch.zeros(1, cfg.dim)  # sigmoid(0) is a constant one half
    if not cfg.n_shared_experts:  # stock Qwen2-MoE always has one: of zeros it adds nothing
        for part, shape in (("gate", (-1, cfg.dim)), ("up", (-1, cfg.dim)), ("down", (cfg.dim, -1))):
            tensors[f"{layer}shared_expert.{part}_proj.weight"] = torch.zeros(cfg.dim * cfg.hidden_dim).view(shape)


def hide_bars():
    """Turns transformers' own progress bars off: loading takes no time here."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def to_stock_model(model, tokenizer):
    """A Transformer → stock LlamaForCausalLM or Qwen2MoeForCausalLM in eval mode, fp32."""
    from transformers import LlamaForCausalLM, Qwen2MoeForCausalLM

    hide_bars()
    kind = Qwen2MoeForCausalLM if model.cfg.use_moe else LlamaForCausalLM
    stock = kind(stock_config(model.cfg, tokenizer))
    stock.load_state_dict(stock_state(model), strict=True)
    return stock.eval()


class Parity(NamedTuple):
    """How far an exported folder is from the checkpoint: logits relative to the largest, greedy tokens that agree."""

    logits: float
    tokens: int


def save_hugging_face(model, tokenizer, folder):
    """Writes the files aside, loads them again as anyone would, compares, and moves them into the folder → Parity.

    Raises:
        ValueError: their logits differ by more than 1e-5 of the largest, or their argmax or greedy text does; the
            folder is as it was.
    """
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    try:
        write_folder(model, tokenizer, aside)
        found = compare(model, tokenizer, aside)
        folder.mkdir(exist_ok=True)
        for file in aside.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(aside)
    return found


def write_folder(model, tokenizer, folder):
    """Writes tokenizer, configuration and weights into an empty folder."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if not (tokenizer.path / file).is_file():
            raise FileNotFoundError(f"no {file} in {tokenizer.path}; stock AutoTokenizer needs it")
        shutil.copyfile(tokenizer.path / file, folder / file)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["model_max_length"] = model.cfg.max_seq_len
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    model = model.cpu().float().eval()
    to_stock_model(model, tokenizer).save_pretrained(folder)


@torch.inference_mode()
def logits_of_both(model, stock):
    """Logits of the same random ids: a Transformer's, a stock model's, and the largest difference over the largest."""
    length = min(SAMPLE, model.cfg.max_seq_len)
    ids = torch.randint(3, model.cfg.vocab_size, (2, length), generator=torch.manual_seed(0))
    ours, theirs = model(ids).logits, stock(ids).logits
    return ours, theirs, float((ours - theirs).abs().max() / ours.abs().max())


@torch.inference_mode()
def first_difference(model, stock):
    """Where a Transformer and a stock model part: "the embeddings", "layer 0", …, or "the output"."""
    found = ([], [])
    of_both = ((model.tok_embeddings, *model.layers), (stock.model.embed_tokens, *stock.model.layers))
    keep = lambda own: lambda layer, given, out: own.append(out if torch.is_tensor(out) else out[0])  # noqa: E731
    hooks = [part.register_forward_hook(keep(own)) for own, parts in zip(found, of_both) for part in parts]
    logits_of_both(model, stock)
    for hook in hooks:
        hook.remove()
    names = ["the embeddings", *(f"layer {i}" for i in range(len(model.layers)))]
    apart = (n for n, a, b in zip(names, *found) if float((a - b).abs().max()) > 1e-4 * float(a.abs().max()))
    return next(apart, "the output")


@torch.inference_mode()
def compare(model, tokenizer, folder):
    """A checkpoint's model against a folder loaded by stock transformers → Parity; ValueError where they differ."""
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ours, theirs, difference = logits_of_both(model, stock)
    length = ours.shape[1]
    start = torch.randint(3, tokenizer.vocab_size, (1, 4), generator=torch.manual_seed(0))
    expected = list(generate(model, start[0].tolist(), Sampling(temperature=0, max_new_tokens=length - 4)))
    greedy = {"do_sample": False, "max_new_tokens": length - 4, "eos_token_id": None, "pad_token_id": 0}
    written = stock.generate(start, attention_mask=torch.ones_like(start), **greedy)[0, 4:].tolist()
    if difference > 1e-5 or not torch.equal(ours.argmax(-1), theirs.argmax(-1)) or written != expected:
        raise ValueError(
            f"the export does not compute what the checkpoint does: logits differ by {difference:.1e} of the largest, "
            f"first behind {first_difference(model, stock)}"
        )
    return Parity(difference, len(written))
