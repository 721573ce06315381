"""Text out of a model: one token at a time through a cache, for one reader (generate) or many at once (Engine)."""

import codecs
import threading
from collections import deque
from dataclasses import dataclass

import torch

from inference.graphs import Recorded
from inference.prefill import Prefill
from inference.request import Event, Token
from inference.sampling import penalise, pick, pick_rows
from inference.text import NO_STOPS, Stops, TextStream, until_stop
from model.kv_cache import KVCache, SlotCache, SlotRows
from model.LMConfig import check_knobs, knob


@dataclass
class Sampling:
    """How the next token is chosen; each field is a flag."""

    temperature: float = knob(0.7, "0: always the most likely token; higher: more varied")
    top_k: int = knob(0, "choose among the k most likely tokens; 0: all")
    top_p: float = knob(0.9, "choose among the fewest tokens that reach this probability together; 1: all")
    min_p: float = knob(0.0, "choose among tokens at least this many times as likely as the likeliest; 0: all")
    repetition_penalty: float = knob(1.0, "above 1: tokens that already occurred become less likely")
    presence_penalty: float = knob(0.0, "nats taken from tokens that were written; below 0: more likely")
    frequency_penalty: float = knob(0.0, "nats taken from a token for each time it was written")
    max_new_tokens: int = knob(200, "most tokens to write")
    seed: int | None = knob(None, "makes sampling repeatable")
    stop: Stops = knob(  # noqa: RUF009 — a tuple, so it can be shared
        NO_STOPS, 'text that ends the answer and is not shown; several: a JSON list, ["\\n", "Q:"]'
    )
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
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"--min_p is {self.min_p}; it must be in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -100 <= getattr(self, name) <= 100:
                raise ValueError(
                    f"--{name} is {getattr(self, name)}; it must be between -100 and 100, 0 changes nothing"
                )
        self.stop = Stops(self.stop)

    @property
    def penalises(self):
        """Whether ids that occurred before are treated differently."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@torch.inference_mode()
def generate(model, ids, sampling, stop_ids=()):
    """Continues a list of ids, one at a time. Stop strings are for text: `until_stop` ends a stream of it.

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
    cache = KVCache(model.cfg, 1, limit, device, model.norm.weight.dtype)
    for _ in range(sampling.max_new_tokens):
        logits = model(torch.tensor([fresh], device=device), cache=cache, last_only=True).logits[:, -1]  # (1, V)
        logits = penalise(logits, text, len(ids), sampling)
        chosen = int(pick(logits, sampling.temperature, sampling.top_k, sampling.top_p, generator, sampling.min_p))
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


def continued(model, tokenizer, text, sampling):
    """Yields how a text goes on, whole characters, up to EOS or a stop string; a base model's way of writing."""
    ids = generate(model, [tokenizer.bos_id, *tokenizer.encode(text)], sampling, (tokenizer.eos_id,))
    return until_stop(stream_text(tokenizer, ids), sampling.stop)


def next_logits(model, tokens, keys, values, positions, longest):
    """The logits behind one id of each of the first B slots, whose keys and values are stored.

    Args:
        tokens, positions: (B, 1) the ids and their places in their texts.
        keys, values: of the SlotCache; longest: as in SlotRows.
    Returns:
        (B, V).
    """
    rows = SlotRows(keys, values, 0, positions, longest)
    return model.output(model.states(tokens, cache=rows, tree=rows)[0])[:, -1]


class Engine:
    """Continues many texts at once; they join and leave between two steps (Yu et al. 2022, Orca, OSDI).

    A step reads the prompts of requests that join, those of similar length together, and then writes one id for every
    running request in one forward pass, which a GPU replays as a CUDA graph. Request r of `running` has slot r of the
    cache: whoever leaves gives its place to the last.

    Args:
        model: a Transformer in eval mode; tokenizer: its ChatTokenizer.
        slots: most requests that run at once.
        budget: prompt ids read between two steps, one request at least, so that those who run need not wait long.
        reuse: start from the keys of an earlier or running text where a prompt begins like it.
        compiled: compile the step that writes; a minute at the first texts, or in `warm_up`.
    """

    def __init__(self, model, tokenizer, slots=32, budget=1024, reuse=True, compiled=False):
        self.model, self.tokenizer, self.slots, self.budget, self.reuse = model, tokenizer, slots, budget, reuse
        self.limit, weight = model.cfg.max_seq_len, model.norm.weight
        self.next_logits = torch.compile(next_logits, dynamic=True) if compiled else next_logits
        self.cache = SlotCache(model.cfg, slots, self.limit, weight.device, weight.dtype)
        if weight.is_cuda:
            self.next_logits = Recorded(self.next_logits, self.cache)
        self.prefill = Prefill(model, self.cache)
        self.waiting, self.running = deque(), []
        self.lock, self.wake, self.closed = threading.Lock(), threading.Event(), False

    @torch.inference_mode()
    def warm_up(self):
        """Compiles the step, for one text and for several, before anybody waits for it; slots must be empty."""
        for rows in range(1, min(self.slots, 3) + 1):  # the third shows that any number will do
            tokens = torch.zeros(rows, 1, dtype=torch.long, device=self.cache.keys[0].device)
            positions = tokens.clone()  # one tensor for both would be compiled for that case alone
            self.next_logits(self.model, tokens, self.cache.keys, self.cache.values, positions, rows + 1)

    def submit(self, request):
        """Queues a request.

        Raises:
            ValueError: its prompt is empty, or longer than the context.
            RuntimeError: the engine has ended.
        """
        if not request.ids:
            raise ValueError("there is nothing to continue: the prompt has no tokens")
        if len(request.ids) > self.limit and request.sampling.overflow == "stop":
            raise ValueError(f"the prompt has {len(request.ids)} tokens; the context holds {self.limit}: shorten it")
        request.stream = TextStream(self.tokenizer, request.sampling.stop)
        with self.lock:
            if self.closed:
                raise RuntimeError("the engine has ended")
            self.waiting.append(request)
        self.wake.set()

    def cancel(self, request):
        """Ends a request before the next step; no matter whether it waits, runs, or has ended."""
        request.cancelled = True
        self.wake.set()

    def run(self):
        """Steps while there is work, until `close`; in a thread of its own. Whatever ends it, every request is told."""
        try:
            while not self.closed:
                if not self.step():
                    self.wake.wait()
                    self.wake.clear()
        finally:
            with self.lock:
                self.closed = True
            for request in [*self.running, *self.waiting]:
                request.tell(Event("", [], "error", request.written))

    def close(self):
        """Ends `run` after the step at hand."""
        self.closed = True
        self.wake.set()

    @torch.inference_mode()
    def step(self):
        """One id for every running request, after those that wait have joined where there is room.

        Returns:
            whether there is more to do.
        """
        for slot in reversed(range(len(self.running))):
            if self.running[slot].cancelled:
                self._end(slot, "cancelled")
        self._forget_cancelled()
        self._admit()
        for slot, request in enumerate(self.running):
            if len(self.cache.texts[slot]) == self.limit:  # slides
                self.prefill.add(slot, request.text[-(self.limit // 2) :], reuse=False)
        self.prefill.flush()
        if self.running:
            self._write()
        return bool(self.running or self.waiting)

    def _forget_cancelled(self):
        """Takes cancelled requests out of the queue, so that others find room in it."""
        with self.lock:
            gone = [request for request in self.waiting if request.cancelled]
            for request in gone:
                self.waiting.remove(request)
        for request in gone:
            request.tell(Event("", [], "cancelled", request.written))

    def _admit(self):
        """Lets requests that wait take free slots, as far as the budget goes."""
        read = 0
        while self.waiting and len(self.running) < self.slots and read < self.budget:
            with self.lock:
                request = self.waiting.popleft()
            self.running.append(request)
            if request.cancelled:
                self._end(len(self.running) - 1, "cancelled")
                continue
            keep = self.limit if request.sampling.overflow == "stop" else self.limit - 1
            ids = request.ids if len(request.ids) <= keep else request.ids[-max(self.limit // 2, 1) :]
            read += self.prefill.add(len(self.running) - 1, ids, self.reuse)

    def _write(self):
        """One forward pass for all that run: reads each one's last id and writes its next."""
        tokens, rows = self.cache.rows(0, [request.text[-1:] for request in self.running])
        logits = self.next_logits(
            self.model, tokens, self.cache.keys, self.cache.values, rows.positions, rows.longest
        )  # (B, V)
        settings = [request.sampling for request in self.running]
        draws = [request.random.random() for request in self.running]
        chosen = pick_rows(self._penalised(logits), settings, draws).tolist()
        told = [
            None if r.top_logprobs is None else self._token(logits[b], chosen[b], r.top_logprobs)
            for b, r in enumerate(self.running)
        ]
        for slot in reversed(range(len(chosen))):  # from the last, for an ending one changes places with the last
            self._tell(slot, chosen[slot], told[slot])

    def _penalised(self, logits):
        """Logits (B, V) after the penalties of those who have some; the same tensor if nobody has."""
        changed = {b: r for b, r in enumerate(self.running) if r.sampling.penalises}
        if not changed:
            return logits
        rows = [penalise(logits[b : b + 1], r.text, len(r.ids), r.sampling) for b, r in changed.items()]
        return logits.index_copy(0, torch.tensor([*changed], device=logits.device), torch.cat(rows))

    @staticmethod
    def _token(logits, i, top):
        """The Token of id i under logits (V,), with the `top` likeliest ids."""
        logprobs = logits.float().log_softmax(-1)
        values, ids = logprobs.topk(min(top, len(logprobs)))
        return Token(i, float(logprobs[i]), list(zip(ids.tolist(), values.tolist(), strict=True)))

    def _tell(self, slot, i, token):
        """Adds an id to the text of the request in a slot, tells it, and frees the slot if that was the last."""
        request = self.running[slot]
        if i == self.tokenizer.eos_id:
            return self._end(slot, "stop")
        request.text.append(i)
        text, marks = request.stream.push(i, token)
        if request.stream.stopped:
            return self._end(slot, "stop", text, marks)
        full = request.sampling.overflow == "stop" and len(self.cache.texts[slot]) == self.limit
        if full or request.written == request.sampling.max_new_tokens:
            return self._end(slot, "length", text, marks)
        if text:
            request.tell(Event(text, marks, None, request.written))

    def _end(self, slot, finish, text="", marks=()):
        """Tells the request in a slot that it is over, and gives the slot's place to the last one."""
        request, last = self.running[slot], len(self.running) - 1
        if not request.stream.stopped:
            rest, more = request.stream.finish()
            finish = "stop" if request.stream.stopped else finish
            text, marks = text + rest, [*marks, *more]
        self.cache.swap(slot, last)
        self.running[slot] = self.running[last]
        self.running.pop()
        request.tell(Event(text, marks, finish, request.written))
