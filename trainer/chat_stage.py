"""What the stages after pretraining share: the checkpoint they start from, and conversations to train on."""

import dataclasses
from pathlib import Path

import numpy as np
from safetensors.torch import save as to_safetensors

from model.dataset import Mixed, PretrainDataset, SFTDataset, split_rows
from model.files import code_digest, digest_of, input_digest
from model.lora import BASE_WEIGHTS, adapted, merged_state, peft_config, peft_tensors, weights_fingerprint
from trainer import checkpoint
from trainer.run import Data

CLEANING = Path(__file__).parent.parent / "cleaning"  # edited, it may make other records of the same files


def start_from(cfg, stages, runtime, **overrides):
    """The model a stage begins with → (Transformer, ChatTokenizer); cfg.init_from then names its file.

    Args:
        cfg: a ChatConfig; init_from, tokenizer and max_seq_len may be unset.
        stages: without init_from, the newest checkpoint of the first of these that has one.
        overrides: LMConfig fields that change no tensor.
    """
    cfg.init_from = str(cfg.init_from or checkpoint.latest_stage(cfg.out_dir, stages))
    set_here = {name: getattr(cfg, name, None) for name in ("max_seq_len", "dropout")}
    overrides = {name: value for name, value in set_here.items() if value is not None} | overrides
    model, tokenizer, about = checkpoint.open_checkpoint(cfg.init_from, "cpu", cfg.tokenizer, **overrides)
    runtime.say(f"from      {cfg.init_from} ({about.get('stage', 'no description beside it')})")
    return model, tokenizer


def split(dataset, cfg, runtime, **more):
    """A data set → Data, with cfg.val_fraction of its rows held out; says how many records it holds."""
    counted = ", ".join(f"{count:,} {what}" for what, count in dataset.counts.items() if count)
    runtime.say(f"records   {counted} (rows of {dataset.T})")
    train_rows, val_rows = split_rows(len(dataset), cfg.val_fraction, cfg.seed)
    return Data(dataset, train_rows, dataset if len(val_rows) else None, val_rows, **more)


def adapter_folder(path):
    """Where the adapter of a merged checkpoint lies: beside it, under its name."""
    return path.with_suffix("")


def save_adapter(cfg, path, model, description):
    """The save_weights of a LoRA run: the adapter in PEFT's format in <path without .pth>/, then the merged .pth."""
    folder = adapter_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", BASE_WEIGHTS: weights_fingerprint(model)}
    tensors = to_safetensors(peft_tensors(model), metadata=metadata)
    checkpoint.write_atomically(folder / "adapter_model.safetensors", lambda f: f.write(tensors))
    checkpoint.save_json(folder / "adapter_config.json", peft_config(cfg, model, cfg.init_from))
    lora = {"base": cfg.init_from, "rank": cfg.rank, "alpha": cfg.alpha, "layers": len(adapted(model))}
    checkpoint.save_weights(path, model, {**description, "lora": lora}, merged_state(model))


def load_conversations(cfg, T, tokenizer, runtime, clean):
    """The Data of a stage that learns from conversations: packed rows, with old rows among them for --replay.

    Args:
        cfg: an SFTConfig or LoRAConfig.
        clean: as in prepared.
    """
    cache = Path(cfg.out_dir) / "cache"
    data = split(SFTDataset(prepared("sft", cfg, clean), T, tokenizer, cache), cfg, runtime)
    if cfg.replay:
        data, count = replayed(data, PretrainDataset(cfg.replay_path, T, tokenizer, cache), cfg.replay, cfg.seed)
        reached = count / len(data.train_rows)
        missed = reached < cfg.replay - 0.01  # rounding to whole rows aside
        short = f": {reached:.0%} of all, {cfg.replay:.0%} asked for, which is all there are" if missed else ""
        runtime.say(f"replay    {count:,} rows of {cfg.replay_path}{short}")
    return data


def replayed(data, old, share, seed):
    """Data with rows of pretraining text among the training rows, against forgetting.

    Args:
        data: Data of the stage.
        old: a PretrainDataset with the same T.
        share: of all training rows, those that are old.
    """
    wanted = round(len(data.train_rows) * share / (1 - share))
    drawn = np.random.default_rng(seed).permutation(len(old))[:wanted]
    train = Mixed(data.train, old)
    rows = np.concatenate([data.train_rows, len(data.train) + np.sort(drawn)])
    return dataclasses.replace(data, train=train, train_rows=rows), len(drawn)


def prepared(kind, cfg, clean):
    """The data of cfg.data_path in the one form, as a file in out_dir/cache that is made once.

    Args:
        kind: 'sft' or 'dpo'.
        clean: (kind, path, output) → writes the file; see data_process.py.
    """
    path = Path(cfg.data_path)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}; make it with: python data_process.py {kind} --output {path}")
    made_from = digest_of([input_digest(path), code_digest(CLEANING)])
    file = Path(cfg.out_dir, "cache", f"{path.stem}_{kind}_{made_from}.jsonl")
    if not file.is_file():
        clean(kind, path, file)
    return file
