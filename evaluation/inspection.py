"""Looking at data as a model is trained on it: token by token, with what is scored in colour."""

import codecs
import os
import sys

import numpy as np

from model.bin_data import bin_files, find_documents, open_ids
from model.labels import IGNORE

SCORED, CONTROL, OTHER, END = "\033[32m", "\033[35m", "\033[90m", "\033[0m"  # green, magenta, grey


def in_colour():
    """Whether to colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def sides_of(record, tokenizer):
    """A record in the one form → [(title, ids, labels)], two for a preference pair."""
    turns, tools = record["conversations"], record.get("tools", ())
    if "chosen" not in record:
        [chat] = tokenizer.encode_chats([(turns, tools)])
        return [("conversation", chat.ids, chat.labels)]
    answers = [[*turns, {"role": "assistant", "content": record[side]}] for side in ("chosen", "rejected")]
    encoded = tokenizer.encode_chats([(turns, tools) for turns in answers], last_only=True)
    return [(title, chat.ids, chat.labels) for title, chat in zip(("chosen", "rejected"), encoded)]


def document_of(path, number, tokenizer):
    """Document `number` of a .bin, or of a folder of shards in name order → [(title, ids, labels)].

    Raises:
        ValueError: there are fewer.
    """
    before = 0
    for file in bin_files(path):
        ids = open_ids(file)
        starts, lengths = find_documents(ids, tokenizer.bos_id, tokenizer.vocab_size, file)
        at = number - before
        if 0 <= at < len(starts):
            own = np.asarray(ids[starts[at] : starts[at] + lengths[at]], dtype=np.int64)
            return [("document", own, np.where(np.arange(len(own)) > 0, own, IGNORE))]
        before += len(starts)
    raise ValueError(f"{path} has {before} documents, numbered from 0; there is no {number}")


def whole_text(tokenizer, ids):
    """What each id adds to the text: a character that several ids spell appears with the last of them."""
    decoder, bytes_of = codecs.getincrementaldecoder("utf-8")("replace"), tokenizer.id_to_bytes
    return [decoder.decode(bytes_of(i)) if bytes_of(i) else tokenizer.decode([i]) for i in ids]


def show(sides, tokenizer, colour=None):
    """Prints each side as flowing text, then as a table: position, id, token, and the label the model learns there.

    Args:
        sides: [(title, ids (n,), labels (n,))].
        colour: True, False, or None for what the terminal can do.
    """
    colour = in_colour() if colour is None else colour
    paint = lambda text, code: f"{code}{text}{END}" if colour else text  # noqa: E731
    for title, ids, labels in sides:
        said, asides = labels == ids, (labels != ids) & (labels != IGNORE)
        beside = f", {int(asides.sum())} asides" if asides.any() else ""
        print(f"\n{title}: {len(ids)} tokens, {int(said.sum())} of them scored{beside}")
        tokens = [tokenizer.decode([i]) for i in ids]
        codes = [SCORED if s else CONTROL if not tokenizer.id_to_bytes(i) else OTHER for i, s in zip(ids, said)]
        if colour:
            print("".join(paint(token, code) for token, code in zip(whole_text(tokenizer, ids), codes)))
        print(f"{'position':>8} {'id':>6} {'label':>6}  token")
        for position, (i, label, token, code) in enumerate(zip(ids, labels, tokens, codes)):
            note = f"  bytes {tokenizer.id_to_bytes(i).hex(' ')}, a part of a character" if "\ufffd" in token else ""
            if asides[position]:
                note += f"  to be thought here: {paint(repr(tokenizer.decode([label])), SCORED)}"
            print(f"{position:>8} {i:>6} {label:>6}  {paint(repr(token), code)}{note}")
