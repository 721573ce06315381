"""HTML and SVG from nested calls, escaped unless it is markup already; and how numbers are written on a page."""

import re
from html import escape

VOID = ("meta", "br", "hr")
CHINESE = re.compile(r"[\u3400-\u9fff\u3000-\u303f\uff00-\uffef]")
# what HTML cannot hold: control characters, and halves of a character that JSON can name but UTF-8 cannot write
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
NOTHING = "–"


class Html(str):
    """Markup. Any other text is escaped where it becomes part of a page."""


def joined(children):
    """Children of an element → Html: lists are flattened, None is nothing, text that is not Html is escaped."""
    parts = []
    for child in children:
        if isinstance(child, (list, tuple)):
            parts.append(joined(child))
        elif child is not None:
            parts.append(child if isinstance(child, Html) else escape(UNWRITABLE.sub("\ufffd", str(child))))
    return Html("".join(parts))


def h(name, /, *children, **attributes):
    """h("p", "a < b", class_="note") → Html('<p class="note">a &lt; b</p>'); an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{joined([value])}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{joined(children)}</{name}>")


def words(text):
    """Text as a reader sees it; Chinese is marked as such, so that it gets Chinese glyphs and a Chinese voice."""
    text = str(text)
    return h("span", text, lang="zh-Hans") if CHINESE.search(text) else text


def table(head, rows, caption=None):
    """A table in a box that scrolls by itself; the first cell of a row is its header, numbers stand to the right."""
    kinds = [
        "text" if any(isinstance(row[i], (Html, str)) and not is_figure(row[i]) for row in rows) else "number"
        for i in range(len(head))
    ]
    cells = lambda row: [h("td", value, class_=kind) for value, kind in zip(row[1:], kinds[1:])]  # noqa: E731
    return h(
        "div",
        h(
            "table",
            h("caption", caption) if caption else None,
            h("thead", h("tr", [h("th", name, scope="col", class_=kind) for name, kind in zip(head, kinds)])),
            h("tbody", [h("tr", h("th", row[0], scope="row"), cells(row)) for row in rows]),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or " ".join(map(str, head)),
    )


def is_figure(text):
    """Whether a cell holds a number, an interval of numbers, or nothing."""
    text = re.sub(r"<[^>]*>", "", text)
    return not text or text == NOTHING or bool(re.fullmatch(r"[-+\d.,:/ %e<\u00a0\[\]hms]+[kMGB]*", text))


def folded(summary, *children):
    """What a reader opens only on demand."""
    return h("details", h("summary", summary), children)


# --- values of files that anything may have written -------------------------------------------------------------------


def at(value, *keys):
    """value[key][key]…, None where a part is missing or is no dict."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def table_at(value, *keys):
    """The dict at `keys`, empty if there is none."""
    found = at(value, *keys)
    return found if isinstance(found, dict) else {}


def list_at(value, *keys):
    """The list at `keys`, empty if there is none."""
    found = at(value, *keys)
    return found if isinstance(found, list) else []


def number(value):
    """A finite number; None for anything else, NaN, infinity and True among them."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not abs(value) < 1e300:  # larger ones break sums
        return None
    return value if abs(value) > 1e-300 else 0


# --- numbers ----------------------------------------------------------------------------------------------------------


def count(value):
    """1234567 → '1,234,567'"""
    return NOTHING if number(value) is None else f"{value:,.0f}"


def short(value):
    """26878464 → '26.9 M'"""
    if number(value) is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.{0 if unit == 'k' else 1}f}\u00a0{unit}"
    return f"{value:,.0f}"


def decimal(value, digits=3):
    """0.61234 → '0.612'"""
    return NOTHING if number(value) is None else f"{value:,.{digits}f}"


def percent(value, digits=1):
    """0.8994 → '89.9 %'"""
    return NOTHING if number(value) is None else f"{100 * value:.{digits}f}\u00a0%"


def chance_of_luck(p):
    """A p-value as one reads it: 1e-9 → '< 0.0001'"""
    p = number(p)
    return NOTHING if p is None else "<\u00a00.0001" if p < 1e-4 else f"{p:.2g}"


def interval(pair):
    """[0.872, 0.92] → '[87.2, 92.0]'"""
    low, high = interval_of(pair)
    return NOTHING if low is None else f"[{100 * low:.1f},\u00a0{100 * high:.1f}]"


def interval_of(pair):
    """A list of two numbers → (low, high), else (None, None)."""
    ends = [number(value) for value in pair] if isinstance(pair, (list, tuple)) else []
    return tuple(ends) if len(ends) == 2 and None not in ends else (None, None)
