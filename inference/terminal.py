"""Talking to a model on a terminal: what is typed, what is shown, prompt files."""

import json
from pathlib import Path

from inference.chat import COMMANDS, obey

# the standard prompts: what a base model continues, what a chat model answers
BEGINNINGS = [
    "中国的首都是",
    "地球绕着",
    "水的化学式是",
    "人工智能",
    "从前有一座山",
    "长江是",
    "The capital of France is",
]
QUESTIONS = [
    "你好！",
    "你是谁？",
    "法国的首都是哪里？",
    "请介绍一下你自己。",
    "水的化学式是什么？",
    "3加5等于几？",
    "Who are you?",
]


def read_prompts(path):
    """The lines of a prompt file that hold anything; of .jsonl, what their "prompt" says."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]  # splitlines would cut at U+2028, which is text
        prompts = [json.loads(line)["prompt"] for line in lines] if path.endswith(".jsonl") else lines
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError("a prompt is not text")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path}: each line must be an object with a "prompt" ({error!r})') from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one per line")
    return prompts


def show(pieces):
    """Prints pieces as they come and returns them joined."""
    text = []
    for piece in pieces:
        text.append(piece)
        print(piece, end="", flush=True)
    print()
    return "".join(text)


def asked(question):
    """The answer to a question on the terminal; "" for ctrl-D."""
    try:
        return input(question).strip()
    except EOFError:
        print()
        return ""


def typed_lines(what):
    """What a person types at the prompt, until ctrl-D or ctrl-C."""
    print(what)
    while True:
        try:
            line = input("» ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if line:
            yield line


def converse(conversation, out_dir):
    """A chat on the terminal."""
    for line in typed_lines(f"ctrl-D ends; lines that begin with / are commands\n{COMMANDS}"):
        try:
            if not line.startswith("/"):
                show(conversation.ask(line))
                continue
            said = obey(conversation, line, out_dir)
        except KeyboardInterrupt:  # breaks the answer off, not the chat
            said = " … stopped"
        except (ValueError, OSError) as error:
            said = f"error: {error}"
        if said is None:
            return
        print(said)
