"""Markup → the text that a reader of the page would see. Code between back-ticks or fences stays as it is."""

import functools
import html
import re

# Fenced blocks, then code inside a line. An unclosed fence goes to the end, as Markdown has it.
CODE = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*\n.*?(?:^[ \t]*\1[ \t]*$|\Z)|(?<!`)(`+)[^`\n]+\2(?!`)", re.M | re.S)

# fmt: off
BLOCKS = ("address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption "
          "figure footer form h1 h2 h3 h4 h5 h6 head header hr html li main menu nav ol optgroup option p pre section "
          "summary table tbody tfoot thead title tr ul")
# the rest of what HTML has or had
INLINE = ("a abbr acronym b base bdi bdo big button cite code col colgroup data del dfn em embed font frame frameset i "
          "iframe img input ins kbd label legend link mark meta meter noframes param picture progress q rp rt ruby "
          "samp select small source span strike strong sub sup time track tt u var video audio wbr area map")
# fmt: on
# what stands in the place of a tag with this name; both tags of a block begin a line, the end of a cell is a tab
INSTEAD = dict.fromkeys(BLOCKS.split(), "\n") | dict.fromkeys((*INLINE.split(), "script", "style", "td", "th"), "")
# a > inside a quoted attribute does not end the tag
TAG = re.compile(
    r"<(/?)([A-Za-z][A-Za-z0-9]{0,10})(?:\s[^<>\"']*(?:(?:\"[^\"<]{0,2000}\"|'[^'<]{0,2000}')[^<>\"']*)*)?/?>"
)
UNSEEN = "script|style|template|noscript|svg|math|iframe|object|canvas|textarea"


def hidden(end):
    """Pattern of what a browser does not show; `end` is what else may end it.

    It may not begin anew inside: otherwise a text of nothing but beginnings would be read to its end from each.
    """
    return re.compile(
        rf"<(?:!--(?:[^<]|<(?!!--))*?(?:-->{end})|!doctype[^<>]*>|\?xml[^<>]*>|!\[CDATA\["
        rf"|({UNSEEN})\b[^<>]*>(?:[^<]|<(?!\1\b))*?(?:</\1\s*>{end}))|\]\]>",
        re.I,
    )


# In a page, what is not closed goes on to the end, as in a browser; in other texts it is no markup.
HIDDEN_IN_PAGE, HIDDEN = hidden(r"|\Z"), hidden("")
IS_PAGE = re.compile(r"<!doctype\s+html|<html[\s>]|<body[\s>]", re.I)
PRE = re.compile(r"(<pre\b[^<>]*>(?:[^<]|<(?!pre\b))*?</pre\s*>)", re.I)
# Only with its semicolon: &copy=1 in an address is no ©.
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
SPACES = re.compile(r"[ \t\n]+")
AROUND_BREAKS = re.compile(r" *\n *\n[ \t]*(?=\S)")
MANY_BREAKS = re.compile(r"\n{3,}")

TARGET = r"\([ \t]*<?(?=[^\s()]*[./#:])(?:[^\s()<>]|\([^\s()]*\))*>?(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'))?[ \t]*\)"
IMAGE = re.compile(rf"!\[([^\[\]\n]*)\]{TARGET}(?:\{{[^{{}}\n]*\}})?")
LINK = re.compile(rf"(?<![\\!])\[([^\[\]\n]+)\]{TARGET}")
REFERENCE = re.compile(r"(?<![\\!])\[([^\[\]\n]+)\]\[[^\[\]\n]*\](?=[^(:]|$)")
DEFINITION = re.compile(r"^ {0,3}\[(?!\^)[^\[\]\n]+\]:[ \t]+<?\S*[./#]\S*>?(?:[ \t]+[\"'(][^\n]*)?(?:\n|\Z)", re.M)


def outside_code(text, change):
    """`change` (str → str) applied to what is not code."""
    if "`" not in text and "~~~" not in text:
        return change(text)
    parts, at = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, change(text[at:])])


def strip_html(text):
    """str → (str, None), a rule: without tags, scripts and styles, entities as their characters.

    Only names that HTML has count as tags, so List<String>, a < b and </s> stay. In a whole page, line ends and runs of
    spaces mean one space, as a browser has it; in a text with some tags, line ends stay.
    """
    if "<" in text:
        shown = page_text(text) if IS_PAGE.search(text, 0, 2000) else outside_code(text, without_tags)
        text = shown.strip("\n ") if shown != text else text
    if "&" in text and ENTITY.search(text):
        text = outside_code(text, unescaped)
    return text, None


def page_text(text):
    """A whole HTML page → its text, a line for each block; <pre> keeps its lines."""
    parts = PRE.split(HIDDEN_IN_PAGE.sub("", text))
    parts[::2] = [SPACES.sub(" ", part) for part in parts[::2]]
    return without_tags("".join(parts))


def without_tags(text):
    """Block tags → line ends, cells → tabs, other tags and comments → nothing."""
    if "<" not in text:
        return text
    text = HIDDEN.sub("", text)
    shown = TAG.sub(instead_of, text)
    if shown.count("\n") > text.count("\n"):  # two blocks that follow one another are one line's distance apart
        shown = MANY_BREAKS.sub("\n\n", AROUND_BREAKS.sub("\n\n", shown))
    return shown


def instead_of(tag):
    """What a reader sees in the place of a tag; a name that HTML has not stays."""
    name = tag[2].lower()
    return "\t" if tag[1] and name in ("td", "th") else INSTEAD.get(name, tag[0])


def unescaped(text):
    """Entities → characters; one that does not exist stays, and one that names a control character goes."""
    return ENTITY.sub(lambda match: html.unescape(match[0]), text)


def strip_markdown_links(text):
    """str → (str, None), a rule: links and images in Markdown → their words; where they lead to goes.

    [words][name] is a link only in a text that says where names lead; else it may be chemistry or an array.
    """
    if "](" not in text and "]:" not in text:
        return text, None
    named = "]:" in text and DEFINITION.search(text)
    return outside_code(text, without_named_links if named else without_links), None


def without_links(text):
    """Images first: one may be the words of a link."""
    return LINK.sub(r"\1", IMAGE.sub(r"\1", text))


def without_named_links(text):
    """The same, with links by name and the lines that say where they lead."""
    return DEFINITION.sub("", REFERENCE.sub(r"\1", without_links(text)))


@functools.cache
def half_width_table():
    """Full-width letters, digits and space → their ASCII forms; full-width punctuation is ordinary Chinese."""
    return {ord("　"): " ", **{ord(c): chr(ord(c) - 0xFEE0) for c in FULL_WIDTH_LETTERS}}


FULL_WIDTH_LETTERS = "".join(chr(c) for c in range(0xFF01, 0xFF5F) if chr(c - 0xFEE0).isalnum())
FULL_WIDTH = re.compile(f"[　{FULL_WIDTH_LETTERS}]+")


def to_half_width(text):
    """str → (str, None), a rule: full-width letters, digits and spaces → half-width; punctuation stays."""
    table = half_width_table()
    return FULL_WIDTH.sub(lambda match: match[0].translate(table), text), None


# Zero-width spaces, marks of direction, soft hyphen, byte order mark. U+200D and U+200C stay: emoji, Persian and Indic
# scripts are spelt with them, except between two Chinese characters.
INVISIBLE = re.compile(
    "[\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]|(?<=[一-鿿])[\u200c\u200d]+"
)


def strip_invisible(text):
    """str → (str, None), a rule: without characters that cannot be seen; U+2028 and U+2029 are line ends."""
    return INVISIBLE.sub(lambda match: "\n" if match[0] in "\u2028\u2029" else "", text), None


BLOB = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=\s]{20,}|(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{200,}")


def strip_blobs(text):
    """str → (str, None), a rule: without base64 and other runs of 200 letters and digits with no space between."""
    return BLOB.sub(lambda match: match[0] if len(set(match[0])) < 8 else "", text), None  # a ruler of ==== is no blob
