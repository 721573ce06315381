"""The server's process: signals, bad use, ports that are taken, an engine that fails."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch

import serve_openai_api
from inference.server import Server
from inference.service import ServeConfig
from tests.api.serving import GOOD, KEY, post, served, wait_for
from trainer.checkpoint import describe, save_weights

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def process(tmp_path, model, tokenizer):
    """Starts `python serve_openai_api.py FLAGS` on a checkpoint; returns (process, url)."""
    path, model = tmp_path / "full_sft_32.pth", copy.deepcopy(model)
    with torch.no_grad():
        model.output.weight[tokenizer.eos_id] = 0.0  # never the likeliest: greedy texts do not end
    save_weights(path, model, describe(model.cfg, "full_sft", tokenizer))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    started = []

    def start(*flags):
        command = [
            sys.executable,
            "serve_openai_api.py",
            "--out_dir",
            str(tmp_path),
            "--port",
            "0",
            "--device",
            "cpu",
            *flags,
        ]
        made = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(made)
        for line in made.stdout:
            if " is served at " in line:
                assert line.startswith("full_sft_32 is served at http://127.0.0.1:")
                return made, line.split()[-1]
        raise AssertionError("it ended before it served")

    yield start
    for made in started:
        made.kill()
        made.wait()
        made.stdout.close()


def test_sigterm_lets_running_texts_end_and_refuses_new_ones(process):
    made, url = process("--max_tokens", "3000", "--overflow", "slide", "--drain_seconds", "600")
    body = {"prompt": [1, 9], "stream": True, "temperature": 0, "max_tokens": 2500, "n": 2}
    with (
        httpx.Client(base_url=url, timeout=600) as client,
        client.stream("POST", "/completions", json=body) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        made.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # longer than a server that stops listening at once would listen
        assert client.post("/chat/completions", json=GOOD).status_code == 503
        assert client.get(url.replace("/v1", "/health")).status_code == 503
        told = [line for line in lines if line]
    assert told[-1] == "data: [DONE]"
    reasons = [json.loads(line[6:])["choices"][0]["finish_reason"] for line in told[:-1]]
    assert [r for r in reasons if r] == ["length", "length"] and len(reasons) > 2500
    assert made.wait(20) == 0
    assert "Traceback" not in made.stdout.read()


def test_what_does_not_end_in_time_is_told(process):
    made, url = process("--max_tokens", "9000000", "--overflow", "slide", "--drain_seconds", "0.5")
    body = {"prompt": [1, 9], "stream": True, "temperature": 0, "max_tokens": 9_000_000, "n": 8}
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        stream = client.completions.create(model="full_sft_32", **body)
        next(iter(stream))
        made.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass
    assert made.wait(20) == 0


def test_bad_use_of_the_script_is_one_line(tmp_path):
    command = [sys.executable, "serve_openai_api.py", "--out_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no checkpoint" in done.stderr and "Traceback" not in done.stderr
    for flags, words in ((["--slots", "0"], "--slots is 0"), (["--port", "70000"], "--port is 70000")):
        with pytest.raises(ValueError, match=words):
            serve_openai_api.main(flags)


def test_the_key_comes_from_the_environment_and_is_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("SERVE_API_KEY", KEY)
    typed, cfg = serve_openai_api.parse([])
    assert cfg.api_key == KEY and (typed.host, typed.port) == ("127.0.0.1", 8998)
    with pytest.raises(SystemExit):
        serve_openai_api.parse(["--help"])
    assert KEY not in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_requirements(monkeypatch):
    monkeypatch.delitem(sys.modules, "inference.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match="uvicorn.*pip install -r requirements-serve.txt"):
        serve_openai_api.main([])


def test_a_port_that_is_taken_is_told(service):
    with pytest.raises(OSError, match="choose another with --port"):
        Server(service, "127.0.0.1", service.server.socket.getsockname()[1])


def test_an_engine_that_fails_is_told_to_all_and_ends_the_server(model, tokenizer, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with served(model, tokenizer) as service:
        monkeypatch.setattr(service.engine, "step", lambda: [][0])
        with contextlib.suppress(httpx.TransportError):
            assert post(service, GOOD).status_code == 503
        wait_for(lambda: service.server.should_exit, 5)


def test_limits_are_checked_and_switches_are_no_limits():
    assert ServeConfig(compiled=True).compiled and not ServeConfig().compiled
    for name, value in (("slots", 0), ("queue", -1), ("body_seconds", float("nan"))):
        with pytest.raises(ValueError, match=f"--{name} is"):
            ServeConfig(**{name: value})
