"""Documents that are left out: too short, mostly signs or digits, repeating themselves, in another language, blocked.

Each filter is str → (str, None) or (None, reason) and changes nothing.
"""

import functools
import re
import sys
import unicodedata
from itertools import islice
from pathlib import Path

import numpy as np

from cleaning.grams import codes_of, rolling_hashes

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

    Told by script: of Japanese letters about half are kana, and of a Chinese article on a Japanese film few. A text in
    Latin letters is English if one word in twelve is among the commonest; other languages and source code are "other".
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
    return "ja" if counts[KANA] > 0.2 * east else "zh"


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


TOP, LONG = 4, 16  # letters in a row, about the 2-grams and 8-grams of words in Gopher's rules


def repeated_lines(text):
    """Share of the characters that are in lines which stood before; space around a line is disregarded."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    return share(total - sum(map(len, set(lines))), total)


def windows_of(codes):
    """Code points (n,) → every TOP of them in a row as one number: (n - 3,) uint64.

    Of code points beyond the BMP the lower 16 bits count, so that TOP of them fill a number.
    """
    return np.ndarray(len(codes) - TOP + 1, np.uint64, codes.astype(np.uint16).tobytes(), strides=(2,))


def few_repeats(text, lines, phrase, passages):
    """Repetition within three limits, all of them shares from 0 to 1.

    Args:
        lines: of the characters in lines that stood before.
        phrase: of the letters in the most frequent TOP letters in a row; occurrences may overlap, as in 哈哈哈哈哈哈.
        passages: of all LONG letters in a row, those that stood before.
    Source: Gopher's rules (Rae et al. 2021, arXiv:2112.11446, table A1), of characters instead of words.
    """
    if repeated_lines(text) > lines:
        return None, "repeated lines"
    codes = codes_of(text)
    codes = codes[kinds_of_characters()[codes] >= HAN]  # a table's rulers and a poem's □□□□ are no phrase
    if len(codes) < 2 * LONG:
        return text, None
    top = np.sort(windows_of(codes))
    many = max(3, int(phrase * len(codes) / TOP) + 1)  # occurrences of one phrase that are too many
    if (top[many - 1 :] == top[: 1 - many]).any():
        return None, "repeated phrase"
    # A passage that stood before begins with TOP letters that stood before: mostly there are too few of those.
    if (top[1:] == top[:-1]).sum() > passages * (len(codes) - LONG + 1):
        long = np.sort(rolling_hashes(codes, LONG))
        if (long[1:] == long[:-1]).sum() > passages * len(long):
            return None, "repeated passages"
    return text, None


def pairs_of(text):
    """A 20-bit hash of every two code points in a row: (len(text) - 1,) uint32."""
    codes = codes_of(text)
    return (codes[:-1] * np.uint32(0x9E3779B1) + codes[1:] * np.uint32(0x85EBCA77)) >> np.uint32(12)


@functools.cache
def blocked_words(path):
    """A file with a word on each line (what follows a # is a comment) → ({first two characters: words}, table).

    The table says of each hash of two characters whether a word may begin with them: (2^20,) bool.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no blocklist at {path}; write one word on each line of a UTF-8 file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from error
    words = {line.partition("#")[0].strip().lower() for line in lines} - {""}
    short = [word for word in words if len(word) < 2]
    if short or not words:
        problem = (
            f"the word {short[0]}, of one character, would drop nearly everything" if short else "there is no word"
        )
        raise ValueError(f"{path}: {problem}; write words of two characters or more, one on each line")
    table, by_start = np.zeros(1 << 20, bool), {}
    for word in sorted(words):
        table[pairs_of(word[:2])] = True
        by_start.setdefault(word[:2], []).append(word)
    return by_start, table


def blocked_in(text, path):
    """Yields every occurrence of a blocked word. Words of Latin letters count as whole words only."""
    (by_start, table), lowered = blocked_words(path), text.lower()
    for at in np.flatnonzero(table[pairs_of(lowered)]).tolist():
        for word in by_start.get(lowered[at : at + 2], ()):
            if lowered.startswith(word, at):
                around = lowered[max(0, at - 1) : at] + lowered[at + len(word) : at + len(word) + 1]
                if not (word.isascii() and any(c.isascii() and c.isalnum() for c in around)):
                    yield word


def not_blocked(text, path, limit):
    """Fewer than `limit` occurrences of blocked words."""
    if any(True for _ in islice(blocked_in(text, path), limit - 1, None)):
        return None, "blocked words"
    return text, None
