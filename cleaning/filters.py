"""Documents that are left out: too short, mostly signs or digits, repeating themselves, in another language, blocked.

Each filter is str → (str, None) or (None, reason) and changes nothing.
"""

import functools
import re
import sys
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cleaning.grams import codes_of, finders, rolling_hashes

SPACE, DIGIT, SIGN, HAN, LATIN, KANA, HANGUL, LETTER = range(8)
LANGUAGES = ("zh", "en", "ja", "ko", "other")
# The commonest words of English running text; in other languages and in code they are rare.
ENGLISH = re.compile(r"\b(?:the|of|and|to|in|is|that|for|it|with|as|was|on|be|by|this|are|or|you|not)\b", re.I)
WORD = re.compile(r"[A-Za-z]+")


@functools.cache
def kinds_of_characters():
    """(0x110000,) uint8: SPACE … LETTER for each code point; marks count as letters of their script."""
    kinds = np.full(sys.maxunicode + 1, SIGN, np.uint8)
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] == "Z" or category in ("Cc", "Cf"):
            kinds[code] = SPACE
        elif category[0] == "N":
            kinds[code] = DIGIT
        elif category[0] in "LM":
            kinds[code] = LETTER
    latin = [range(0x41, 0x5B), range(0x61, 0x7B), range(0xC0, 0x250), range(0x1E00, 0x1F00), range(0xFF21, 0xFF5B)]
    for kind, blocks in (
        (LATIN, latin),
        (KANA, [range(0x3041, 0x3100), range(0x31F0, 0x3200), range(0xFF66, 0xFF9E)]),
        (HANGUL, [range(0x1100, 0x1200), range(0x3130, 0x3190), range(0xAC00, 0xD7A4)]),
        (HAN, [range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00), range(0x20000, 0x323B0)]),
    ):
        for block in blocks:
            part = kinds[block.start : block.stop]
            part[(part == LETTER) | (kind == HAN)] = kind
    kinds[ord("〇")] = HAN
    return kinds


@functools.lru_cache(maxsize=1)  # four filters ask about the same text, one after another
def counts_of(text):
    """How many characters of each kind a text has: (8,) int64."""
    return np.bincount(kinds_of_characters()[codes_of(text)], minlength=8)


def share(part, whole):
    """part ÷ whole; 0.0 of nothing."""
    return part / whole if whole else 0.0


def length_within(text, smallest, largest):
    """Characters that are no space: at least `smallest`, at most `largest`."""
    length = int(counts_of(text)[DIGIT:].sum())
    if length < smallest:
        return None, f"too short: under {smallest} characters"
    if length > largest:
        return None, f"too long: over {largest} characters"
    return text, None


def few_signs(text, limit):
    """Punctuation, symbols and emoji are at most `limit` of the characters that are no space."""
    counts = counts_of(text)
    if share(counts[SIGN], counts[DIGIT:].sum()) > limit:
        return None, f"mostly signs: over {limit:.0%} punctuation and symbols"
    return text, None


def few_digits(text, limit):
    """Digits are at most `limit` of the characters that are no space."""
    counts = counts_of(text)
    if share(counts[DIGIT], counts[DIGIT:].sum()) > limit:
        return None, f"mostly digits: over {limit:.0%} digits"
    return text, None


def language_of(text):
    """The main language of a text, one of LANGUAGES, or None where it has no letter.

    Told by script: Chinese has no kana, Japanese at least one in twenty of its letters. A text in Latin letters is
    English if one word in twelve is among the commonest twenty; other languages and source code are "other".
    """
    counts = counts_of(text)
    letters = counts[HAN:].sum()
    if not letters:
        return None
    east = counts[HAN] + counts[KANA] + counts[HANGUL]
    # a Chinese character says as much as about three letters of a word
    if 3 * east < counts[LATIN] + counts[LETTER]:
        if counts[LETTER] > counts[LATIN]:
            return "other"
        sample = text[:20000]
        return "en" if len(ENGLISH.findall(sample)) * 12 >= len(WORD.findall(sample)) else "other"
    if counts[HANGUL] > 0.3 * east:
        return "ko"
    return "ja" if counts[KANA] > 0.05 * east else "zh"


def in_languages(text, kept):
    """The main language is among `kept`, or the text has no letter."""
    language = language_of(text)
    if language is not None and language not in kept:
        return None, f"language: {language}"
    return text, None


def chinese_enough(text, limit):
    """Chinese characters are at least `limit` of the letters."""
    counts = counts_of(text)
    letters = counts[HAN:].sum()
    if letters and share(counts[HAN], letters) < limit:
        return None, f"not Chinese: under {limit:.0%} of the letters"
    return text, None


class Repetition(NamedTuple):
    """Shares of a text's characters, 0 to 1."""

    lines: float  # in lines that stood before
    run: float  # in the one run of `top` characters that is the most frequent
    runs: float  # in runs of `long` characters that stood before


TOP, LONG = 4, 20  # characters; about the 2-grams and 10-grams of words in Gopher's rules


def repetition_of(text):
    """Repetition of a text; of short runs, those without a space are counted."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    again = total - sum(map(len, set(lines)))
    codes = codes_of(text)
    codes = codes[kinds_of_characters()[codes] != SPACE]
    if len(codes) < 2 * LONG:
        return Repetition(share(again, total), 0.0, 0.0)
    top = np.sort(rolling_hashes(codes, TOP))
    edges = np.flatnonzero(np.concatenate([[True], top[1:] != top[:-1], [True]]))
    long = np.sort(rolling_hashes(codes, LONG))
    return Repetition(
        share(again, total),
        # runs that overlap (哈哈哈哈哈) count once each, so that the share may exceed 1
        float(np.diff(edges).max() - 1) * TOP / len(codes),
        float((long[1:] == long[:-1]).sum() / len(long)),
    )


def few_repeats(text, lines, run, runs):
    """Shares of repeated text at most the three limits. Source: Gopher's rules (Rae et al. 2021, arXiv:2112.11446,
    table A1), with characters instead of words; how much of ordinary text each meets was measured."""
    found = repetition_of(text)
    if found.lines > lines:
        return None, "repeated lines"
    if found.run > run:
        return None, "repeated phrase"
    if found.runs > runs:
        return None, "repeated passages"
    return text, None


@functools.cache
def blocked_words(path):
    """A file with a word on each line (# begins a comment) → Grams that find them, in lower case."""
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no blocklist at {path}; write one word on each line of a UTF-8 file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from error
    words = {line.partition("#")[0].strip().lower() for line in lines} - {""}
    if not words:
        raise ValueError(f"{path} holds no word; write one on each line")
    return finders(words)


def not_blocked(text, path, limit):
    """Fewer than `limit` words of the blocklist. Words of Latin letters count as whole words only."""
    lowered, hits = text.lower(), 0
    for grams in blocked_words(path):
        for at, word in grams.find(lowered):
            around = lowered[at - 1 : at] + lowered[at + len(word) : at + len(word) + 1]
            hits += not (word.isascii() and any(c.isascii() and c.isalnum() for c in around))
            if hits >= limit:
                return None, "blocked words"
    return text, None
