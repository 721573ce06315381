"""Checkpoints: whole or absent, exact, and describing themselves.

out/<stage>_<dim>[_moe].pth   the weights: a plain state dict in fp32 under MiniMind v1's names
                      .json   what they are: config, stage, tokenizer, steps, losses, versions
..._resume.pth                all that an exact continuation needs; with --sharded_state it names a folder in out/kept
"""

import dataclasses
import json
import os
import pickle
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

from model.chat import load_tokenizer
from model.files import write_atomically
from model.LMConfig import LMConfig
from model.model import Transformer
from trainer.runtime import machine

STAGES = {
    "pretrain": "1-pretrain.py",
    "full_sft": "3-full_sft.py",
    "lora": "4-lora_sft.py",
    "dpo": "5-dpo_train.py",
}


def is_chat_stage(stage):
    """Whether checkpoints of a stage were trained on conversations; MiniMind's files tell the stage by their names."""
    return not stage.startswith(("pretrain", "huggingface"))


def checkpoint_path(out_dir, stage, cfg):
    """out/pretrain_512.pth, out/pretrain_512_moe.pth"""
    return Path(out_dir) / f"{stage}_{cfg.dim}{'_moe' if cfg.use_moe else ''}.pth"


def resume_path(path):
    """The file beside checkpoint `path` that a run continues from."""
    return path.with_name(f"{path.stem}_resume.pth")


def prepare_out_dir(out_dir, flag="out_dir"):
    """Creates the folder and proves that it can be written, before hours are spent."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {flag} {out_dir}: {error.strerror}; choose another with --{flag}") from error


def save_json(path, value):
    """Writes readable UTF-8 JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, lambda f: f.write(text.encode("utf-8")))


def describe(cfg, stage, tokenizer, **facts):
    """What the .json beside a checkpoint says."""
    return {
        "stage": stage,
        "config": dataclasses.asdict(cfg),
        "tokenizer_hash": tokenizer.hash,
        "tokenizer": relative(tokenizer.path),
        **facts,
        **provenance(),
    }


def relative(path):
    """A path as seen from here; whole where that cannot be, because it lies on another drive."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return os.path.abspath(path)


def provenance():
    """What made a file: versions, machine, command, time."""
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": machine(),
        "command": " ".join(sys.argv),
        "saved": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def save_weights(path, model, description, state=None):
    """Writes the state dict, the model's own if none is given, and its description."""
    state = {name: tensor.detach().float().cpu() for name, tensor in (state or model.state_dict()).items()}
    state["output.weight"] = state["tok_embeddings.weight"]  # one tensor on disk, as in memory
    save_json(path.with_suffix(".json"), description)  # first: weights without it would have to be guessed about
    write_atomically(path, lambda f: torch.save(state, f))


def load_file(path, device="cpu", mmap=False):
    """torch.load without pickled code; a missing, cut-off or foreign file is a ValueError with the next step.

    With `mmap` only what is looked at is read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(missing_message(path))
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        if path.suffix not in (".pth", ".pt"):
            raise ValueError(f"{path} is not a checkpoint; give a .pth file, such as out/pretrain_512.pth") from error
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise ValueError(
            f"{path} is not a whole checkpoint ({path.stat().st_size:,} bytes; it is cut off or something else): "
            f"delete it and run its stage again. PyTorch says: {reason}"
        ) from error


def missing_message(path):
    """'no checkpoint at …', with what is there and the command that makes it."""
    there = sorted(p.name for p in path.parent.glob("*.pth") if not p.stem.endswith("_resume"))
    stage = next((s for s in STAGES if path.name.startswith(s)), "pretrain")
    return f"no checkpoint at {path} (there: {', '.join(there) or 'none'}). Make it with: python {STAGES[stage]}"


def of_stage(out_dir, stage):
    """The checkpoints of a stage, without the files that runs continue from."""
    return [p for p in Path(out_dir).glob(f"{stage}_*.pth") if not p.stem.endswith("_resume")]


def newest(out_dir, stages=tuple(STAGES)):
    """The most recently written checkpoint of the given stages; FileNotFoundError if there is none."""
    found = [p for s in stages for p in of_stage(out_dir, s)]
    if not found:
        raise FileNotFoundError(missing_message(Path(out_dir) / f"{stages[0]}_512.pth"))
    return max(found, key=lambda p: p.stat().st_mtime_ns)


def latest_stage(out_dir, stages):
    """The newest checkpoint of the first of `stages` that has any."""
    return newest(out_dir, [next((s for s in stages if of_stage(out_dir, s)), stages[0])])


def infer_config(state):
    """The LMConfig of a state dict without a description (a MiniMind v1 file), from its tensors' shapes.

    The number of heads cannot be seen in the tensors; MiniMind's 16 is assumed, or fewer for a narrow model.
    """
    try:
        vocab_size, dim = state["tok_embeddings.weight"].shape
        kv_width = state["layers.0.attention.wk.weight"].shape[0]
    except KeyError as missing:
        raise ValueError(
            f"this is no MiniMind checkpoint: it has no {missing}; its first keys: {list(state)[:4]}"
        ) from missing
    n_heads = 16 if dim % 16 == 0 and (16 * kv_width) % dim == 0 else dim // 64
    experts = {int(m[1]) for k in state if (m := re.match(r"layers\.0\.feed_forward\.experts\.(\d+)\.", k))}
    w1 = "layers.0.feed_forward.experts.0.w1.weight" if experts else "layers.0.feed_forward.w1.weight"
    return LMConfig(
        dim=dim,
        vocab_size=vocab_size,
        n_layers=1 + max(int(m[1]) for k in state if (m := re.match(r"layers\.(\d+)\.", k))),
        n_heads=n_heads,
        n_kv_heads=n_heads * kv_width // dim,
        hidden_dim=state[w1].shape[0],
        use_moe=bool(experts),
        n_routed_experts=len(experts) or 4,
        n_shared_experts=any("shared_experts" in k for k in state) if experts else True,
    )


def load_model(path, device="cpu", **overrides):
    """A checkpoint → (Transformer in eval mode, description dict; without a .json only its config is known).

    Args:
        overrides: LMConfig fields that change no tensor, such as max_seq_len or rope_scaling.
    Raises:
        FileNotFoundError, ValueError: absent, cut off, or tensors that do not fit the config, each with the next step.
    """
    path = Path(path)
    stored = load_file(path)
    if not isinstance(stored, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in stored.items()):
        raise ValueError(f"{path} holds no weights by name; it is something else than a checkpoint of a model")
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", k): v for k, v in stored.items()}
    sidecar = path.with_suffix(".json")
    description = read_description(sidecar) if sidecar.is_file() else {}
    config = description.get("config") or dataclasses.asdict(infer_config(state))
    cfg = LMConfig(**{**config, **overrides})
    model = Transformer(cfg)
    load_strictly(model, state, path)
    return model.to(device).eval(), {**description, "config": dataclasses.asdict(cfg)}


def read_description(file):
    """The dict in a .json beside a checkpoint; ValueError names a file that is cut off or has unknown fields."""
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        LMConfig(**description["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not describe a checkpoint ({error}); delete it or run its stage again"
        ) from error
    return description


def open_checkpoint(path, device="cpu", tokenizer_dir=None, **overrides):
    """A checkpoint with the tokenizer it was trained with → (model in eval mode, ChatTokenizer, description).

    Args:
        tokenizer_dir: unset: the folder recorded in the checkpoint, or the project's own if that is gone.
        overrides: as in load_model.
    Raises:
        ValueError: the tokenizer is another one than the checkpoint's.
    """
    model, about = load_model(path, device, **overrides)
    recorded = about.get("tokenizer")
    if tokenizer_dir is None and recorded and Path(recorded, "tokenizer.json").is_file():
        tokenizer_dir = recorded
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.check(about.get("tokenizer_hash"), model.cfg.vocab_size, path)
    return model, tokenizer, about


def load_strictly(model, state, path):
    """load_state_dict(strict=True) whose error names the first differing key and the likely cause."""
    own = model.state_dict()
    wrong = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    wrong += [f"{k}: not in the file" for k in own if k not in state] + [
        f"{k}: not in the model" for k in state if k not in own
    ]
    if wrong:
        raise ValueError(
            f"{path} has another shape than this model ({len(wrong)} tensors differ, the first: {wrong[0]}); "
            "leave out shape flags, or use the .json that was saved with it"
        )
    model.load_state_dict(state, strict=True)
