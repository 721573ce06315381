"""Charts of bars as inline SVG: how long things are, and how something is made up."""

import itertools
import unicodedata

from evaluation.markup import count, h, percent
from evaluation.report_charts import svg, tick_label, ticks

WIDTH = 360  # of a chart in its own units, which are pixels where there is room
LABEL = 42  # units that a label below a column takes
LONGEST = 44  # letters of a name above its bar; a Chinese character is as wide as two
ROW = 34  # units per named bar: its name above it


def rounded(value):
    """65536 → '66k'; 4096 → '4.1k'; 1048576 → '1M'"""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.0f}{unit}" if value >= 10 * size else f"{value / size:.2g}{unit}"
    return f"{value:.0f}"


def shortened(name):
    """A name that leaves room for the number beside it."""
    widths = itertools.accumulate(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name)
    fitting = sum(width <= LONGEST for width in widths)
    return name if fitting == len(name) else f"{name[: fitting - 1]}…"


def histogram_chart(title, groups, unit, tall=190):
    """A column per group of lengths, from left to right as they grow.

    Args:
        groups: [(lowest, highest, count)]; None if nothing was counted.
        unit: what the lengths are counted in.
    """
    most = max((n for *_, n in groups), default=0)
    if not most:
        return None
    left, right, top, bottom = 44, 6, 8, 24
    step = (WIDTH - left - right) / len(groups)
    at_y = lambda n: top + (1 - n / most) * (tall - top - bottom)  # noqa: E731
    marks = []
    for n in ticks(0, most, 4):
        marks.append(h("path", d=f"M{left} {at_y(n):.1f}H{WIDTH - right}", class_="grid"))
        marks.append(h("text", tick_label(n), x=left - 6, y=f"{at_y(n) + 4:.1f}", text_anchor="end"))
    every = -(-LABEL // step)
    for i, (low, high, n) in enumerate(groups):
        x = left + i * step
        told = h("title", f"{count(low)} to {count(high)} {unit}: {count(n)} documents")
        size = {"x": f"{x + 1:.1f}", "width": f"{max(step - 2, 1):.1f}"}
        marks.append(h("rect", told, **size, y=f"{at_y(n):.1f}", height=f"{at_y(0) - at_y(n):.1f}", class_="bar c0"))
        if i % every == 0:
            marks.append(h("text", rounded(low), x=f"{x:.1f}", y=tall - 6))
    first, last = groups[0][0], groups[-1][1]
    said = f"{title}: {count(sum(n for *_, n in groups))} documents of {count(first)} to {count(last)} {unit}"
    return figure(title, svg((WIDTH, tall), said, marks))


def share_chart(title, parts, whole):
    """A bar per part, with its share of the whole.

    Args:
        parts: [(name, count)], as they are drawn; those of 0 are left out. None if there is none.
        whole: what all of it is, more than 0.
    """
    parts = [(name, n) for name, n in parts if n > 0]
    if not parts:
        return None
    marks = []
    for i, (name, n) in enumerate(parts):
        y, share = i * ROW, n / whole
        marks.append(h("text", shortened(name), x=0, y=y + 13))
        marks.append(h("text", percent(share), x=WIDTH, y=y + 13, text_anchor="end", class_="figure"))
        told = h("title", f"{name}: {count(n)}, {percent(share)}")
        marks.append(h("path", d=f"M0 {y + 23}H{WIDTH}", class_="grid"))
        width = f"{max(min(share, 1) * WIDTH, 1):.1f}"
        marks.append(h("rect", told, x=0, y=y + 19, width=width, height=8, rx=2, class_="bar c0"))
    said = f"{title}: {', '.join(f'{name} {percent(n / whole)}' for name, n in parts)}"
    return figure(title, svg((WIDTH, ROW * len(parts)), said, marks))


def figure(title, picture):
    """A picture under its title."""
    return h("figure", h("figcaption", h("b", title)), picture, class_="chart")
