"""Ids → the text of an answer while it is written: whole characters, and an end where a stop string begins."""

import codecs
import json


class Stops(tuple):
    """Texts that end an answer: from one text, a JSON list of texts, or any sequence of texts; none is empty."""

    def __new__(cls, texts=()):
        if isinstance(texts, str):
            try:
                texts = json.loads(texts) if texts.startswith("[") else [texts]
            except json.JSONDecodeError:
                texts = [texts]  # "[end" is a text, too
        texts = list(texts)
        if not all(isinstance(t, str) for t in texts):
            raise ValueError(f'stop is {texts!r}; give a text, or a JSON list of texts such as ["\\n", "Q:"]')
        return super().__new__(cls, (t for t in texts if t))


NO_STOPS = Stops()


def find_stop(text, stops):
    """Where the text ends: the beginning of the stop string that is complete first, the longest if several are.

    None if there is none. The same for every way in which the text can come in pieces.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def undecided(text, stops):
    """How many characters at the end of the text may be the beginning of a stop string."""
    sizes = (n for stop in stops for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n]))
    return max(sizes, default=0)


def until_stop(pieces, stops):
    """The pieces of a text up to the first stop string, which is left out."""
    held = ""
    for piece in pieces:
        held += piece
        cut = find_stop(held, stops)
        ready = len(held) - undecided(held, stops) if cut is None else cut
        if ready:
            yield held[:ready]
        if cut is not None:
            return
        held = held[ready:]
    if held:
        yield held


def shown_bytes(tokenizer, i):
    """The bytes a reader sees of id `i`: its own, the name of a tag, nothing for <s> and </s>."""
    tag = tokenizer.tags.get(i)
    return tag.encode() if tag else tokenizer.id_to_bytes(i)


class TextStream:
    """One answer: ids go in, text that is certain comes out, with the marks of the ids it is made of.

    Attributes:
        stopped: a stop string has come; the text is complete.
    """

    def __init__(self, tokenizer, stops=()):
        self.tokenizer, self.stops, self.stopped = tokenizer, stops, False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held, self.marks = "", []
        self.decoded = self.shown = 0  # characters that came in, characters that went out

    def push(self, i, mark=None):
        """Adds an id, with a mark or None → (text, [(offset, mark)]); offset: how many characters lie before the id."""
        if mark is not None:
            self.marks.append((self.decoded, mark))
        return self._release(self.decoder.decode(shown_bytes(self.tokenizer, i)), final=False)

    def finish(self):
        """Nothing more comes → the rest, as push gives it."""
        return self._release(self.decoder.decode(b"", final=True), final=True)

    def _release(self, piece, final):
        text = self.held + piece
        self.decoded += len(piece)
        if self.stops:
            cut = find_stop(text, self.stops)
            self.stopped = cut is not None
            if cut is None:
                cut = len(text) - (0 if final else undecided(text, self.stops))
            text, self.held = text[:cut], text[cut:]
        self.shown += len(text)
        ready = [m for m in self.marks if m[0] < self.shown or (final and not self.stopped)]
        self.marks = self.marks[len(ready) :]
        return text, ready
