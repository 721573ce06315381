"""What must not break the server: requests that are malformed, too large, or meant to do harm."""

import contextlib
import json
import os
import socket
from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from inference.openai_schema import ChatRequest
from tests.api.serving import GOOD, post, user

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", 120))  # that schemathesis makes; more for a thorough look
SAME = "HOSTILE_REQUESTS" not in os.environ  # the suite makes the same ones in every run, a thorough look others


def is_refused(answer, status=400):
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def is_alive(service):
    assert post(service, GOOD).status_code == 200
    assert not service.live


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 201}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a"] * 5}, None),
        ({"stop": ""}, None),
        ({"stop": {"a": 1}}, "stop"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 3}, None),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"tools": [{"type": "function"}]}, None),
        ({"tools": ["x"]}, "tools.0"),
        ({"logit_bias": {"5": 100}}, None),
        ({"response_format": {"type": "json_object"}}, None),
        ({"tool_choice": "required"}, None),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"messages": user("很" * 2000)}, None),
    ],
)
def test_what_cannot_be_is_a_400_that_names_the_field(service, change, param):
    error = is_refused(post(service, {**GOOD, **change}))
    assert (error["param"] or "").startswith(param or "")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\x00",
        b"\xff\xfe{}",
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a\x00"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
        b"[" * 50_000,
        b'{"tools": [{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}]}",
        b'{"metadata":' * 5000 + b"1" + b"}" * 5000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_bytes_that_are_no_request_are_a_400(service, body):
    is_refused(post(service, body))
    is_alive(service)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": [0, 10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, None),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 17}, "n"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "echo": True}, None),
        ({"prompt": "a", "echo": 0.0}, None),
        ({}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[3], []]}, "prompt"),
    ],
)
def test_impossible_completions(service, change, param):
    error = is_refused(post(service, change, "/completions"))
    assert (error["param"] or "").startswith(param or "")
    is_alive(service)


def test_bodies_that_are_too_large_or_never_come_are_refused(service):
    large_body = b'{"messages": [{"role": "user", "content": "' + b"a" * 10_000_000 + b'"}]}'
    is_refused(post(service, large_body[:2_000_000]), 413)
    answer = None
    with contextlib.suppress(httpx.TransportError):  # more than is read to the end: the connection may be cut
        answer = post(service, large_body)
    assert answer is None or answer.status_code == 413
    is_refused(
        httpx.post(
            service.url + "/chat/completions",
            content=iter([b"a" * 60_000] * 3),
            headers={"Content-Type": "application/json"},
        ),
        413,
    )
    with socket.create_connection(("127.0.0.1", service.server.socket.getsockname()[1])) as sock:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sock.sendall(head + b"Content-Length: 50\r\n\r\n{")
        sock.settimeout(20)
        assert b" 408 " in sock.recv(1000).partition(b"\r\n")[0]
    is_alive(service)


def test_paths_and_methods_that_do_not_exist(service):
    is_refused(httpx.get(service.url + "/nothing"), 404)
    is_refused(httpx.get(service.url + "/chat/completions"), 405)
    is_refused(httpx.get(service.url + "/models/%00%ff"), 404)
    assert httpx.get(service.url.replace("/v1", "/docs")).status_code == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ChatRequest.model_fields, "nothing"])


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(FIELDS, JSON, max_size=4), st.booleans())
def test_any_json_is_answered_and_never_breaks_the_server(service, fields, good):
    with httpx.Client(timeout=30) as client:
        body = json.dumps({**(GOOD if good else {}), **fields})
        answer = client.post(
            service.url + "/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_requests_made_from_the_openapi_description_are_answered_as_described(service, path, mode):
    operation = schemathesis.openapi.from_url(service.url.replace("/v1", "/openapi.json"))[path]["POST"]
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    statuses = Counter()

    how = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": SAME}

    @settings(max_examples=REQUESTS // 4, **how)
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        case.headers = {**(case.headers or {}), "Content-Type": "application/json"}
        if mode.is_positive:
            # what the description does not say of these makes most of them a 400, and long texts take long
            skipped = ("model", "n", "tools", "stop", "top_logprobs")
            case.body = {k: v for k, v in case.body.items() if k not in skipped} | {"max_tokens": 1}
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=checks)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400, 404) and (mode.is_positive or answer.status_code != 200)

    ask()
    print(f"{path}, {mode.value}: {dict(statuses)}")
    assert statuses[400] and (statuses[200] or mode.is_negative)


def test_the_server_still_answers(service):
    is_alive(service)
    assert not any(status >= 500 for status in service.responses)
