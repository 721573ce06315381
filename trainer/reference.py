"""Is my loss normal? A run is compared with a recorded one of its shape and tokenizer (benchmarks/reference/*.json)."""

import bisect
import json
import math
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks" / "reference"
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "use_moe")
TRACKS = "tracks it"
BAND = 0.08  # other text, rates and row lengths move a normal loss by this share
STEPS_ALIKE = 2  # times as many tokens a step: of a larger step a token teaches less


def reference_for(cfg, stage, tokenizer_hash, tokens_per_step):
    """The recorded curve that a pretraining run can be compared with, or None. Of several the one of most alike steps.

    Args:
        cfg: an LMConfig.
        stage: 'pretrain'; other stages start from models that differ.
        tokenizer_hash: a loss per token means little under another tokenizer.
        tokens_per_step: positions in the rows of one optimizer step.
    """
    if stage != "pretrain":
        return None
    own = {name: getattr(cfg, name) for name in SHAPE}
    curves = [{**json.loads(f.read_text(encoding="utf-8")), "file": f.name} for f in sorted(FOLDER.glob("*.json"))]
    curves = [c for c in curves if c["shape"] == own and c["tokenizer_hash"] == tokenizer_hash]
    return min(curves, key=lambda c: abs(math.log(tokens_per_step / c["tokens_per_step"])), default=None)


def like_steps(curve, tokens_per_step):
    """Whether a run with steps of so many tokens can be compared with a curve: theirs are about as large."""
    return 1 / STEPS_ALIKE <= tokens_per_step / curve["tokens_per_step"] <= STEPS_ALIKE


def loss_at(curve, tokens):
    """The recorded validation loss after so many tokens, nats per token, between its points; None outside of them."""
    xs, ys = curve["tokens"], curve["val_loss"]
    if not xs[0] <= tokens <= xs[-1]:
        return None
    i = max(1, bisect.bisect_left(xs, tokens))
    share = (tokens - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


def judged(curve, tokens, loss):
    """{'reference_loss': …, 'tracks': TRACKS or how far off it is}; {} where there is nothing to compare."""
    expected = loss_at(curve, tokens) if curve else None
    if expected is None:
        return {}
    off = loss / expected - 1
    words = TRACKS if abs(off) <= BAND else f"{abs(off):.0%} {'above' if off > 0 else 'below'} it"
    return {"reference_loss": expected, "tracks": words}


def curve_of(log, description):
    """A reference curve from a run's .jsonl log and the .json beside its checkpoint, both as read.

    Args:
        log: list of records.
        description: dict.
    """
    trained = {r["step"]: r["tokens"] for r in log if "tokens" in r}
    last = max(trained)
    points = [(trained[r["step"]], r["val_loss"]) for r in log if "val_loss" in r and r["step"] in trained]
    settings = description["settings"]
    return {
        "shape": {name: description["config"][name] for name in SHAPE},
        "tokenizer_hash": description["tokenizer_hash"],
        "tokens_per_step": round(trained[last] / last),
        "tokens": [tokens for tokens, _ in points],
        "val_loss": [loss for _, loss in points],
        "settings": {k: settings[k] for k in ("optimizer", "learning_rate", "schedule", "max_steps", "doc_mask")},
        "max_seq_len": description["config"]["max_seq_len"],
        **{k: description[k] for k in ("command", "machine", "saved", "versions")},
    }
