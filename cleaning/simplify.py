"""Traditional → simplified characters, through OpenCC."""

import functools
import re


@functools.cache
def converter():
    """(OpenCC's t2s, pattern of characters that it changes or that lie beyond the BMP); once in a process."""
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise ImportError("simplified characters need OpenCC: pip install -r requirements-data.txt") from error
    t2s = OpenCC("t2s")
    ideographs = [chr(c) for c in (*range(0x2E80, 0xD800), *range(0xF900, 0xFB00))]
    changed = t2s.convert("\n".join(ideographs)).split("\n")
    traditional = "".join(c for c, new in zip(ideographs, changed) if c != new)
    # two classes: one with characters beyond the BMP in it is searched as a list, fifty times as slowly
    return t2s, re.compile(f"[{traditional}]"), re.compile("[\U00020000-\U000323af]")


KANA = re.compile("[\u3041-\u309f]")  # hiragana: Japanese, whose characters are not the traditional ones


def to_simplified(text):
    """str → (str, None), a rule: traditional characters and phrases → simplified ones; Japanese stays."""
    t2s, traditional, beyond = converter()
    if not (traditional.search(text) or beyond.search(text)) or len(KANA.findall(text)) > 0.1 * len(text):
        return text, None
    return t2s.convert(text), None
