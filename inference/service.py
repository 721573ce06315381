"""What a server does apart from the web: its limits, its requests' way into the engine and out, its figures."""

import asyncio
import hmac
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields

from inference.engine import Engine
from inference.request import Request
from model.LMConfig import knob

CANNOT_BE_SERVED = {"cancelled": "the server is shutting down; try again later", "error": "the engine has stopped"}


@dataclass
class ServeConfig:
    """The server's limits; each field is a flag."""

    slots: int = knob(32, "most texts that are written at once")
    queue: int = knob(64, "most texts that wait for a slot; more are refused with 503")
    max_tokens: int = knob(1024, "most tokens a request may ask for, and what it gets if it does not say")
    connections: int = knob(1000, "most connections, idle ones too; more are refused with 503")
    max_n: int = knob(16, "most texts of one request: prompts x n")
    max_body: int = knob(1 << 20, "most bytes of a request")
    body_seconds: float = knob(10.0, "longest that a request may take to arrive")
    drain_seconds: float = knob(30.0, "after SIGTERM: longest that running requests may take to end")
    compiled: bool = knob(False, "compile the step that writes: a minute at the start, then up to three times as fast")
    overflow: str = knob("stop", "past max_seq_len: stop ends, slide forgets the oldest half", ["stop", "slide"])
    api_key: str | None = knob(
        None, "key that clients must send; better in the variable SERVE_API_KEY, which ps does not show"
    )
    cors: str | None = knob(None, "web origin whose pages may call, such as https://example.org, or *; unset: none")

    def __post_init__(self):
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("queue", "drain_seconds") else 1
            if type(value) in (int, float) and not value >= least:
                raise ValueError(f"--{field.name} is {value}; it must be at least {least}")
        self.api_key = (self.api_key or "").strip() or None  # files end with a newline
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("the API key has characters that no HTTP header can carry; use letters, digits and signs")


class Refused(Exception):
    """A request that is not served: an HTTP status and OpenAI's error object."""

    def __init__(self, status, message, param=None, code=None, kind="invalid_request_error"):
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": kind, "param": param, "code": code}


def unavailable(message):
    """The Refused of a server that has no room or is ending."""
    return Refused(503, message, code="unavailable", kind="server_error")


class Service:
    """A model, its engine in a thread, and those who wait for texts.

    Attributes:
        name: the model's name in the API.
        draining: the server is ending and takes nothing new.
        live: the requests that have not ended.
        responses: {HTTP status: count}, as the server adds them.
    """

    def __init__(self, model, tokenizer, name, cfg):
        self.engine = Engine(model, tokenizer, cfg.slots, compiled=cfg.compiled)
        self.tokenizer, self.name, self.cfg = tokenizer, name, cfg
        self.created = int(time.time())
        self.draining, self.live = False, set()
        self.responses, self.finished, self.totals = Counter(), Counter(), Counter()
        self.thread = threading.Thread(target=self.engine.run, name="engine", daemon=True)

    def start(self):
        """Starts the engine's thread."""
        self.thread.start()

    def stop(self):
        """Ends the engine's thread after the step at hand."""
        self.engine.close()
        self.thread.join()

    def knows(self, authorization):
        """Whether an Authorization header carries the key; its time tells nothing of the key."""
        scheme, _, sent = authorization.partition(" ")
        known = hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), (self.cfg.api_key or "").encode())
        return not self.cfg.api_key or (known and scheme.lower() == "bearer")

    def submit(self, prompts, samplings, top_logprobs):
        """Sends texts to the engine.

        Args:
            prompts: lists of ids; samplings: a Sampling for each.
        Returns:
            the Requests, and an asyncio.Queue of (index, Event) that ends with an Event with `finish` for each.
        Raises:
            Refused: 503 without room or at the end, 400 for a prompt that does not fit.
        """
        if self.draining:
            raise unavailable(CANNOT_BE_SERVED["cancelled"])
        room = self.cfg.slots + self.cfg.queue - len(self.live)
        if len(prompts) > room:
            raise unavailable(f"{len(self.live)} texts are being written or waiting; try again later")
        events, loop, begun = asyncio.Queue(), asyncio.get_running_loop(), time.monotonic()

        def listen(index):
            return lambda event: loop.call_soon_threadsafe(hear, index, event)

        def hear(index, event):  # in the event loop
            if event.text and index not in heard:
                heard.add(index)
                self.totals["first_token_seconds"] += time.monotonic() - begun
                self.totals["first_tokens"] += 1
            if event.finish:
                self.live.discard(requests[index])
                self.finished[event.finish] += 1
                self.totals["generated_tokens"] += event.written
            events.put_nowait((index, event))

        heard = set()
        each = enumerate(zip(prompts, samplings, strict=True))
        requests = [Request(ids, sampling, listen(i), top_logprobs) for i, (ids, sampling) in each]
        sent = []
        try:
            for request in requests:
                self.engine.submit(request)
                self.live.add(request)
                sent.append(request)
        except ValueError as error:
            raise Refused(400, str(error), None, "context_length_exceeded") from error
        except RuntimeError as error:
            raise unavailable(str(error)) from error
        finally:
            if len(sent) < len(requests):
                self.cancel(sent)
        self.totals["prompt_tokens"] += sum(len(ids) for ids in prompts)
        return requests, events

    def cancel(self, requests):
        """Takes texts that nobody waits for any more out of the engine."""
        for request in requests:
            self.engine.cancel(request)

    def metrics(self):
        """The figures in Prometheus' text format, version 0.0.4."""
        engine = self.engine
        gauges = {
            "running": (len(engine.running), "texts that are being written"),
            "waiting": (len(engine.waiting), "texts that wait for a slot"),
            "slots": (self.cfg.slots, "most texts that are written at once"),
            "draining": (int(self.draining), "1 after SIGTERM"),
        }
        totals = {
            "prompt_tokens_total": "tokens of the prompts that were taken",
            "generated_tokens_total": "tokens of the texts that ended",
        }
        lines = []
        for name, (value, text) in gauges.items():
            lines += [f"# HELP minimind_{name} {text}", f"# TYPE minimind_{name} gauge", f"minimind_{name} {value}"]
        for name, text in totals.items():
            value = self.totals[name.removesuffix("_total")]
            lines += [f"# HELP minimind_{name} {text}", f"# TYPE minimind_{name} counter", f"minimind_{name} {value}"]
        for name, label, counts in (("responses", "code", self.responses), ("texts", "finish", self.finished)):
            lines += [f"# HELP minimind_{name}_total {name} by {label}", f"# TYPE minimind_{name}_total counter"]
            lines += [f'minimind_{name}_total{{{label}="{key}"}} {n}' for key, n in sorted(counts.items())]
        waited = "minimind_first_token_seconds"
        lines += [f"# HELP {waited} from the request to its first text", f"# TYPE {waited} summary"]
        lines += [f"{waited}_sum {self.totals['first_token_seconds']:.6f}"]
        lines += [f"{waited}_count {self.totals['first_tokens']}"]
        return "\n".join(lines) + "\n"
