"""Looking at data as a model is trained on it: token by token, with what is scored in colour."""

import codecs
import os
import sys

import numpy as np

from model.bin_data import find_documents, open_ids
from model.cross_entropy import IGNORE

SCORED, CONTROL, OTHER, END = "\033[32m", "\033[35m", "\033[90m", "\033[0m"  # green, magenta, grey


def in_colour():
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def sides_of(record, tokenizer):
    """A record in the one form → [(title, ids, scored)], two for a preference pair."""
    turns, tools = record["conversations"], record.get("tools", ())
    if "chosen" not in record:
        [chat] = tokenizer.encode_chats([(turns, tools)])
        return [("conversation", chat.ids, chat.scored)]
    answers = [[*turns, {"role": "assistant", "content": record[side]}] for side in ("chosen", "rejected")]
    encoded = tokenizer.encode_chats([(turns, tools) for turns in answers], last_only=True)
    return [(title, chat.ids, chat.scored) for title, chat in zip(("chosen", "rejected"), encoded)]


def document_of(path, number, tokenizer):
    """Document `number` of a .bin → [(title, ids, scored)]; ValueError if there is none."""
    ids = open_ids(path)
    starts, lengths = find_documents(ids, tokenizer.bos_id, tokenizer.vocab_size, path)
    if not 0 <= number < len(starts):
        raise ValueError(f"{path} has {len(starts)} documents, numbered from 0; there is no {number}")
    own = np.asarray(ids[starts[number] : starts[number] + lengths[number]], dtype=np.int64)
    return [("document", own, np.arange(len(own)) > 0)]


def whole_text(tokenizer, ids):
    """What each id adds to the text: a character that several ids spell appears with the last of them."""
    decoder, bytes_of = codecs.getincrementaldecoder("utf-8")("replace"), tokenizer.id_to_bytes
    return [decoder.decode(bytes_of(i)) if bytes_of(i) else tokenizer.decode([i]) for i in ids]


def show(sides, tokenizer, colour=None):
    """Prints each side as flowing text, then as a table: position, id, token, and the label the model learns there.

    Args:
        sides: [(title, ids (n,), scored (n,))].
        colour: True, False, or None for what the terminal can do.
    """
    colour = in_colour() if colour is None else colour
    paint = lambda text, code: f"{code}{text}{END}" if colour else text  # noqa: E731
    for title, ids, scored in sides:
        print(f"\n{title}: {len(ids)} tokens, {int(scored.sum())} of them scored")
        tokens = [tokenizer.decode([i]) for i in ids]
        codes = [SCORED if s else CONTROL if not tokenizer.id_to_bytes(i) else OTHER for i, s in zip(ids, scored)]
        if colour:
            print("".join(paint(token, code) for token, code in zip(whole_text(tokenizer, ids), codes)))
        print(f"{'position':>8} {'id':>6} {'label':>6}  token")
        for position, (i, s, token, code) in enumerate(zip(ids, scored, tokens, codes)):
            part = (
                "" if "\ufffd" not in token else f"  bytes {tokenizer.id_to_bytes(i).hex(' ')}, a part of a character"
            )
            print(f"{position:>8} {i:>6} {i if s else IGNORE:>6}  {paint(repr(token), code)}{part}")
