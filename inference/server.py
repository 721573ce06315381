"""The OpenAI-shaped API over HTTP: paths, errors, streams, and an end that loses no request.

The event loop reads requests and writes answers; the engine computes in its own thread (inference/service.py).
"""

import asyncio
import contextlib
import socket
import time

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from inference.openai_schema import ChatRequest, CompletionRequest, ErrorReply
from inference.reply import Reply
from inference.service import Refused, unavailable

REFUSALS = (400, 401, 404, 405, 408, 413, 415, 500, 503)
DISCARDED = 32  # times max_body that are read of a body that is too large, so that its sender hears why


async def read_body(request, cfg):
    """The bytes of a request.

    Raises:
        Refused: 415 for another type than JSON, 413 for a body that is too large, 408 for one that does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps forms of foreign web pages out, for which browsers do not ask
        raise Refused(415, f"Content-Type is {kind[:80] or 'missing'}; send application/json")

    async def collect():
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size <= cfg.max_body:
                parts.append(part)
            elif size > DISCARDED * cfg.max_body:
                break
        if size > cfg.max_body:
            raise Refused(413, f"the body has more than {cfg.max_body} bytes", code="request_too_large")
        return b"".join(parts)

    try:
        return await asyncio.wait_for(collect(), cfg.body_seconds)
    except ClientDisconnect as error:  # nobody reads the answer; the count of responses does
        raise Refused(400, "the client went away") from error
    except asyncio.TimeoutError as error:
        raise Refused(408, f"the body did not arrive within {cfg.body_seconds:g} seconds") from error


def parse(schema, body):
    """JSON bytes → an object of the schema; Refused 400 names the field that is wrong."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200] or None
        said = first["msg"].removeprefix("Value error, ")[:300]
        raise Refused(400, f"{place}: {said}" if place else said, place, first["type"]) from error


def completion_prompts(prompt, tokenizer, vocab_size):
    """The `prompt` of a completion request → lists of ids; text gets its BOS, ids are taken as they are."""
    if prompt == []:
        raise Refused(400, "the prompt is empty; give a text, or ids", "prompt")
    many = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    if [] in many:
        raise Refused(400, "a prompt is empty; give a text, or ids", "prompt")
    found = [[tokenizer.bos_id, *tokenizer.encode(p)] if isinstance(p, str) else p for p in many]
    wrong = next((i for ids in found for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise Refused(400, f"there is no token {wrong}; ids are from 0 to {vocab_size - 1}", "prompt")
    return found


def reads(schema):
    """How a route is described that reads its body itself, within limits that FastAPI does not know, and may stream."""
    body = {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}}
    stream = {"schema": {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}}
    return {
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": {"content": {"text/event-stream": stream}}},
    }


def described(app):
    """The API's OpenAPI description, with the schemas of the bodies."""
    if not app.openapi_schema:
        schemas = [(ChatRequest, "validation"), (CompletionRequest, "validation")]
        found = models_json_schema(schemas, ref_template="#/components/schemas/{model}")[1]["$defs"]
        FastAPI.openapi(app)["components"]["schemas"].update(found)
    return app.openapi_schema


def make_routes(service):
    """The API's paths that need the key, if there is one."""

    async def authorised(request: Request):
        if not service.knows(request.headers.get("authorization", "")):
            raise Refused(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    routes = APIRouter(dependencies=[Depends(authorised)], responses={s: {"model": ErrorReply} for s in REFUSALS})
    about = {"id": service.name, "object": "model", "created": service.created, "owned_by": "local"}

    def check_model(name):
        if name not in (None, service.name):
            raise Refused(404, f"there is no model {name[:80]!r}; this is {service.name!r}", "model", "model_not_found")

    @routes.get("/v1/models")
    async def models():
        return {"object": "list", "data": [about]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str):
        check_model(name)
        return about

    @routes.post("/v1/chat/completions", openapi_extra=reads(ChatRequest))
    async def chat(request: Request):
        asked = parse(ChatRequest, await read_body(request, service.cfg))
        check_model(asked.model)
        turns = [message.turn() for message in asked.messages]
        ids = await asyncio.to_thread(service.tokenizer.encode_prompt, turns, asked.offered())
        return await Reply(service, asked, [ids]).respond(request)

    @routes.post("/v1/completions", openapi_extra=reads(CompletionRequest))
    async def completions(request: Request):
        asked = parse(CompletionRequest, await read_body(request, service.cfg))
        check_model(asked.model)
        vocab_size = service.engine.model.cfg.vocab_size
        prompts = await asyncio.to_thread(completion_prompts, asked.prompt, service.tokenizer, vocab_size)
        return await Reply(service, asked, prompts).respond(request)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics():
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4")

    return routes


def make_app(service):
    """The FastAPI application of a Service."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    more = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}

    async def refused(request, error):
        return JSONResponse({"error": error.error}, error.status, more.get(error.status))

    async def http_error(request, error):
        return await refused(request, Refused(error.status_code, str(error.detail)))

    async def bug(request, error):  # the traceback goes to the log; middleware does not see this answer
        service.responses[500] += 1
        answer = await refused(request, Refused(500, "the server made a mistake", kind="server_error"))
        if service.cfg.cors:
            answer.headers["Access-Control-Allow-Origin"] = service.cfg.cors
        return answer

    handlers = {Refused: refused, HTTPException: http_error, Exception: bug}
    # no pages of FastAPI's: they load their scripts from elsewhere
    app = FastAPI(title=service.name, lifespan=lifespan, docs_url=None, redoc_url=None, exception_handlers=handlers)
    app.include_router(make_routes(service))
    app.openapi = lambda: described(app)

    @app.get("/health")
    async def health():
        if service.engine.closed or service.draining:
            raise unavailable("the server is ending" if service.draining else "the engine has stopped")
        return {"status": "ok"}

    app.add_middleware(CountResponses, service=service)
    if service.cfg.cors:
        app.add_middleware(CORSMiddleware, allow_origins=[service.cfg.cors], allow_methods=["*"], allow_headers=["*"])
    return app


class CountResponses:
    """ASGI middleware: counts the responses by status."""

    def __init__(self, app, service):
        self.app, self.responses = app, service.responses

    async def __call__(self, scope, receive, send):
        async def counted(message):
            if message["type"] == "http.response.start":
                self.responses[message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


class Server(uvicorn.Server):
    """Uvicorn that ends in two steps: at the first signal what runs may finish while new requests hear 503.

    A second signal, or `drain_seconds`, ends what still runs: its clients are told.
    """

    def __init__(self, service, host, port):
        # timeout_graceful_shutdown: for clients that do not read their last bytes
        settings = {"log_level": "warning", "access_log": False, "server_header": False, "timeout_graceful_shutdown": 5}
        settings["limit_concurrency"] = service.cfg.connections
        super().__init__(uvicorn.Config(make_app(service), **settings))
        self.service, self.deadline = service, None
        try:
            self.socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.socket.getsockname()[1]}/v1"

    def run(self):
        """Serves until a signal."""
        super().run([self.socket])

    async def startup(self, sockets=None):
        """Called when the event loop runs."""
        await super().startup(sockets)
        print(f"{self.service.name} is served at {self.url}", flush=True)

    def handle_exit(self, sig, frame):
        """A signal came."""
        self.deadline = time.monotonic() + (0 if self.service.draining else self.service.cfg.drain_seconds)
        self.service.draining = True

    async def on_tick(self, counter):
        """Called ten times a second; True ends the server."""
        if self.service.draining and time.monotonic() > self.deadline:
            self.service.cancel(self.service.live)
        if self.service.draining and not self.service.live:
            self.should_exit = True
        if self.service.engine.closed:  # it met an error; a supervisor starts the server again
            self.should_exit = True
        return await super().on_tick(counter)
