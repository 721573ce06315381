"""Checkpoints → one GGUF file that llama.cpp, Ollama and LM Studio load as it is.

A dense model is llama.cpp's "llama": the same adjacent rotary pairs, so no weight moves. With experts it is its
"bailingmoe": a shared expert without a gate, and chosen experts whose weights may be made to sum to one.
The tokenizer is byte-level BPE ("gpt2") behind the pre-tokenizer that llama.cpp knows as "smollm".
"""

import json
import os
from pathlib import Path

import numpy as np
import torch

from inference.export import refuse_biases

PARTS = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "feed_forward.gate": "ffn_gate_inp",
    "feed_forward.shared_experts.w1": "ffn_gate_shexp",
    "feed_forward.shared_experts.w2": "ffn_down_shexp",
    "feed_forward.shared_experts.w3": "ffn_up_shexp",
}
EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
TOP = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
PRE_TOKENIZER = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
]
ROUNDED = {"f32": 0.0, "f16": 1e-3, "q8_0": 1e-2}  # what a format takes off a weight, of the largest in its matrix
CLOSE = {"f32": 1e-2, "f16": 2e-2, "q8_0": 1e-1}  # off the logits, of the largest; llama.cpp keeps keys in fp16 always
TYPES = tuple(ROUNDED)


def tensors_of(model):
    """Yields (name in the file, fp32 array); experts of a layer stacked, the tied output left out where it may be."""
    cfg, state = model.cfg, {k.removesuffix(".weight"): v.detach().float() for k, v in model.state_dict().items()}
    for name, weight in state.items():
        layer, _, part = name.removeprefix("layers.").partition(".")
        if name in TOP:
            if name != "output" or cfg.use_moe:  # "llama" reads the embeddings twice; "bailingmoe" wants its own copy
                yield f"{TOP[name]}.weight", weight.numpy()
        elif part in PARTS:
            yield f"blk.{layer}.{PARTS[part]}.weight", weight.numpy()
    if cfg.use_moe:
        for layer in range(cfg.n_layers):
            own = f"layers.{layer}.feed_forward."
            for part, renamed in EXPERTS.items():
                each = [state[f"{own}experts.{e}.{part}"] for e in range(cfg.n_routed_experts)]
                yield f"blk.{layer}.{renamed}.weight", torch.stack(each).numpy()
            if not cfg.n_shared_experts:  # the file's architecture always has one: of zeros it adds nothing
                for part, like in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                    yield (
                        f"blk.{layer}.ffn_{part}_shexp.weight",
                        torch.zeros_like(state[f"{own}experts.0.{like}"]).numpy(),
                    )


def write_shape(writer, cfg):
    """The fields that tell llama.cpp the model's shape."""
    from gguf import RopeScalingType

    kind, factor = cfg.rope_rule
    ntk = factor ** (cfg.head_dim / (cfg.head_dim - 2)) if kind == "ntk" else 1.0
    writer.add_context_length(cfg.max_seq_len)
    writer.add_embedding_length(cfg.dim)
    writer.add_block_count(cfg.n_layers)
    writer.add_feed_forward_length(cfg.hidden_dim)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_kv_heads)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta * ntk)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(int(cfg.max_seq_len / factor))
    if cfg.use_moe:
        writer.add_leading_dense_block_count(0)
        writer.add_expert_count(cfg.n_routed_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_shared_count(1)
        writer.add_expert_feed_forward_length(cfg.hidden_dim)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(cfg.norm_topk_prob and cfg.num_experts_per_tok > 1)


def write_tokenizer(writer, tokenizer, vocab_size):
    """The vocabulary, its merges, the chat template; ValueError for a tokenizer that llama.cpp would read otherwise."""
    from gguf import TokenType

    file = json.loads((tokenizer.path / "tokenizer.json").read_text(encoding="utf-8"))
    steps = (file["pre_tokenizer"] or {}).get("pretokenizers", [file["pre_tokenizer"]])
    known = [{k: step.get(k) for k in wanted} for step, wanted in zip(steps, PRE_TOKENIZER)]
    if (
        known != PRE_TOKENIZER
        or len(steps) != len(PRE_TOKENIZER)
        or file["normalizer"]
        or file["model"]["type"] != "BPE"
    ):
        raise ValueError(
            f"{tokenizer.path} splits text in another way than llama.cpp's 'smollm' (digits one by one, then GPT-2's "
            "pattern); tokenizers made by train_tokenizer.py can be written, this one cannot"
        )
    special = {t["id"] for t in file["added_tokens"] if t["special"]}
    names = [tokenizer.backend.id_to_token(i) or f"[unused{i}]" for i in range(vocab_size)]
    kinds = [TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(vocab_size)]
    kinds[tokenizer.vocab_size :] = [TokenType.UNUSED] * (vocab_size - tokenizer.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in file["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    config = tokenizer.path / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if template:
        writer.add_chat_template(template)


def check_weights(model, path, kind):
    """ValueError if a weight in the file is not the model's, but for what `kind` rounds off."""
    import gguf

    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, weight in tensors_of(model):
        found = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type) if name in stored else None
        if found is None or abs(found.reshape(weight.shape) - weight).max() > ROUNDED[kind] * abs(weight).max():
            raise ValueError(f"the file does not hold the checkpoint's weights: {name} differs")


@torch.inference_mode()
def logits_apart(model, path, kind):
    """How far llama.cpp's logits with the file are from the model's, relative to the largest; None: not installed.

    The median over positions: at one of them, rounding may send a token to another expert.

    Raises:
        ValueError: further than the numbers' format explains.
    """
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    ids = torch.randint(3, model.cfg.vocab_size, (min(32, model.cfg.max_seq_len),), generator=torch.manual_seed(0))
    llama = Llama(str(path), n_ctx=model.cfg.max_seq_len, n_gpu_layers=0, logits_all=True, verbose=False)
    llama.eval(ids.tolist())
    theirs, ours = torch.tensor(llama.scores[: len(ids)]), model(ids[None]).logits[0]
    difference = float((theirs - ours).abs().amax(-1).median() / ours.abs().max())
    if difference > CLOSE[kind]:
        raise ValueError(f"llama.cpp computes something else with the file: logits differ by {difference:.1e}")
    return difference


def save_gguf(model, tokenizer, path, kind="f16", name="minimind"):
    """Writes the file, reads it again and compares; whole or not at all.

    Args:
        kind: "f32", "f16" or "q8_0" (blocks of 32 weights with a common scale); norms and routers stay fp32.
    Returns:
        how far logits of llama.cpp are from the model's, relative to the largest; None where it is not installed.
    Raises:
        ImportError: gguf is not installed. ValueError: the tokenizer is not one that llama.cpp knows, the experts have
            biases, or what was written differs from the model by more than `kind` rounds.
    """
    refuse_biases(model.cfg)
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files need the gguf package: pip install -r requirements-serve.txt") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(temporary, "bailingmoe" if model.cfg.use_moe else "llama")
    types = gguf.GGMLQuantizationType
    try:
        writer.add_name(name)
        files = {
            "f32": gguf.LlamaFileType.ALL_F32,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }
        writer.add_file_type(files[kind])
        write_shape(writer, model.cfg)
        write_tokenizer(writer, tokenizer, model.cfg.vocab_size)
        for tensor, weight in tensors_of(model):
            if weight.ndim == 1 or "ffn_gate_inp" in tensor or kind == "f32":
                writer.add_tensor(tensor, weight)
            elif kind == "q8_0" and weight.shape[-1] % 32 == 0:
                writer.add_tensor(tensor, gguf.quants.quantize(weight, types.Q8_0), raw_dtype=types.Q8_0)
            else:
                writer.add_tensor(tensor, weight.astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        check_weights(model, temporary, kind)
        difference = logits_apart(model, temporary, kind)
        os.replace(temporary, path)
        return difference
    finally:
        temporary.unlink(missing_ok=True)
