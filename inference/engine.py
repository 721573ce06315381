"""Text out of a model: one token at a time through a cache, whole characters to the screen."""

import codecs
from dataclasses import dataclass

import torch

from inference.sampling import penalise_repeats, pick
from model.kv_cache import KVCache
from model.LMConfig import check_knobs, knob


@dataclass
class Sampling:
    """How the next token is chosen; each field is a flag."""

    temperature: float = knob(0.7, "0: always the most likely token; higher: more varied")
    top_k: int = knob(0, "choose among the k most likely tokens; 0: all")
    top_p: float = knob(0.9, "choose among the fewest tokens that reach this probability together; 1: all")
    repetition_penalty: float = knob(1.0, "above 1: tokens that already occurred become less likely")
    max_new_tokens: int = knob(200, "most tokens to write")
    seed: int | None = knob(None, "makes sampling repeatable")
    overflow: str = knob("slide", "past max_seq_len: slide forgets the oldest half, stop ends", ["slide", "stop"])

    def __post_init__(self):
        check_knobs(self)
        if self.temperature < 0:
            raise ValueError(f"--temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p is {self.top_p}; it must be in (0, 1]")
        if self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"--top_k is {self.top_k} (at least 0), --max_new_tokens is {self.max_new_tokens} (at least 1)"
            )
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"--repetition_penalty is {self.repetition_penalty}; it must be above 0, 1 changes nothing"
            )


@torch.inference_mode()
def generate(model, ids, sampling, stop_ids=()):
    """Continues a list of ids, one at a time.

    Args:
        model: a Transformer in eval mode.
        ids: the prompt, at least one id; if it is longer than the context its end is used.
        sampling: Sampling.
        stop_ids: ids that end the text; they are not yielded.
    Yields:
        at most max_new_tokens ids.
    """
    if not ids:
        raise ValueError("there is nothing to continue: the prompt has no tokens")
    device, limit = model.rope_cos.device, model.cfg.max_seq_len
    generator = None
    if sampling.seed is not None:
        generator = torch.Generator(device).manual_seed(sampling.seed)
    text = list(ids)
    fresh = (
        text[-limit:] if sampling.overflow == "stop" else text[-max(limit // 2, 1) :] if len(text) >= limit else text
    )
    cache = KVCache(model.cfg, 1, limit, device, model.output.weight.dtype)
    for _ in range(sampling.max_new_tokens):
        logits = model(torch.tensor([fresh], device=device), cache=cache, last_only=True).logits[:, -1]  # (1, V)
        logits = penalise_repeats(logits, torch.tensor([text], device=device), sampling.repetition_penalty)
        chosen = int(pick(logits, sampling.temperature, sampling.top_k, sampling.top_p, generator))
        if chosen in stop_ids:
            return
        yield chosen
        text.append(chosen)
        fresh = [chosen]
        if cache.length == limit:
            if sampling.overflow == "stop":
                return
            fresh = text[-(limit // 2) :]  # read the newer half again, in positions it was trained on
            cache.length = 0


def stream_parts(tokenizer, ids):
    """Turns an iterator of ids into an iterator of (text, is control): whole characters, or the name of a tag."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
        tag = tokenizer.tags.get(i)
        if piece := decoder.decode(tokenizer.id_to_bytes(i), final=tag is not None):
            yield piece, False
        if tag:
            yield tag, True
    if rest := decoder.decode(b"", final=True):
        yield rest, False


def stream_text(tokenizer, ids):
    """Turns an iterator of ids into an iterator of str that never ends in the middle of a character."""
    return (text for text, _ in stream_parts(tokenizer, ids))
