"""Traditional → simplified characters, through OpenCC."""

import functools
import re
import sys


@functools.cache
def converter():
    """(OpenCC's t2s, pattern of the characters that it changes); once in a process."""
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise ImportError("simplified characters need OpenCC: pip install -r requirements-data.txt") from error
    t2s = OpenCC("t2s")
    ideographs = [chr(c) for c in (*range(0x2E80, 0xFB00), *range(0x20000, min(0x323B0, sys.maxunicode)))]
    ideographs = [c for c in ideographs if not "\ud800" <= c <= "\udfff"]
    changed = t2s.convert("\n".join(ideographs)).split("\n")
    return t2s, re.compile("[" + "".join(c for c, new in zip(ideographs, changed) if c != new) + "]")


KANA = re.compile("[\u3041-\u309f]")  # hiragana: Japanese, whose characters are not the traditional ones


def to_simplified(text):
    """str → (str, None), a rule: traditional characters and phrases → simplified ones; Japanese stays."""
    t2s, traditional = converter()
    if not traditional.search(text) or len(KANA.findall(text)) > 0.05 * len(text):
        return text, None
    return t2s.convert(text), None
