"""A server in this process for tests, and what its clients say and expect."""

import contextlib
import json
import signal
import threading
import time

import httpx

from inference.engine import Sampling, generate, stream_text
from inference.server import Server
from inference.service import ServeConfig, Service

KEY = "correct horse"
GOOD = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@contextlib.contextmanager
def served(model, tokenizer, **limits):
    """A server in a thread; yields its Service with .url."""
    service = Service(model, tokenizer, "tiny", ServeConfig(**limits))
    server = Server(service, "127.0.0.1", 0)
    service.url, service.server = server.url, server
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, 30)
    yield service
    server.handle_exit(signal.SIGTERM, None)
    server.handle_exit(signal.SIGTERM, None)
    thread.join(20)
    assert not thread.is_alive() and not service.thread.is_alive()


def user(text):
    return [{"role": "user", "content": text}]


def alone(service, ids, count, eos=True):
    """The greedy text of a prompt by the plain loop."""
    sampling = Sampling(temperature=0, max_new_tokens=count, overflow="stop")
    written = list(generate(service.engine.model, ids, sampling, (service.tokenizer.eos_id,) if eos else ()))
    return "".join(stream_text(service.tokenizer, written)), written


def wait_for(condition, seconds):
    """How long it took until the condition held; fails after `seconds`."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.005)
    return time.monotonic() - begun


def post(service, body, path="/chat/completions", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        service.url + path, content=content, headers={"Content-Type": "application/json", **headers}, timeout=30
    )
