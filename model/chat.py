"""The tokenizer: text → ids and back, so that what a person types can never become a control token.

The file format is Hugging Face's `tokenizer.json`; stock `AutoTokenizer` loads the same folder.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from model.labels import IGNORE

UNK, BOS, EOS = "<unk>", "<s>", "</s>"  # ids 0, 1, 2, in every tokenizer of this project
CONTROLS = (BOS, EOS, *(f"<{end}{tag}>" for tag in ("think", "tool_call", "tool_response") for end in ("", "/")))
DEFAULT_TOKENIZER = Path(__file__).parent / "minimind_tokenizer"


class Encoded(NamedTuple):
    """A conversation as ids.

    Attributes:
        ids: (n,) int64.
        labels: (n,) int64, what is to be learnt in the place of each id: the id itself where an assistant says it and
            for the EOS that ends it, the first id of an aside where the text has one, IGNORE elsewhere.
        ends: for each assistant turn, the number of ids up to and with its EOS; a cut there leaves whole turns.
    """

    ids: np.ndarray
    labels: np.ndarray
    ends: list

    @property
    def scored(self):
        """(n,) bool, True where anything is to be learnt."""
        return self.labels != IGNORE


class ChatTokenizer:
    """A byte-level BPE vocabulary with one BOS and one EOS.

    Attributes:
        vocab_size: V; every id is in [0, V).
        bos_id, eos_id: ids of <s> and </s>.
        hash: first 16 hex digits of the SHA-256 of tokenizer.json, recorded in every .bin and checkpoint.
        path: the folder it was loaded from.
    """

    def __init__(self, path):
        self.path = Path(path)
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"no tokenizer.json in {self.path}; make one with: python train_tokenizer.py")
        raw = file.read_bytes()
        self.hash = hashlib.sha256(raw).hexdigest()[:16]
        self.backend = Tokenizer.from_str(raw.decode("utf-8"))
        # Typing "</s>" gives the ids of "</", "s", ">"; only this project's code writes control tokens.
        self.backend.encode_special_tokens = True
        self.vocab_size = self.backend.get_vocab_size()
        self.bos_id, self.eos_id = self._control(BOS), self._control(EOS)

    def _control(self, token):
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(
                f"{self.path}/tokenizer.json has no {token} token; make one with: python train_tokenizer.py"
            )
        return found

    def check(self, expected_hash, vocab_size, name):
        """ValueError if `name` (a file) was made with another tokenizer, or has no room for this one's ids."""
        if expected_hash not in (None, self.hash):
            raise ValueError(
                f"{name} was made with another tokenizer ({expected_hash}; {self.path} is {self.hash}): "
                "name the right folder with --tokenizer, or make the file again with this one"
            )
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"{self.path} has {self.vocab_size} ids, {name} only {vocab_size}; use the tokenizer it was made with"
            )

    def encode(self, text):
        """str → list of ids, without BOS or EOS; special-token text is encoded as ordinary characters."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """list of str → list of lists of ids, on all cores; ValueError for what no UTF-8 can hold."""
        try:
            return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:  # a half of a surrogate pair: a byte of the command line, or "\\ud800" in JSON
            raise ValueError(f"a text is not valid Unicode, so it has no ids ({error}); write it as UTF-8") from error

    def encode_chats(self, chats, last_only=False):
        """Conversations → list of Encoded, on all cores. What people typed is text, whatever it looks like.

        Args:
            chats: list of (turns, tools); see `chat_pieces`.
            last_only: only the last assistant turn is scored, as preference pairs need it.
        """
        chats = [list(chat_pieces(turns, tools, last_only)) for turns, tools in chats]
        ids = {name: self.backend.token_to_id(name) for name in CONTROLS}  # None in a vocabulary without it: then text
        texts = [p.text for chat in chats for p in chat if not p.control or ids[p.text] is None]
        encoded = iter(self.encode_batch(texts))
        results = []
        for chat in chats:
            parts = [[ids[p.text]] if p.control and ids[p.text] is not None else next(encoded) for p in chat]
            scored = np.repeat([p.scored for p in chat], [len(part) for part in parts]).astype(bool)
            joined = np.fromiter((i for part in parts for i in part), np.int64, len(scored))
            ends = np.flatnonzero(scored & (joined == self.eos_id)) + 1
            labels = np.where(scored, joined, IGNORE)
            for place, label in self._asides(chat, parts):
                labels[place] = label
            results.append(Encoded(joined, labels, ends.tolist()))
        return results

    def _asides(self, pieces, parts):
        """(place in the conversation, id to predict there) of every aside in pieces that were encoded as parts."""
        start = 0
        for piece, part in zip(pieces, parts):
            if piece.asides:
                lengths = np.cumsum([len(self.id_to_bytes(i)) for i in part])  # bytes up to the end of each token
                for characters, text in piece.asides:
                    read = len(piece.text[:characters].encode())
                    yield start + int(np.searchsorted(lengths, read)) + 1, self.encode(text)[0]
            start += len(part)

    def encode_prompt(self, turns, tools=()):
        """Turns so far → ids that end where the assistant's answer begins."""
        [chat] = self.encode_chats([(turns, tools)])
        header = [*self.encode("\n"), self.bos_id] if len(chat.ids) else [self.bos_id]
        return [*chat.ids.tolist(), *header, *self.encode("assistant\n")]

    def decode(self, ids, skip_special=False):
        """ids → str; decode(encode(text)) == text for every str that is valid UTF-8."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    @functools.cached_property
    def _bytes(self):
        """(V,) list: the bytes each id stands for; control tokens stand for none."""
        special = {i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}
        byte_of = {character: byte for byte, character in byte_alphabet().items()}
        names = [self.backend.id_to_token(i) for i in range(self.vocab_size)]
        return [b"" if i in special else bytes(byte_of[c] for c in name) for i, name in enumerate(names)]

    def id_to_bytes(self, i):
        """The bytes that id `i` stands for; they may be a part of a character."""
        return self._bytes[i] if i < self.vocab_size else b""  # a model may have more rows than the tokenizer has ids

    def to_bytes(self, ids):
        """ids → the bytes they stand for, control tokens left out: the text of `decode`, four times as fast."""
        return b"".join([self._bytes[i] for i in ids])

    @functools.cached_property
    def tags(self):
        """{id: name} of the control tokens that a model may write inside an answer, such as <think>."""
        return {i: name for name in CONTROLS[2:] if (i := self.backend.token_to_id(name)) is not None}

    @functools.cached_property
    def token_bytes(self):
        """(V,) int64: how many bytes each id stands for; turns nats per token into bits per byte."""
        return np.array([len(b) for b in self._bytes], dtype=np.int64)


class Piece(NamedTuple):
    """A part of a rendered conversation: the name of a control token, or text; scored if it is to be learnt.

    An aside is (characters, text): behind that many characters the model learns to think of the text's first token,
    which is not written there; what follows is read as if nothing had been asked.
    """

    text: str
    control: bool
    scored: bool
    asides: tuple = ()


def chat_pieces(turns, tools=(), last_only=False):
    """A conversation → its Pieces, as the chat template in tokenizer_config.json writes them.

    Every turn is <s>role, newline, content, </s>, with a newline between turns. Scored is what the assistant says with
    the </s> that ends it, not the header before it.

    Args:
        turns: [{"role", "content", "reasoning_content"?, "tool_calls"?, "asides"?}], roles system, user, assistant,
            tool. What a user says may have asides, [[characters of its content, text], …]; see Piece.
        tools: descriptions of the tools that may be called, dicts.
        last_only: score the last assistant turn only.
    """
    turns = list(turns)
    if tools:
        listed = "<tools>\n" + "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools) + "</tools>"
        before = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
        turns.insert(0, {"role": "system", "content": f"{before}\n\n{listed}" if before else listed})
    for number, turn in enumerate(turns):
        if number:
            yield Piece("\n", False, False)
        yield Piece(BOS, True, False)
        scored = turn["role"] == "assistant" and (not last_only or number == len(turns) - 1)
        if turn["role"] == "assistant":
            yield Piece("assistant\n", False, False)
            yield from (Piece(text, control, scored) for text, control in answer_parts(turn))
        elif turn["role"] == "tool":
            yield Piece("tool\n", False, False)
            yield from (Piece(text, control, False) for text, control in within("tool_response", turn["content"]))
        else:
            header = f"{turn['role']}\n"
            asides = tuple((len(header) + characters, text) for characters, text in turn.get("asides", ()))
            yield Piece(header + turn["content"], False, False, asides)
        yield Piece(EOS, True, scored)


def within(tag, text):
    """<tag>, the text on lines of its own, </tag>: (text, is control) each."""
    return [(f"<{tag}>", True), (f"\n{text}\n", False), (f"</{tag}>", True)]


def answer_parts(turn):
    """What an assistant turn says: reasoning, content, calls; (text, is control) each."""
    content = turn.get("content") or ""
    parts = []
    if turn.get("reasoning_content"):
        parts, content = within("think", turn["reasoning_content"]), "\n\n" + content
    if content:
        parts.append((content, False))
    for number, call in enumerate(turn.get("tool_calls") or []):
        call = call.get("function", call)
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if number or turn.get("content"):
            parts.append(("\n", False))
        parts += within(
            "tool_call", f'{{"name": {json.dumps(call["name"], ensure_ascii=False)}, "arguments": {arguments}}}'
        )
    return parts


def answer_of(parts):
    """What a model said → an assistant turn; the inverse of answer_parts.

    Args:
        parts: (text, is control) each. A tag that opens or closes nothing, and a call that is none, stay text.
    """
    sections, tag, text = [], None, ""  # (tag or None, what is between it and its end) each
    for part, control in parts:
        if control and part in ((f"</{tag}>",) if tag else ("<think>", "<tool_call>")):
            sections.append((tag, text))
            tag, text = None if tag else part.strip("<>"), ""
        else:
            text += part
    content, reasoning, calls = "", "", []
    for kind, inside in [*sections, (tag, text)]:
        if kind == "think" and not (content or reasoning or calls):
            reasoning = inside.removeprefix("\n").removesuffix("\n")
        elif kind == "tool_call" and (call := call_in(inside)):
            content = content.removesuffix("\n")
            calls.append(call)
        elif kind:
            content += f"<{kind}>{inside}</{kind}>"
        else:
            content += inside.removeprefix("\n\n") if reasoning and not (content or calls) else inside
    turn = {"role": "assistant", "content": content}
    return turn | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def call_in(text):
    """The {"name", "arguments"} that a model wrote as JSON, or None."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    return {"name": call["name"], "arguments": call.get("arguments", {})}


@functools.cache
def byte_alphabet():
    """{byte: the printable character that byte-level BPE writes for it} (GPT-2's table, Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@functools.lru_cache(maxsize=4)
def load_tokenizer(path=None):
    """The tokenizer in folder `path`, or the project's own."""
    return ChatTokenizer(path or DEFAULT_TOKENIZER)
