"""OpenAI's request and response objects: what is accepted, what it means here, what is answered.

Unknown fields and wrong types are errors, never ignored. Beyond OpenAI's: top_k, min_p, repetition_penalty. Reference:
https://platform.openai.com/docs/api-reference/chat and …/completions.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from inference.text import shown_bytes

NO_CHANCE = -9999.0  # what OpenAI writes for log 0, which JSON cannot


def only(*values):
    """The type of a field whose other values would change the answer in ways that are not built."""
    allowed = (*values, None)

    def checked(value):
        # to Python False is 0.0, to JSON it is not
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in allowed):
            raise ValueError(f"{json.dumps(value)[:80]} is not supported")
        return value

    return Annotated[Any, AfterValidator(checked), WithJsonSchema({"enum": [*allowed]})]


def without_nul(text):
    """The text; ValueError if it holds a NUL, which no tokenizer of this project was trained on."""
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    return text


Text = Annotated[str, AfterValidator(without_nul)]


class Strict(BaseModel):
    """No conversions, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Function(Strict):
    """A function that was called; its arguments are JSON."""

    name: Text
    arguments: Text


class ToolCall(Strict):
    """A call in an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: Function


class Message(Strict):
    """A turn of the conversation; what earlier answers carry besides is accepted and not read."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    reasoning_content: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: None = None
    annotations: list | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self):
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content)):
            raise ValueError(f"a message of role {self.role} needs content")
        return self

    def turn(self):
        """What the chat template reads."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        turn = {"role": role, "content": content or ""}
        if self.role == "assistant":
            turn["reasoning_content"] = self.reasoning_content
            turn["tool_calls"] = [call.model_dump(include={"function"}) for call in self.tool_calls or []]
        return turn


class StreamOptions(Strict):
    """include_usage: one more chunk at the end tells the usage."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(Strict):
    """What both endpoints accept."""

    model: Text | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: Text | list[Text] | None = Field(None, max_length=1000)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: only({}) = None

    @model_validator(mode="after")
    def _stops_are_few_and_short(self):
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 4 or not all(0 < len(s) <= 1000 for s in stops):
            raise ValueError("stop takes at most 4 texts of 1 to 1,000 characters")
        return self

    def sampling(self, cfg):
        """The keyword arguments of Sampling; OpenAI's defaults where nothing was asked."""
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop")
        chosen = {n: getattr(self, n) for n in (*names, "repetition_penalty") if getattr(self, n) is not None}
        if isinstance(self.stop, str):  # alone it would be read as on a command line, where [ begins a JSON list
            chosen["stop"] = [self.stop]
        chosen = {"temperature": 1.0, "top_p": 1.0, "overflow": cfg.overflow, **chosen}
        return {**chosen, "top_p": max(chosen["top_p"], 1e-6), "max_new_tokens": self.wanted() or cfg.max_tokens}

    def wanted(self):
        """How many tokens were asked for, or None."""
        return self.max_tokens

    def wanted_by(self):
        """The name of the field that said so."""
        return "max_tokens"


class CompletionRequest(Asked):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[int], Field(min_length=1)] | list[Text] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: only(1) = None
    echo: only(False) = None
    suffix: only("") = None

    def top(self):
        """How many likely tokens are told; None: no log-probabilities."""
        return self.logprobs


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: only("auto", "none") = None
    parallel_tool_calls: only(True) = None
    response_format: only({"type": "text"}) = None
    modalities: only(["text"]) = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _fits_together(self):
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        for tool in self.tools or []:
            function = tool.get("function")
            if (
                tool.get("type") != "function"
                or not isinstance(function, dict)
                or not isinstance(function.get("name"), str)
            ):
                raise ValueError('a tool is {"type": "function", "function": {"name": ...}}')
        return self

    def wanted(self):
        """max_completion_tokens is the newer name."""
        return self.max_completion_tokens or self.max_tokens

    def wanted_by(self):
        """As in Asked."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    def top(self):
        """As in CompletionRequest."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def offered(self):
        """The tools that the template lists."""
        return () if self.tool_choice == "none" else tuple(self.tools or ())


class Refusal(BaseModel):
    """What was wrong: `param` names the field, `type` and `code` are for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every answer that is not a success."""

    error: Refusal


def token_text(tokenizer, i):
    """{"token", "bytes"} of an id."""
    raw = shown_bytes(tokenizer, i) or (tokenizer.backend.id_to_token(i) or "").encode()
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}


def chat_logprobs(tokenizer, tokens):
    """The logprobs object of a chat choice, from (offset, Token)s."""

    def told(i, logprob):
        return {**token_text(tokenizer, i), "logprob": max(logprob, NO_CHANCE)}

    content = [{**told(t.id, t.logprob), "top_logprobs": [told(i, value) for i, value in t.top]} for _, t in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer, tokens):
    """The logprobs object of a completion choice, from (offset, Token)s; parts of characters are named by bytes."""

    def name(i):
        found = token_text(tokenizer, i)
        try:
            return bytes(found["bytes"]).decode("utf-8")
        except UnicodeDecodeError:  # several of them would have the same replacement character for a key
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found["bytes"])

    return {
        "tokens": [name(t.id) for _, t in tokens],
        "token_logprobs": [max(t.logprob, NO_CHANCE) for _, t in tokens],
        "top_logprobs": [{name(i): max(v, NO_CHANCE) for i, v in [*t.top, (t.id, t.logprob)]} for _, t in tokens],
        "text_offset": [offset for offset, _ in tokens],
    }
