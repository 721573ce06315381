"""Files from elsewhere → checkpoints of this project: stock Llama and Qwen2-MoE folders, MiniMind v1's .pth.

The inverse of inference/export.py, bit for bit where the folder is fp32. Only what this project's model computes can
come in: tied embeddings, no biases, one expert layer like the next; anything else is an error that says what differs.
"""

import json
import re
from pathlib import Path

import torch

from inference.export import NORMS, first_difference, hide_bars, logits_of_both
from inference.model_card import read_mark
from model.chat import load_tokenizer
from model.huggingface import from_stock, own_name
from model.LMConfig import LMConfig
from model.model import Transformer
from trainer.checkpoint import infer_config, load_file, load_strictly

THEIR_NORMS = {theirs: ours for ours, theirs in NORMS.items()}
EMBEDDING = "model.embed_tokens.weight"
YARN = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"}  # what ours is told by
CLOSE = 1e-4  # of the largest logit; fp32 in another order is some 1e-6 off


def read_config(folder):
    """config.json of a stock Llama or Qwen2-MoE folder → LMConfig; ValueError names what this model does not have."""
    theirs = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    kind = (theirs.get("architectures") or ["?"])[0]
    if kind not in ("LlamaForCausalLM", "Qwen2MoeForCausalLM"):
        raise ValueError(f"{folder} is a {kind}; LlamaForCausalLM and Qwen2MoeForCausalLM can be imported")
    moe = kind.startswith("Qwen2Moe")
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
    differs = {
        "an output matrix of its own": not theirs.get("tie_word_embeddings"),
        "biases in attention": theirs.get("attention_bias") or theirs.get("qkv_bias", moe),
        "biases in the feed-forward": theirs.get("mlp_bias"),
        f"activation {theirs.get('hidden_act')}": theirs.get("hidden_act") != "silu",
        "heads of another size": head_dim * theirs["num_attention_heads"] != theirs["hidden_size"],
        "sliding windows": theirs.get("use_sliding_window"),
        "layers without experts": moe and (theirs.get("decoder_sparse_step", 1) != 1 or theirs.get("mlp_only_layers")),
        "a shared expert of another size": moe
        and theirs["shared_expert_intermediate_size"] != theirs["moe_intermediate_size"],
    }
    if any(differs.values()):
        raise ValueError(f"{folder} has {', '.join(k for k, v in differs.items() if v)}, which this model has not")
    rope = theirs.get("rope_parameters") or {
        "rope_theta": theirs.get("rope_theta", 10000.0),
        **(theirs.get("rope_scaling") or {}),
    }
    rule = rope.get("rope_type") or rope.get("type") or "default"  # the second is how it was named before
    if rule not in ("default", "yarn"):
        raise ValueError(f"{folder} scales RoPE by {rule!r}; this model has default, NTK (as a larger base) and YaRN")
    context = theirs["max_position_embeddings"]
    if rule == "yarn":
        more = sorted(name for name, value in rope.items() if name not in YARN and value is not None)
        if more:
            raise ValueError(f"{folder} stretches RoPE by YaRN with {', '.join(more)}, which this model does not have")
        trained = rope.get("original_max_position_embeddings") or context
        context = context if int(context / rope["factor"]) == trained else int(trained * rope["factor"])
    heads = theirs["num_attention_heads"]
    cfg = {
        "dim": theirs["hidden_size"],
        "n_layers": theirs["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": theirs.get("num_key_value_heads") or heads,
        "vocab_size": theirs["vocab_size"],
        "hidden_dim": theirs["moe_intermediate_size" if moe else "intermediate_size"],
        "norm_eps": theirs.get("rms_norm_eps", 1e-6),  # transformers' own default
        "max_seq_len": context,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": f"yarn:{rope['factor']:g}" if rule == "yarn" else None,
    }
    if moe:
        cfg |= {
            "use_moe": True,
            "n_routed_experts": theirs["num_experts"],
            "num_experts_per_tok": theirs["num_experts_per_tok"],
            "norm_topk_prob": theirs["norm_topk_prob"],
        }
    return LMConfig(**cfg)


def own_state(stock, cfg):
    """A stock model's state dict → ours; ValueError if its shared experts are gated, which ours are not."""
    tensors = {}
    for name, weight in stock.items():
        part = name.removesuffix(".weight")
        if part in ("lm_head", "model.embed_tokens"):
            tensors["output.weight"] = tensors["tok_embeddings.weight"] = stock[EMBEDDING]
        elif part == "model.norm":
            tensors["norm.weight"] = weight
        elif part.rpartition(".")[2] in THEIR_NORMS:
            _, _, layer, norm = part.split(".")
            tensors[f"layers.{layer}.{THEIR_NORMS[norm]}.weight"] = weight
        elif part.endswith("shared_expert_gate"):
            if weight.any():
                raise ValueError(f"{name} is not zero: this model's shared expert has no gate, so it would differ")
        elif ".mlp.experts." in part:
            layer = f"layers.{part.split('.')[2]}.feed_forward.experts"
            for e in range(cfg.n_routed_experts):
                if part.endswith("gate_up_proj"):
                    tensors[f"{layer}.{e}.w1.weight"], tensors[f"{layer}.{e}.w3.weight"] = weight[e].chunk(2)
                else:
                    tensors[f"{layer}.{e}.w2.weight"] = weight[e]
        else:
            own = own_name(part)
            tensors[f"{own}.weight"] = from_stock(own, weight, cfg)
    return tensors


def import_folder(folder):
    """A stock Llama or Qwen2-MoE folder → (Transformer, its tokenizer); ValueError says what cannot be imported."""
    from transformers import AutoModelForCausalLM

    if not Path(folder, "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}, so it is no Hugging Face model")
    cfg = read_config(folder)
    hide_bars()
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model = Transformer(cfg)
    load_strictly(model, own_state(stock.state_dict(), cfg), folder)
    *_, difference = logits_of_both(model.eval(), stock.eval())
    if difference > CLOSE:
        raise ValueError(
            f"{folder} computes something that this model cannot: logits differ by {difference:.1e} of the largest, "
            f"first behind {first_difference(model, stock)}; its config.json has a setting that is not known here"
        )
    return model, load_tokenizer(folder)


def import_v1(path, tokenizer_dir=None):
    """A MiniMind v1 .pth → (Transformer, tokenizer); the number of heads is MiniMind's, as its file does not say it."""
    state = {name.removeprefix("_orig_mod.").removeprefix("module."): w for name, w in load_file(path).items()}
    model = Transformer(infer_config(state))
    load_strictly(model, state, path)
    return model.eval(), load_tokenizer(tokenizer_dir)


def stage_of(path, output):
    """The stage of what is imported: as an export of ours recorded it, else by its or the new file's name.

    Only a model of a stage before chats continues text; MiniMind's names are full_sft_512.pth, rlhf_768_moe.pth.
    """
    names = [found[1] for p in (path, output) if (found := re.fullmatch(r"([a-z_]+?)_\d+(_moe)?\.pth", Path(p).name))]
    return read_mark(path).get("stage") or (names[0] if names else "pretrain")
