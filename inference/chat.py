"""A conversation with a model: what it remembers, what it is told, and the commands a person can type."""

import dataclasses
import json
import typing

from inference.engine import Sampling, generate, stream_parts
from inference.opening import adapter_path
from inference.text import until_stop
from model.chat import answer_of
from model.int8 import is_int8
from model.lora import load_adapter, remove_lora
from trainer.args import flag_type, parse_bool
from trainer.checkpoint import write_atomically

COMMANDS = """\
/reset            forget the conversation          /system TEXT    set the system prompt; empty: none
/set NAME VALUE   change a sampling setting        /history N      earlier exchanges that are remembered
/lora NAME        put on an adapter; off: base     /save FILE      keep the conversation as .jsonl
/settings         show what is set                 /quit           leave (also ctrl-D)"""


class Conversation:
    """Turns between a person and a model.

    Args:
        model: a Transformer in eval mode; tokenizer: its ChatTokenizer.
        sampling: Sampling.
        system: system prompt, or "".
        history: how many earlier exchanges the model is shown; 0: each question stands alone.
    """

    def __init__(self, model, tokenizer, sampling, system="", history=10):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.system, self.history, self.turns = system, history, []

    def prompt(self, question):
        """The ids the model continues: system prompt, the exchanges that fit, the question, the answer's header.

        Raises:
            ValueError: the question alone is too long for the context.
        """
        room = self.model.cfg.max_seq_len - 1
        wanted = min(self.sampling.max_new_tokens, room // 4)  # for the answer; older exchanges make way for it
        system = [{"role": "system", "content": self.system}] if self.system else []
        for kept in range(2 * self.history, -1, -2):
            turns = [*system, *self.turns[len(self.turns) - min(kept, len(self.turns)) :]]
            ids = self.tokenizer.encode_prompt([*turns, {"role": "user", "content": question}])
            if len(ids) + wanted <= room or (kept == 0 and len(ids) <= room):
                return ids
        raise ValueError(f"the question takes {len(ids)} of {room + 1} positions; shorten it")

    def ask(self, question):
        """Yields the answer piece by piece, whole characters; remembers it when it is complete or broken off."""
        ids, parts = self.prompt(question), []
        try:
            stop = (self.tokenizer.eos_id,)
            stream = stream_parts(self.tokenizer, generate(self.model, ids, self.sampling, stop))
            if self.sampling.stop:  # what is cut has no tags
                stream = ((text, False) for text in until_stop((text for text, _ in stream), self.sampling.stop))
            for part in stream:
                parts.append(part)
                yield part[0]
        finally:
            self.turns += [{"role": "user", "content": question}, answer_of(parts)]

    def line(self):
        """The conversation as one line of JSON, in the form that data_process.py sft reads."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return json.dumps({"conversations": [*system, *self.turns]}, ensure_ascii=False) + "\n"

    def save(self, path):
        """Writes that line to a file."""
        write_atomically(path, lambda f: f.write(self.line().encode("utf-8")))


def changed(sampling, name, text):
    """Sampling with one field set from text; ValueError names what is wrong."""
    fields = {f.name: f for f in dataclasses.fields(Sampling)}
    if name not in fields:
        raise ValueError(f"there is no setting {name}; known: {', '.join(fields)}")
    hint = Sampling.__annotations__[name]
    kind = flag_type(hint)
    if text.lower() == "none" and type(None) not in typing.get_args(hint):
        raise ValueError(f"{name} cannot be none")
    value = None if text.lower() == "none" else parse_bool(text) if kind is bool else kind(text)
    return dataclasses.replace(sampling, **{name: value})


def obey(conversation, command, out_dir):
    """Carries out a typed command and returns what to say; None to leave.

    Raises:
        ValueError, OSError: the command cannot be carried out; nothing has changed.
    """
    name, _, rest = command[1:].strip().partition(" ")
    rest = rest.strip()
    if name in ("quit", "exit", "q"):
        return None
    if name == "reset":
        conversation.turns.clear()
        return "forgotten"
    if name == "system":
        conversation.system = rest
        return "system prompt set" if rest else "no system prompt"
    if name == "history":
        if not rest.isdecimal():
            raise ValueError(f"/history {rest}: give a number, 0 or more")
        conversation.history = int(rest)
        return f"{rest} earlier exchanges are remembered"
    if name == "set":
        setting, _, value = rest.partition(" ")
        conversation.sampling = changed(conversation.sampling, setting, value.strip())
        return f"{setting} is {getattr(conversation.sampling, setting)}"
    if name == "settings":
        told = {**dataclasses.asdict(conversation.sampling), "history": conversation.history}
        return "  ".join(f"{k} {v}" for k, v in {**told, "system": conversation.system or "none"}.items())
    if name == "lora":
        if is_int8(conversation.model):
            raise ValueError("weights of 8 bits take no other adapter; start without --int8")
        if rest in ("", "off"):
            remove_lora(conversation.model)
            return "no adapter: this is the base"
        load_adapter(conversation.model, adapter_path(rest, out_dir, conversation.model.cfg))
        return f"adapter {rest} is on"
    if name == "save":
        if not rest:
            raise ValueError("/save needs a file name")
        conversation.save(rest)
        return f"saved {rest}"
    return COMMANDS
