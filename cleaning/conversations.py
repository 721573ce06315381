"""Instruction data of every schema in use → one form. Nothing is executed, no text is changed.

The one form, which MiniMind's .jsonl files share:
    {"conversations": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], "tools": […]}
Roles are system, user, assistant and tool. An assistant turn may have `reasoning_content` and `tool_calls`
([{"name", "arguments"}]); `tools` is there only if the record has any. A user turn may have `asides`, [[characters,
text], …]: what the model should think of behind that many characters of it, without its being written there.
"""

import ast
import json
import re

from cleaning.exam_files import is_question

# What other schemas call the roles; lower case.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    "function_call": "call",  # an assistant turn that is nothing but a call
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
# A slot of a template that nobody filled: {{name}}, but neither LaTeX's \frac{{a}}{{b}} nor code inside ``` fences.
PLACEHOLDER = re.compile(r"(?<![\\\w}^_{$])\{\{[A-Za-z_]\w*\}\}(?!\})")
FENCED = re.compile(r"```.*?(```|\Z)", re.DOTALL)
# Translated data sets say in words that an input is empty.
# fmt: off
NO_INPUT = {"无输入", "<无输入>", "（无输入）", "(无输入)", "[无输入]", "无输入。", "没有输入", "noinput", "<noinput>",
            "no input", "<no input>", "<nooutput>", "nan"}
# fmt: on


class Unusable(Exception):
    """A record that cannot be trained on; its text is the reason that is counted."""


# --- pieces of a record ---------------------------------------------------------------------------------------------


def text_in(value, what):
    """`value` as text: a str, or OpenAI's list of text parts; Unusable otherwise."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(p.get("text", "")) for p in value)
    if not isinstance(value, str):
        raise Unusable(f"{what} is missing" if value is None else f"{what} is not text")
    return value


def said(value, what):
    """Text that holds something to read."""
    text = text_in(value, what)
    if not text.strip():
        raise Unusable(f"{what} is empty")
    return text


def literal(text, what):
    """A JSON or Python list literal → list; parsed, never executed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Unusable(f"{what} is not a list literal") from None


def tool_calls(value):
    """Calls in OpenAI's form, plain, or as JSON text → [{"name", "arguments"}]."""
    if isinstance(value, str):
        value = literal(value, "tool call")
    calls = []
    for call in value if isinstance(value, list) else [value]:
        call = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise Unusable("tool call without a name")
        calls.append({"name": call["name"], "arguments": call.get("arguments", {})})
    return calls


def turn_of(message):
    """One message of any schema → a turn."""
    if not isinstance(message, dict):
        raise Unusable("turn is not an object")
    name = message.get("role", message.get("from"))
    if not isinstance(name, str):
        raise Unusable("turn without a role")
    role = ROLES.get(name.strip().lower())
    content = message.get("content", message.get("value"))
    if role is None:
        raise Unusable("unknown role")
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": tool_calls(content)}
    turn = {"role": role}
    if role == "assistant":
        if calls := message.get("tool_calls"):
            turn["tool_calls"] = tool_calls(calls)
            content = content or ""
        if reasoning := message.get("reasoning_content"):
            turn["reasoning_content"] = said(reasoning, "reasoning")
    turn["content"] = text_in(content, f"{role} turn")
    if role == "user":
        said(content, "user turn")
        if asides := message.get("asides"):
            turn["asides"] = asides_in(asides, turn["content"])
    return turn


def asides_in(value, content):
    """[[characters, text], …] beside a turn's content; Unusable for places outside of it."""
    ok = lambda a: isinstance(a, list) and len(a) == 2 and type(a[0]) is int and isinstance(a[1], str) and a[1]  # noqa: E731
    if not isinstance(value, list) or not all(map(ok, value)):
        raise Unusable("asides are not [characters, text] pairs")
    if not all(0 < place <= len(content) for place, _ in value):
        raise Unusable("aside outside of its turn")
    return value


def history_turns(history):
    """`history` in any of its shapes → turns: nothing, pairs, a flat list, messages, or one of these as text."""
    if isinstance(history, str):
        history = literal(history, "history") if history.strip() else []
    if history is None or history == []:
        return []
    if not isinstance(history, (list, tuple)):
        raise Unusable("history is not a list")
    if all(isinstance(item, dict) for item in history):
        return [turn_of(item) for item in history]
    if all(isinstance(item, str) for item in history) and len(history) % 2 == 0:
        history = list(zip(history[::2], history[1::2]))
    turns = []
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable("history turn is not a pair")
        user, assistant = pair
        turns.append({"role": "user", "content": said(user, "history question")})
        turns.append({"role": "assistant", "content": said(assistant, "history answer")})
    return turns


def system_turns(record):
    """The system prompt of a record whose schema has a field for it."""
    system = record.get("system", record.get("system_prompt"))
    return [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []


def with_system(record, turns):
    """Turns behind the record's system prompt, unless they bring their own."""
    return turns if turns and turns[0]["role"] == "system" else [*system_turns(record), *turns]


def tools_of(record):
    """The tool descriptions of a record, a list or JSON text → [dict]; [] for none."""
    tools = record.get("tools")
    if isinstance(tools, str):
        tools = literal(tools, "tools") if tools.strip() else []
    if tools in (None, []):
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unusable("tools is not a list of objects")
    return tools


def asked(record, notes):
    """instruction + input → the question; an input that only says it is empty, or repeats the question, is left out."""
    question = said(record.get("instruction"), "question")
    given = record.get("input")
    given = "" if given is None else text_in(given, "input")
    if not given.strip():
        return question
    if given.strip().lower() in NO_INPUT:
        notes.append("input that says it is empty")
        return question
    if given.strip() == question.strip():
        notes.append("input that repeats the question")
        return question
    return f"{question}\n{given}"


# --- whole records --------------------------------------------------------------------------------------------------

# Which fields mark a schema; the first that fits.
SCHEMAS = (
    ("conversations", ("conversations",)),
    ("messages", ("messages",)),
    ("instruction", ("instruction", "output")),
    ("q", ("q", "a")),
    ("question", ("question", "answer")),
    ("prompt", ("prompt", "response")),
)


def schema_of(record):
    """The schema's name; Unusable when none fits, naming what is missing where one nearly does."""
    if is_question(record):
        raise Unusable("exam question")
    if any(record.get(name) is not None for name in ("chosen", "rejected", "response_chosen")):
        raise Unusable("a preference pair, not a conversation")
    for name, fields in SCHEMAS:
        if all(field in record for field in fields):
            return name
    for _, fields in SCHEMAS:
        if present := [field for field in fields if field in record]:
            raise Unusable(f"no {next(f for f in fields if f not in present)} beside {present[0]}")
    raise Unusable("unknown schema")


def question_turns(record, schema, notes):
    """System, history and question of a record that keeps them in fields."""
    question = asked(record, notes) if schema == "instruction" else said(record[schema], "question")
    return [*system_turns(record), *history_turns(record.get("history")), {"role": "user", "content": question}]


def check_order(turns):
    """Unusable unless every tool result follows a call, and a system prompt stands first."""
    for before, turn in zip([None, *turns], turns):
        if turn["role"] == "system" and before is not None:
            raise Unusable("system turn in the middle")
        if turn["role"] == "tool" and not (before and (before["role"] == "tool" or before.get("tool_calls"))):
            raise Unusable("tool turn without a call")


def check_text(turns, allow_empty=False):
    """Unusable for what must not be learnt: empty answers, unfilled placeholders, text that is not Unicode."""
    for turn in turns:
        text = turn["content"]
        if turn["role"] == "assistant" and not (allow_empty or text.strip() or turn.get("tool_calls")):
            raise Unusable("answer is empty")
        if "{{" in text and PLACEHOLDER.search(FENCED.sub("", text)):
            raise Unusable("unresolved placeholder")
    try:
        json.dumps(turns, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable("text is not valid Unicode") from None


def conversation_of(record, allow_empty=False):
    """A record of any schema → (conversation, reason, notes).

    Args:
        record: a dict as read from a file.
        allow_empty: keep answers that are empty text.
    Returns:
        conversation: the one form, or None; reason: why it is None; notes: what was changed, each a short phrase.
    """
    notes = []
    try:
        schema = schema_of(record)
        if schema in ("conversations", "messages"):
            messages = record[schema]
            if not isinstance(messages, list) or not messages:
                raise Unusable(f"{schema} is not a list of turns" if messages != [] else "no turns")
            turns = with_system(record, [*map(turn_of, messages)])
        else:
            answer = {"instruction": "output", "q": "a", "question": "answer", "prompt": "response"}[schema]
            reply = {"role": "assistant", "content": (text_in if allow_empty else said)(record[answer], "answer")}
            turns = [*question_turns(record, schema, notes), reply]
        if not any(t["role"] == "assistant" for t in turns):
            raise Unusable("no assistant turn")
        if turns[-1]["role"] != "assistant":
            notes.append("turns after the last answer cut")
            while turns[-1]["role"] != "assistant":
                turns.pop()
        check_order(turns)
        check_text(turns, allow_empty)
        tools = tools_of(record)
    except Unusable as reason:
        return None, str(reason), notes
    return {"conversations": turns, **({"tools": tools} if tools else {})}, None, notes
