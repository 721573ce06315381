"""From what a person names to a model that answers: a checkpoint, and an adapter on its base."""

import json
import re
from pathlib import Path

from model.lora import load_adapter
from trainer import args
from trainer.checkpoint import newest, open_checkpoint
from trainer.runtime import choose_device


def add_model_flags(parser, model="checkpoint"):
    """Adds the flags that name a model; `model` says what may be named."""
    args.add_flag(parser, "model", help=f"{model} (default: the newest checkpoint in --out_dir)")
    args.add_flag(parser, "lora", metavar="NAME", help="adapter: a name in --out_dir, or a folder in PEFT's format")
    args.add_flag(parser, "out_dir", default="out", help="where to look for checkpoints (default: out)")
    args.add_flag(parser, "tokenizer", help="tokenizer folder (default: the one recorded in the checkpoint)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")


def add_int8_flag(parser):
    """Adds --int8."""
    text = "weights of 8 bits: a quarter of the memory, no faster on a CPU; an adapter is merged first"
    args.add_flag(parser, "int8", action="store_true", help=text)


def adapter_path(name, out_dir, cfg=None):
    """The folder of adapter `name`: a path, a folder in out_dir, or its lora_<name>_<dim>[_moe].

    Args:
        cfg: LMConfig of the model it is for; among adapters of several widths it decides.
    Raises:
        FileNotFoundError: none of that name; it lists what is there. ValueError: several, and nothing decides.
    """
    if Path(name, "adapter_config.json").is_file():
        return Path(name)
    there = {p.parent.name: p.parent for p in Path(out_dir).glob("*/adapter_config.json")}
    whole = re.compile(rf"{re.escape(name)}|lora_{re.escape(name)}_\d+(_moe)?")
    found = [stem for stem in sorted(there) if whole.fullmatch(stem)]
    if not found:
        raise FileNotFoundError(
            f"no adapter {name} in {out_dir} (there: {', '.join(sorted(there)) or 'none'}). "
            f"Make it with: python 4-lora_sft.py --lora_name {name}"
        )
    if len(found) > 1 and cfg:
        found = [stem for stem in found if stem == f"lora_{name}_{cfg.dim}{'_moe' if cfg.use_moe else ''}"] or found
    if len(found) > 1:
        raise ValueError(f"{out_dir} has {' and '.join(found)}; name one of them, or the --model that it is for")
    return there[found[0]]


def base_of(adapter):
    """The checkpoint that the adapter in folder `adapter` names as its base."""
    file = adapter / "adapter_config.json"
    try:
        return Path(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not name the adapter's base ({error!r}); name it with --model") from error


def open_model(path, lora, out_dir, device="cpu", tokenizer_dir=None):
    """A checkpoint, with an adapter on if one is asked for → (model, tokenizer, description, path, adapter).

    Args:
        path: checkpoint; None: the base that the adapter names, or else the newest in out_dir.
        lora: as in adapter_path; None: no adapter.
    Returns:
        the model in eval mode; path: of the checkpoint; adapter: its folder, or None.
    """
    adapter = None
    if lora and not path:
        adapter = adapter_path(lora, out_dir)
        path = base_of(adapter)
    path = Path(path or newest(out_dir))
    model, tokenizer, about = open_checkpoint(path, device, tokenizer_dir)
    if lora:
        adapter = adapter or adapter_path(lora, out_dir, model.cfg)
        load_adapter(model, adapter, path)
    return model, tokenizer, about, path, adapter


def open_typed(typed):
    """open_model with what was typed behind the flags of add_model_flags."""
    return open_model(typed.model, typed.lora, typed.out_dir, choose_device(typed.device), typed.tokenizer)


def told(model, about, path, adapter):
    """The line that says which model answers; arguments as open_model returns them."""
    line = f"{path}: {about.get('stage', path.stem)}, {model.n_params():,} parameters"
    return line + (f", adapter {adapter}" if adapter else "")
