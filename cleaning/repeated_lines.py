"""Lines that stand in many documents, such as a site's footer: found over the whole corpus, then left out.

A line is compared as it stands, without the space around it. Never touched are short lines (headings such as 第一条,
a refrain, a table's rule, a brace), counted in letters and digits alone, and code between ``` fences, where an import
may well stand in a thousand files. A footer with a date or a number in it is another line each day and is not found.
"""

import dataclasses
import hashlib
import re

import numpy as np

from cleaning.equal_keys import repeated_keys
from cleaning.settings import knob

LINES = re.compile("[^\n]*\n|[^\n]+")
# a sentence ends behind 。！？ and closing quotes, and at .!? with space behind them; every character is in one of them
SENTENCES = re.compile(
    "(?:[^\n。！？.!?]|[.!?](?![.!?]{,8}\\s))+(?:[。！？]+|[.!?]+(?=\\s))?[”’」』）)]*|[。！？.!?]+[”’」』）)]*|\n"
)
FENCE = re.compile(r"\s*(```|~~~)")


@dataclasses.dataclass
class RepeatedLines:
    """Which lines are taken for boilerplate."""

    line_documents: int = knob(20, "a line that stands in so many documents is left out of all; 0: none is")
    line_length: int = knob(20, "letters and digits that such a line must have, so that headings stay")
    line_unit: str = knob(
        "line", "what is counted: whole lines, or the sentences in them", choices=["line", "sentence"]
    )


def check_repeated_lines(settings):
    """Raises ValueError for a setting out of range."""
    if settings.line_documents < 0 or settings.line_documents == 1:
        raise ValueError(
            f"line_documents is {settings.line_documents}; in one document every line stands: at least 2, or 0 for none"
        )
    if settings.line_length < 1:
        raise ValueError(f"line_length is {settings.line_length}; it must be at least 1 letter or digit")
    if settings.line_unit not in ("line", "sentence"):
        raise ValueError(f"line_unit is {settings.line_unit!r}; choose line or sentence")


def units_of(text, settings):
    """Splits a text: (list of str that give the text when joined, uint64 keys, which of them have a key as indices)."""
    pieces, candidates, fenced = [], [], False
    for line in LINES.findall(text):
        fence = FENCE.match(line) is not None
        fenced ^= fence
        code = fence or fenced
        for piece in [line] if code or settings.line_unit == "line" else SENTENCES.findall(line):
            if not code and len(piece) >= settings.line_length <= sum(map(str.isalnum, piece)):
                candidates.append(len(pieces))
            pieces.append(piece)
    digests = b"".join(
        hashlib.blake2b(pieces[i].strip().encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in candidates
    )
    return pieces, np.frombuffer(digests, "<u8"), candidates


def line_keys(text, settings):
    """The different keys of a text's lines that are long enough: sorted uint64, 8 bytes for each such line."""
    return np.unique(units_of(text, settings)[1])


def frequent_lines(parts, settings, memory=64 << 20):
    """The keys of the lines that stand in at least settings.line_documents documents.

    Args:
        parts: sequence of uint64 arrays, each the line_keys of many documents end to end; read several times where
            the different lines take more than `memory` bytes; see cleaning.equal_keys.
    Returns:
        sorted uint64 array.
    """
    if not settings.line_documents:
        return np.zeros(0, dtype=np.uint64)
    return repeated_keys(parts, settings.line_documents, memory)


def without_lines(text, frequent, settings):
    """Leaves frequent lines out of a text; all others stay as they are.

    Args:
        frequent: as frequent_lines gives it.
    Returns:
        text: without these lines; empty if there was nothing else.
        removed: list of str, the lines that were left out, in order.
    """
    if not len(frequent):
        return text, []
    pieces, keys, candidates = units_of(text, settings)
    at = np.minimum(np.searchsorted(frequent, keys), len(frequent) - 1)
    gone = {candidates[i] for i in np.flatnonzero(frequent[at] == keys)}
    if not gone:
        return text, []
    left = "".join(piece for i, piece in enumerate(pieces) if i not in gone)
    return (left if left.strip() else ""), [pieces[i].strip() for i in sorted(gone)]
