"""Text that was read in the wrong encoding: undone where that is exact, else the document is dropped.

Three ways are known: UTF-8 read as Latin-1 or Windows-1252 (ä¸­æ–‡), GBK read as these (ÖÐÎÄ), UTF-8 read as GBK (涓枃).
Undoing is exact or nothing: the bytes are made again and must be valid in the right encoding. (ftfy knows the first way
only, and changes quotation marks and width, which are right in Chinese.)
"""

import re

# Latin-1 has control characters for the bytes 0x80 to 0x9F, Windows-1252 other characters for most of them.
WINDOWS = {bytes([b]).decode("cp1252"): b for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
BYTE_OF = {**{chr(b): b for b in range(0x80, 0x100)}, **WINDOWS}
WESTERN = re.compile(f"[{re.escape(''.join(BYTE_OF))}]{{3,}}")
ACCENTED = re.compile("[\u00c0-\u00ff]")
# What the commonest characters (，的、是在“和成可性国) begin with when their UTF-8 is read as GBK; else hardly used.
AS_GBK = re.compile("[锛鐨銆鏄鍦鈥鍜鎴鍙鎬鍥]")
UNKNOWN = re.compile("锟斤拷|烫烫烫|屯屯屯|\ufffd")


def from_utf8(match):
    """A run of characters that bytes may have been read as → the UTF-8 text of these bytes, or itself."""
    if not ACCENTED.search(match[0]):
        return match[0]
    try:
        return bytes(BYTE_OF[c] for c in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def from_gbk(match):
    """The same for GB2312, whose first level (B0 to D7) has the 3,755 common characters; A1 to A3 are punctuation."""
    data = bytes(BYTE_OF[c] for c in match[0])
    try:
        read = data.decode("gb2312")
    except UnicodeDecodeError:
        return match[0]
    common = sum(0xB0 <= lead <= 0xD7 or 0xA1 <= lead <= 0xA3 for lead in data[::2])
    return read if common >= 0.8 * len(read) else match[0]


def from_latin(text):
    """Undoes reading as Latin-1 or Windows-1252 → (text, number of characters that seem misread and are not undone)."""
    text = WESTERN.sub(from_utf8, text)
    if len(ACCENTED.findall(text)) > 0.3 * len(text):  # so many only where the whole text was read wrongly
        text = WESTERN.sub(from_gbk, text)
        return text, sum(map(len, WESTERN.findall(text)))
    return text, sum(len(run) for run in WESTERN.findall(text) if looks_like_utf8(run))


def looks_like_utf8(run):
    """Are a third of its characters such as the first bytes of UTF-8 are read as, and a third the others?"""
    return len(run) >= 6 and len(run) <= 3 * len(ACCENTED.findall(run)) <= 2 * len(run)


def from_chinese(text):
    """Undoes reading UTF-8 as GBK, line by line → (text, number of characters in lines that lost a byte)."""
    lines, broken = text.split("\n"), 0
    for number, line in enumerate(lines):
        marks = len(AS_GBK.findall(line))
        if marks:
            try:
                lines[number] = line.encode("gb18030").decode("utf-8")
            except UnicodeDecodeError:
                broken += len(line) * (marks >= 2 and 20 * marks >= len(line))
    return "\n".join(lines), broken


def repair_mojibake(text, max_broken):
    """str → (str, None) or (None, reason), a rule.

    Args:
        max_broken: largest share of characters that nobody can read: U+FFFD, 锟斤拷 and misread text that stays.
    """
    if text.isascii():
        return text, None
    broken, of_chinese = 0, 0
    if ACCENTED.search(text):
        text, broken = from_latin(text)
    if AS_GBK.search(text):
        text, of_chinese = from_chinese(text)
    broken += of_chinese + sum(len(mark) for mark in UNKNOWN.findall(text))
    if broken > 2 and broken > max_broken * len(text):  # one lost glyph is no fault of a short poem
        return None, "mojibake: read in a wrong encoding"
    return text, None
