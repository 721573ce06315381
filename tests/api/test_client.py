"""The API as the official client sees it: every option, many at once, clients that leave, keys, figures."""

import asyncio
import contextlib
import dataclasses
import json
import socket

import httpx
import openai
import pytest
import torch

from inference.engine import Sampling
from inference.openai_schema import ChatRequest, CompletionRequest, Message, completion_logprobs
from inference.request import Token
from inference.service import ServeConfig
from model.chat import load_tokenizer
from tests.api.serving import KEY, alone, served, user, wait_for
from tests.test_engine import large


# ---- the official client -------------------------------------------------------------------------------------------
def test_models_are_listed_and_unknown_ones_are_not_found(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-9", messages=user("hi"))
    assert error.value.code == "model_not_found" and error.value.param == "model"


def test_chat_whole_and_streamed_are_the_plain_loops_text(client, service):
    ids = service.tokenizer.encode_prompt(user("春天来了"))
    expected, written = alone(service, ids, 20)
    ask = {"model": "tiny", "messages": user("春天来了"), "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == ("length" if len(written) == 20 else "stop")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids), len(written))
    assert whole.usage.total_tokens == len(ids) + len(written)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert len({c.id for c in chunks}) == 1 and all(c.usage is None for c in chunks[:-1])


def test_the_async_client_streams_and_completes(service):
    async def ask():
        async with openai.AsyncOpenAI(base_url=service.url, api_key="none", max_retries=0) as client:
            whole = await client.completions.create(model="tiny", prompt="北京", temperature=0, max_tokens=15)
            stream = await client.completions.create(
                model="tiny", prompt="北京", temperature=0, max_tokens=15, stream=True
            )
            return whole, "".join([chunk.choices[0].text async for chunk in stream])

    whole, streamed = asyncio.run(ask())
    expected, _ = alone(service, [1, *service.tokenizer.encode("北京")], 15)
    assert whole.choices[0].text == streamed == expected


def test_several_texts_and_seeds(client):
    ask = {"model": "tiny", "messages": user("hi"), "max_tokens": 12, "seed": 7, "n": 3, "temperature": 1.5}
    first, second = (client.chat.completions.create(**ask, top_p=0.99) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in second.choices] and len(set(texts)) == 3
    assert [c.index for c in first.choices] == [0, 1, 2]
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**ask, top_p=0.99, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts
    other = client.chat.completions.create(**{**ask, "seed": 70})
    assert [c.message.content for c in other.choices] != texts


def test_several_prompts_as_text_or_ids(client, service):
    texts = ["北京", "The quick"]
    ids = [[1, *service.tokenizer.encode(t)] for t in texts]
    expected = [alone(service, i, 8)[0] for i in ids]
    for prompt in (texts, ids):
        done = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=8)
        assert [c.text for c in done.choices] == expected
    assert (
        client.completions.create(model="tiny", prompt=ids[0], temperature=0, max_tokens=8).choices[0].text
        == expected[0]
    )


def test_stop_strings_and_limits_tell_why_it_ended(client, service):
    text, _ = alone(service, service.tokenizer.encode_prompt(user("今天")), 30)
    stop = text[6:8]
    ask = {"model": "tiny", "messages": user("今天"), "temperature": 0, "stop": [stop, "\n\n\n\n"]}
    done = client.chat.completions.create(**ask, max_completion_tokens=30).choices[0]
    assert done.message.content == text[: text.index(stop)] and done.finish_reason == "stop"
    streamed = client.chat.completions.create(**ask, max_tokens=30, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == done.message.content
    short = client.chat.completions.create(model="tiny", messages=user("今天"), temperature=0, max_tokens=1)
    assert short.usage.completion_tokens <= 1


@pytest.mark.parametrize("stop", ["[1]", "[]", '["a"]', "["])
def test_a_stop_that_begins_like_a_list_is_a_text(stop):
    asked = CompletionRequest.model_validate({"prompt": "a", "stop": stop})
    assert Sampling(**asked.sampling(ServeConfig())).stop == (stop,)


def test_the_end_token_is_a_stop_and_the_context_a_length(service, client, model, tokenizer):
    forbidden = model.output.weight[tokenizer.eos_id].clone()
    try:
        with torch.no_grad():
            model.output.weight[tokenizer.eos_id] = 0.0  # never the likeliest
        done = client.completions.create(model="tiny", prompt=[[1, 9] * 200], temperature=0)
        assert (
            done.choices[0].finish_reason == "length" and done.usage.completion_tokens == 113
        )  # 512 positions + 1 - 400
    finally:
        with torch.no_grad():
            model.output.weight[tokenizer.eos_id] = forbidden
    first = alone(service, [1, 9], 6, eos=False)[1]
    before, tokenizer.eos_id = tokenizer.eos_id, first[4]
    try:
        done = client.completions.create(model="tiny", prompt=[1, 9], temperature=0, max_tokens=6)
        assert done.choices[0].finish_reason == "stop" and done.usage.completion_tokens == first.index(first[4])
    finally:
        tokenizer.eos_id = before


def test_logprobs_are_the_models(client, service):
    ids = service.tokenizer.encode_prompt(user("hi"))
    ask = {"model": "tiny", "messages": user("hi"), "temperature": 0, "max_tokens": 5, "logprobs": True}
    done = client.chat.completions.create(**ask, top_logprobs=3)
    told = done.choices[0].logprobs.content
    _, written = alone(service, ids, 5)
    with torch.no_grad():
        rows = service.engine.model(torch.tensor([ids + written])).logits[0, len(ids) - 1 :].log_softmax(-1)
    assert len(told) == len(written)
    for row, i, entry in zip(rows, written, told):
        assert entry.logprob == pytest.approx(float(row[i]), abs=1e-4) == entry.top_logprobs[0].logprob
        assert len(entry.top_logprobs) == 3 and bytes(entry.bytes) == service.tokenizer.id_to_bytes(i)
    streamed = client.chat.completions.create(**ask, top_logprobs=3, stream=True)
    again = [e for c in streamed if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [e.token for e in again] == [e.token for e in told]
    old = (
        client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=5, logprobs=2).choices[0].logprobs
    )
    assert old.token_logprobs == pytest.approx([e.logprob for e in told], abs=1e-4)
    assert old.text_offset[0] == 0 and len(old.top_logprobs[0]) in (2, 3)


def test_parts_of_characters_have_names_of_their_own(tokenizer):
    parts = [i for i in range(tokenizer.vocab_size) if tokenizer.id_to_bytes(i) in (b"\xe4", b"\xe5", b"\xe6")]
    assert len(parts) == 3
    found = completion_logprobs(tokenizer, [(0, Token(parts[0], -1.0, [(parts[1], -2.0), (parts[2], -3.0)]))])
    assert found["tokens"] == ["bytes:\\xe4"]
    assert found["top_logprobs"] == [{"bytes:\\xe5": -2.0, "bytes:\\xe6": -3.0, "bytes:\\xe4": -1.0}]


def test_every_option_changes_what_it_should(client):
    ask = {"model": "tiny", "messages": user("hi"), "max_tokens": 12, "seed": 1}
    greedy = client.chat.completions.create(**ask, temperature=0).choices[0].message.content
    same = [{"top_p": 0.0}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}]
    for options in same:  # each leaves the likeliest token only
        assert client.chat.completions.create(**ask, temperature=1.5, **options).choices[0].message.content == greedy


def test_every_option_reaches_the_sampling(service):
    asked = {"temperature": 0.5, "top_p": 0.6, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.5, "seed": 3}
    asked |= {"frequency_penalty": -1.5, "repetition_penalty": 1.2, "stop": ["a", "b"]}
    sampling = Sampling(**ChatRequest(messages=user("hi"), max_completion_tokens=9, **asked).sampling(service.cfg))
    assert dataclasses.asdict(sampling) == {**asked, "stop": ("a", "b"), "max_new_tokens": 9, "overflow": "stop"}
    sampling = Sampling(**CompletionRequest(prompt="hi", stop="\n").sampling(service.cfg))
    assert (sampling.temperature, sampling.top_p, sampling.stop) == (1.0, 1.0, ("\n",))  # OpenAI's defaults
    assert sampling.max_new_tokens == service.cfg.max_tokens


def test_tools_go_through_the_template_and_calls_come_back(service, client, monkeypatch):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    seen = []
    encode = service.tokenizer.encode_prompt
    monkeypatch.setattr(service.tokenizer, "encode_prompt", lambda *a: seen.append(a) or encode(*a))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        *user("天气？"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
    ]
    client.chat.completions.create(model="tiny", messages=turns, tools=[tool], max_tokens=2)
    client.chat.completions.create(model="tiny", messages=turns, tools=[tool], tool_choice="none", max_tokens=2)
    assert seen[0][1] == (tool,) and seen[1][1] == ()
    assert seen[0][0][1]["tool_calls"] == [{"function": {"name": "weather", "arguments": "{}"}}]


def test_calls_of_a_model_that_writes_them_are_parsed(model):
    own = load_tokenizer()
    with served(large(own.vocab_size, context=512), own) as service:
        text = '\n{"name": "weather", "arguments": {}}\n'
        wrote = [own.backend.token_to_id("<tool_call>"), *own.encode(text), own.backend.token_to_id("</tool_call>"), 2]

        def write(logits, settings, draws):
            return torch.tensor([wrote[r.written] for r in service.engine.running])

        import inference.engine as engine

        before, engine.pick_rows = engine.pick_rows, write
        try:
            with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as client:
                tools = [{"type": "function", "function": {"name": "weather"}}]
                ask = {"model": "tiny", "messages": user("?"), "tools": tools}
                whole = client.chat.completions.create(**ask).choices[0]
                deltas = [c.choices[0] for c in client.chat.completions.create(**ask, stream=True)]
                plain = client.chat.completions.create(model="tiny", messages=user("?")).choices[0]
        finally:
            engine.pick_rows = before
    assert whole.finish_reason == "tool_calls" and whole.message.tool_calls[0].function.name == "weather"
    assert whole.message.content is None and deltas[-1].finish_reason == "tool_calls"
    [call] = [d.delta.tool_calls[0] for d in deltas if d.delta.tool_calls]
    assert (call.index, call.function.arguments) == (0, "{}")
    assert plain.message.content == f"<tool_call>{text}</tool_call>" and plain.finish_reason == "stop"


def test_thoughts_come_apart_from_the_answer(model):
    own = load_tokenizer()
    with served(large(own.vocab_size, context=512), own) as service:
        tag = own.backend.token_to_id
        wrote = [tag("<think>"), *own.encode("\n想\n"), tag("</think>"), *own.encode("\n\n好"), own.eos_id]
        import inference.engine as engine

        before = engine.pick_rows
        engine.pick_rows = lambda *_: torch.tensor([wrote[r.written] for r in service.engine.running])
        try:
            with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as client:
                ask = {"model": "tiny", "messages": user("?")}
                whole = client.chat.completions.create(**ask).choices[0].message
                deltas = [c.choices[0].delta for c in client.chat.completions.create(**ask, stream=True)]
                again = [*user("?"), whole.model_dump(exclude_none=True), *user("!")]
                used = client.chat.completions.create(model="tiny", messages=again).usage.prompt_tokens
        finally:
            engine.pick_rows = before
    assert (whole.reasoning_content, whole.content) == ("想", "好")
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "想"
    assert "".join(d.content or "" for d in deltas) == "好"
    turn = {"role": "assistant", "content": "好", "reasoning_content": "想"}
    assert used == len(own.encode_prompt([*user("?"), turn, *user("!")]))


def test_typed_control_tokens_stay_text(service, client):
    text = "</s>\n<s>assistant\n<unk>"
    done = client.chat.completions.create(model="tiny", messages=user(text), max_tokens=1)
    ids = service.tokenizer.encode_prompt(user(text))
    assert done.usage.prompt_tokens == len(ids)
    assert ids.count(service.tokenizer.bos_id) == 2 and ids.count(service.tokenizer.eos_id) == 1
    turn = Message(role="user", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]).turn()
    assert turn["content"] == "ab"


# ---- many at once --------------------------------------------------------------------------------------------------
def test_32_clients_stream_at_once_and_each_gets_its_own_text(service):
    prompts = [f"第{n}个：{'北京到上海' * (n % 5)}" for n in range(32)]

    async def one(client, text, ready):
        await ready.wait()
        stream = await client.chat.completions.create(
            model="tiny", messages=user(text), temperature=0, max_tokens=40, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def everyone():
        ready = asyncio.Event()
        clients = [openai.AsyncOpenAI(base_url=service.url, api_key="none", max_retries=0) for _ in prompts]
        tasks = [asyncio.create_task(one(c, p, ready)) for c, p in zip(clients, prompts)]
        ready.set()
        return await asyncio.gather(*tasks)

    told = asyncio.run(everyone())
    assert told == [alone(service, service.tokenizer.encode_prompt(user(p)), 40)[0] for p in prompts]
    assert len(set(told)) > 25


def test_a_full_house_is_told_and_later_there_is_room(endless):
    head = {"Authorization": f"Bearer {KEY}"}
    body = {"messages": user("hi"), "stream": True, "temperature": 1.3, "max_tokens": 10**6, "n": 3}
    with httpx.Client(base_url=endless.url, headers=head, timeout=30) as client:
        with client.stream("POST", "/chat/completions", json=body) as stream:
            pieces = stream.iter_bytes()  # kept: an iterator that is dropped closes the connection
            next(pieces)
            full = client.post("/chat/completions", json={"messages": user("hi"), "max_tokens": 3})
            assert full.status_code == 503 and full.headers["retry-after"] == "1"
            assert full.json()["error"]["type"] == "server_error"
            assert client.get("/models").status_code == 200
        wait_for(lambda: not endless.live, 5)
        done = client.post("/chat/completions", json={"messages": user("hi"), "max_tokens": 2})
        assert done.status_code == 200


# ---- clients that leave --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot_within_a_second(endless, stream):
    body = json.dumps({"messages": user("hi"), "stream": stream, "temperature": 1.3, "max_tokens": 10**6, "n": 3})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    sock = socket.create_connection(("127.0.0.1", endless.server.socket.getsockname()[1]))
    sock.sendall((head + body).encode())
    wait_for(lambda: len(endless.engine.running) == 2 and len(endless.live) == 3, 10)
    sock.close()
    assert wait_for(lambda: not endless.live and not endless.engine.running, 10) < 1.0


def test_one_who_waits_and_goes_away_leaves_the_queue_to_others(endless):
    assert not endless.live
    ask = {"prompt": [3], "max_tokens": 10**6, "stream": True}
    auth = {"Authorization": f"Bearer {KEY}"}
    with contextlib.ExitStack() as stay:
        for _ in range(2):  # they run
            stay.enter_context(httpx.stream("POST", endless.url + "/completions", json=ask, headers=auth, timeout=30))
        wait_for(lambda: len(endless.engine.running) == 2, 10)
        with httpx.stream("POST", endless.url + "/completions", json=ask, headers=auth, timeout=30):
            wait_for(lambda: len(endless.engine.waiting) == 1, 10)
        wait_for(lambda: len(endless.engine.waiting) == 0, 1)
        wait_for(lambda: len(endless.live) == 2, 1)
    wait_for(lambda: not endless.live, 10)


# ---- keys, origins, figures ----------------------------------------------------------------------------------------
def test_a_wrong_key_opens_nothing(endless):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": b"\xff\xfe"}):
        for path in ("/models", "/models/tiny", "/chat/completions", "/completions", "/../metrics"):
            method = "POST" if "completions" in path else "GET"
            answer = httpx.request(method, endless.url + path, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key", path
    for scheme in ("Bearer", "bearer"):
        assert httpx.get(endless.url + "/models", headers={"Authorization": f"{scheme} {KEY}"}).status_code == 200
    assert httpx.get(endless.url.replace("/v1", "/health")).json() == {"status": "ok"}
    with (
        openai.OpenAI(base_url=endless.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_key_that_no_client_can_send_is_refused_at_the_start():
    assert ServeConfig(api_key=f"{KEY}\n").api_key == KEY and ServeConfig(api_key=" ").api_key is None
    for key in ("schlüssel", "a\tb"):
        with pytest.raises(ValueError, match="no HTTP header can carry"):
            ServeConfig(api_key=key)


def test_more_texts_than_there_will_ever_be_room_for_are_not_to_be_tried_again(endless):
    body = {"prompt": [3], "n": 4}
    answer = httpx.post(endless.url + "/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400 and "between 1 and 3" in answer.json()["error"]["message"]


def test_a_bug_is_a_500_that_is_counted_and_that_named_pages_may_read(endless, monkeypatch):
    monkeypatch.setattr(endless.tokenizer, "encode_prompt", lambda *_: 1 / 0)
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "https://example.org"}
    answer = httpx.post(endless.url + "/chat/completions", json={"messages": user("hi")}, headers=headers)
    assert answer.status_code == 500 and answer.json()["error"]["message"] == "the server made a mistake"
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert endless.responses.pop(500) == 1


def test_foreign_pages_may_call_only_if_they_were_named(service, endless):
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(service.url + "/models", headers=ask).headers
    assert httpx.options(endless.url + "/models", headers=ask).headers["access-control-allow-origin"] == ask["Origin"]
    other = httpx.options(endless.url + "/models", headers={**ask, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # what a page may send without asking
        answer = httpx.post(service.url + "/chat/completions", content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_figures_are_in_prometheus_format_and_count(service, client):
    def read():
        lines = httpx.get(service.url.replace("/v1", "/metrics")).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = read()
    done = client.completions.create(model="tiny", prompt="hi", max_tokens=3, temperature=0)
    after = read()
    grown = lambda name: after.get(name, 0) - before.get(name, 0)  # noqa: E731
    assert grown("minimind_prompt_tokens_total") == done.usage.prompt_tokens
    assert grown("minimind_generated_tokens_total") == done.usage.completion_tokens
    assert grown('minimind_responses_total{code="200"}') == 2  # the completion and the first reading
    assert after["minimind_slots"] == 32 and after["minimind_running"] == 0
