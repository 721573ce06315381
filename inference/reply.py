"""One answer of the API: its texts from the engine, told at once or as server-sent events."""

import asyncio
import json
import time
import uuid

from starlette.responses import JSONResponse, StreamingResponse

from inference.answer_text import AnswerText
from inference.engine import Sampling
from inference.openai_schema import ChatRequest, chat_logprobs, completion_logprobs
from inference.service import CANNOT_BE_SERVED, Refused, unavailable


class Reply:
    """One answer of the API: its texts, and how they are told at once or in a stream.

    Args:
        service: Service; asked: ChatRequest or CompletionRequest.
        prompts: lists of ids; each is continued n times.
    """

    def __init__(self, service, asked, prompts):
        self.service, self.asked, self.chat = service, asked, isinstance(asked, ChatRequest)
        self.tools = bool(self.chat and asked.offered())
        n, cfg = asked.n or 1, service.cfg
        most = min(cfg.max_n, cfg.slots + cfg.queue)
        if not prompts or len(prompts) * n > most:
            raise Refused(400, f"{len(prompts)} prompts x n {n}; between 1 and {most} texts are written", "n")
        if (asked.wanted() or 1) > cfg.max_tokens:
            raise Refused(400, f"{asked.wanted()} tokens were asked for; at most {cfg.max_tokens}", asked.wanted_by())
        chosen = asked.sampling(cfg)
        seeds = [None if asked.seed is None else (asked.seed + i) % 2**63 for i in range(n)] * len(prompts)
        samplings = [Sampling(**{**chosen, "seed": seed}) for seed in seeds]
        self.requests, self.events = service.submit([p for p in prompts for _ in range(n)], samplings, asked.top())
        self.written = [0] * len(self.requests)
        prompt = sum(len(ids) for ids in prompts)
        self.usage = lambda: {
            "prompt_tokens": prompt,
            "completion_tokens": sum(self.written),
            "total_tokens": prompt + sum(self.written),
        }
        kind = "chatcmpl" if self.chat else "cmpl"
        self.head = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}

    async def told(self):
        """Yields (index, Event) until every text has ended; Refused if the server gives one up."""
        left = len(self.requests)
        while left:
            index, event = await self.events.get()
            if event.finish in CANNOT_BE_SERVED:
                raise unavailable(CANNOT_BE_SERVED[event.finish])
            self.written[index] = event.written
            left -= event.finish is not None
            yield index, event

    def logprobs(self, tokens):
        """The logprobs object of (offset, Token)s; None if none were asked for."""
        if self.asked.top() is None:
            return None
        return (chat_logprobs if self.chat else completion_logprobs)(self.service.tokenizer, tokens)

    async def whole(self):
        """The response object."""
        count = len(self.requests)
        texts, tokens, finish = [[] for _ in range(count)], [[] for _ in range(count)], [None] * count
        async for i, event in self.told():
            texts[i].append(event.text)
            tokens[i] += event.tokens
            finish[i] = event.finish
        choices = []
        for i, parts in enumerate(texts):
            choice = {"index": i, "logprobs": self.logprobs(tokens[i]), "finish_reason": finish[i]}
            text = "".join(parts)
            if not self.chat:
                choices.append({"text": text, **choice})
                continue
            thoughts, said, calls = AnswerText(self.tools).push(text, final=True)
            message = {"role": "assistant", "content": said, "refusal": None}
            if thoughts:
                message["reasoning_content"] = thoughts
            if calls:
                message.update(content=said.strip() or None, tool_calls=call_objects(calls))
                choice["finish_reason"] = finish_with_calls(finish[i])
            choices.append({"message": message, **choice})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": self.usage()}

    async def chunks(self):
        """Yields the chunk objects of a stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        wants_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        extra = {"usage": None} if wants_usage else {}

        def chunk(i, content, finish=None, logprobs=None):
            choice = {"index": i, **content, "logprobs": logprobs, "finish_reason": finish}
            return {**self.head, "object": kind, "choices": [choice], **extra}

        splits = [AnswerText(self.tools) for _ in self.requests]
        if self.chat:
            for i in range(len(self.requests)):
                yield chunk(i, {"delta": {"role": "assistant", "content": ""}})
        async for i, event in self.told():
            text, finish, thoughts, calls = event.text, event.finish, "", []
            if self.chat:
                thoughts, text, calls = splits[i].push(text, final=finish is not None)
            if thoughts or text or event.tokens:
                said = {"reasoning_content": thoughts, "content": text}
                delta = {name: words for name, words in said.items() if words} or {"content": ""}
                yield chunk(i, {"delta": delta} if self.chat else {"text": text}, None, self.logprobs(event.tokens))
            if calls:
                finish = finish_with_calls(finish)
                yield chunk(i, {"delta": {"tool_calls": call_objects(calls)}})
            if finish:
                yield chunk(i, {"delta": {}} if self.chat else {"text": ""}, finish)
        if wants_usage:
            yield {**self.head, "object": kind, "choices": [], "usage": self.usage()}

    async def stream(self, watcher):
        """Yields server-sent events; however it ends, nobody writes on for it."""
        try:
            async for chunk in self.chunks():
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
            yield b"data: [DONE]\n\n"
        except Refused as error:  # the status is sent already
            yield f"data: {json.dumps({'error': error.error})}\n\n".encode()
        finally:
            watcher.cancel()
            self.service.cancel(self.requests)

    async def watch(self, request):
        """Ends the texts when the client goes away."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.service.cancel(self.requests)

    async def respond(self, request):
        """The HTTP response; a client that goes away frees its slots in either form."""
        watcher = asyncio.create_task(self.watch(request))
        if self.asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(self.stream(watcher), media_type="text/event-stream", headers=headers)
        try:
            return JSONResponse(await self.whole())
        finally:
            watcher.cancel()
            self.service.cancel(self.requests)


def finish_with_calls(finish):
    """Why an answer with calls ended; one that was cut may lack some."""
    return "tool_calls" if finish == "stop" else finish


def call_objects(calls):
    """[(name, arguments)] → OpenAI's tool_calls."""
    return [
        {"index": n, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": a, "arguments": b}}
        for n, (a, b) in enumerate(calls)
    ]
