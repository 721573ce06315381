"""Charts as inline SVG: colours come from the page's CSS variables, so that they follow light and dark."""

import math
from dataclasses import dataclass

from evaluation.markup import Html, h, number, percent

MOST_POINTS = 240  # of a line; more cannot be told apart on a screen
SLICES = 48  # of a line chart that tell their values when pointed at
TICKS = (1, 2, 2.5, 5, 10)


@dataclass
class Line:
    """A line of a chart: `style` is a CSS class (c0-c7, with `faint` for noise behind a smoothed line)."""

    name: str
    style: str
    points: list  # [(x, y or None)], None is a gap
    dots: bool = False


def ticks(low, high, most=5):
    """Round numbers from low to high, at most `most` of them.

    >>> ticks(0, 950)
    [0.0, 200.0, 400.0, 600.0, 800.0]
    """
    if high <= low:
        return [low]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in TICKS if factor * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value):
    """12000 → '12k'; 0.0003 → '3e-4'; 0.25 → '0.25'"""
    size = abs(value)
    if size >= 1e4:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    if 0 < size < 1e-2:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:g}"


def thin(points, most=MOST_POINTS):
    """At most about `most` of [(x, y)]: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return points
    kept = []
    for i in range(most // 2):
        part = points[i * len(points) // (most // 2) : (i + 1) * len(points) // (most // 2)]
        known = [p for p in part if p[1] is not None] or part
        ends = {id(p): p for p in (min(known, key=height), max(known, key=height))}
        gap = next((p for p in part if p[1] is None), None)
        kept += sorted([*ends.values(), *([gap] if gap and gap not in known else [])], key=lambda p: p[0])
    return kept


def height(point):
    """The y of a point that may be a gap, to compare it."""
    return point[1] if point[1] is not None else -math.inf


def smooth(points, spans=40):
    """The exponential mean of [(x, y)] over about 1/spans of its length, without the bias of its start; gaps stay."""
    keep, mean, weight, result = max(0.0, 1 - 2 / (len(points) / spans + 1)), 0.0, 0.0, []
    for x, y in points:
        if y is None:
            result.append((x, None))
            continue
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        result.append((x, mean / weight))
    return result


def noisy(name, style, points, dots=False):
    """A column of a log → its Lines: a long one is drawn smoothed, with what was measured faint behind it."""
    if len(points) <= 40:
        return [Line(name, style, points, dots and len(points) <= 20)]
    return [Line("raw", f"{style} faint", points), Line(name, style, smooth(points))]


def span_of(lines, zero):
    """(lowest, highest) y that a chart shows: rare spikes may leave it."""
    values = sorted(y for line in lines for _, y in line.points if y is not None)
    low, high, usual = values[0], values[-1], values[(len(values) - 1) * 98 // 100]
    if high > 3 * abs(usual) and len(values) > 50:
        high = 1.5 * usual
    if zero and low > 0:
        low = 0.0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if low == 0 and zero else low - room), high + room


def path_of(points, place):
    """Points → the d of a path, broken at gaps."""
    d, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        px, py = place(x, y)
        d.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    return "".join(d)


def line_chart(title, lines, size=(360, 190), zero=False, label=tick_label, level=None, second=None, over="steps"):
    """A figure with lines over training steps, or over something else that is counted from 0.

    Args:
        title: what is measured, with its unit.
        lines: [Line]; those without a finite value are left out; None if fewer than two steps are left.
        size: (width, height) of the SVG in its own units, which are pixels where there is room.
        zero: whether the axis begins at 0.
        label: value → text, for the axis and for what is shown when pointed at.
        level: (value, name) of a horizontal line for comparison.
        second: value → text of an axis to the right that measures the same in other units.
        over: what is counted from left to right.
    """
    lines = [line for line in lines if any(y is not None for _, y in line.points)]
    if len({x for line in lines for x, y in line.points if y is not None}) < 2:
        return None
    (width, tall), left, right, top, bottom = size, 44, 44 if second else 10, 8, 24
    low, high = span_of(lines, zero)
    last = max(x for line in lines for x, _ in line.points) or 1
    place = lambda x, y: (  # noqa: E731
        left + x / last * (width - left - right),
        top + (high - min(max(y, low), high)) / (high - low) * (tall - top - bottom),
    )
    marks = []
    for y in ticks(low, high, 4):
        _, py = place(0, y)
        marks.append(h("path", d=f"M{left} {py:.1f}H{width - right}", class_="grid"))
        marks.append(h("text", axis_label(y, label), x=left - 6, y=f"{py + 4:.1f}", text_anchor="end"))
        if second:
            marks.append(h("text", second(y), x=width - right + 6, y=f"{py + 4:.1f}"))
    for x in (x for x in ticks(0, last, 5 if width < 500 else 8) if x == int(x)):
        px, _ = place(x, low)
        anchor = "end" if px > width - 24 else "middle"
        marks.append(h("text", tick_label(x), x=f"{px:.1f}", y=tall - 6, text_anchor=anchor))
    if level and low <= level[0] <= high:
        _, py = place(0, level[0])
        marks.append(h("path", d=f"M{left} {py:.1f}H{width - right}", class_="level"))
    for line in lines:
        points = thin(line.points)
        marks.append(h("path", d=path_of(points, place), class_=f"line {line.style}"))
        if line.dots or sum(y is not None for _, y in points) <= 2:
            spots = [place(x, y) for x, y in points if y is not None]
            marks += [h("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"dot {line.style}") for x, y in spots]
    marks += slices(lines, last, place, (left, width - right, top, tall - bottom), label)
    said = "; ".join(f"{line.name}: {first_to_last(line, label)}" for line in lines if "faint" not in line.style)
    picture = svg(size, f"{title}, over {last:,.0f} {over}. {said}", marks)
    return h("figure", h("figcaption", h("b", title), legend(lines, level, label, high)), picture, class_="chart")


def first_to_last(line, label):
    """'from 8.7 to 0.61'"""
    known = [y for _, y in line.points if y is not None]
    return f"from {precise(known[0], label)} to {precise(known[-1], label)}"


def precise(value, label):
    """A value with more digits than an axis needs."""
    if label is not tick_label or abs(value) < 1e-2:
        return label(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def axis_label(value, label):
    """A value as an axis shows it: 0.4 is 40 %, not 40.0 %."""
    return f"{100 * value:g}\u00a0%" if label is percent else label(value)


def legend(lines, level, label, top):
    """The names of the lines with their colours and last values, and a spike above `top`; one alone needs no colour."""
    named = [line for line in lines if "faint" not in line.style]
    items = []
    for line in named:
        last = next(y for _, y in reversed(line.points) if y is not None)
        swatch = h("i", class_=f"swatch {line.style}") if len(named) > 1 or level else None
        items.append(h("span", swatch, f"{line.name} {precise(last, label)}"))
    if level:
        items.append(h("span", h("i", class_="swatch dashed"), level[1]))
    highest = max(y for line in lines for _, y in line.points if y is not None)
    if highest > top:
        items.append(h("span", f"highest {precise(highest, label)}"))
    return h("span", items, class_="legend")


def slices(lines, last, place, box, label):
    """Invisible upright stripes; pointing at one shows the values nearest to its middle."""
    left, right, top, bottom = box
    shown = [line for line in lines if "faint" not in line.style]
    n = min(SLICES, max(len(line.points) for line in shown))
    wide, stripes = (right - left) / n, []
    for i in range(n):
        x = (i + 0.5) / n * last
        near = [min(line.points, key=lambda p: abs(p[0] - x)) for line in shown]
        values = [f"{line.name} {precise(y, label)}" for line, (_, y) in zip(shown, near) if y is not None]
        told = h("title", f"step {near[0][0]:,.0f}: {', '.join(values)}")
        stripes.append(h("rect", told, x=f"{left + i * wide:.1f}", y=top, width=f"{wide:.1f}", height=bottom - top))
    return [h("g", stripes, class_="stripes")]


def svg(size, said, marks, role="img"):
    """A picture that is as wide as its place, with a sentence for those who do not see it."""
    return h("svg", h("title", said), marks, viewBox=f"0 0 {size[0]} {size[1]}", role=role, aria_label=said)


def interval_chart(said, groups, chance, wide):
    """Accuracies with their 95 % intervals on an axis from 0 to 100 %.

    Args:
        said: the chart in a sentence.
        groups: [(model, [(scoring, style, accuracy, low, high)])]; low and high may be None.
        chance: the accuracy of guessing.
        wide: whether names stand beside the bars instead of above them.
    """
    width, left, row, y = (1080, 260, 26, 22) if wide else (360, 10, 40, 22)
    right = width - (60 if wide else 12)
    at_x = lambda share: left + min(max(share, 0), 1) * (right - left)  # noqa: E731
    marks, first = [], y
    for model, rows in groups:
        marks.append(h("text", model, x=0, y=y + 12, class_="strong over"))
        y += 20
        for scoring, style, accuracy, low, high in rows:
            middle = y + (row / 2 if wide else 28)
            marks.append(h("text", scoring, x=12 if wide else left, y=(middle + 4 if wide else y + 15), class_="over"))
            marks.append(h("text", percent(accuracy), x=width, y=(middle + 4 if wide else y + 15), text_anchor="end"))
            told = f"{model}, {scoring}: {percent(accuracy)}"
            marks.append(h("path", d=f"M{left} {middle}H{right}", class_="grid"))
            if low is not None:
                ends = "".join(f"M{at_x(end):.1f} {middle - 4}v8" for end in (low, high))
                bar = f"M{at_x(low):.1f} {middle}H{at_x(high):.1f}{ends}"
                marks.append(h("path", d=bar, class_=f"line {style}"))
                told += f", 95 % interval {percent(low)} to {percent(high)}"
            marks.append(
                h("circle", h("title", told), cx=f"{at_x(accuracy):.1f}", cy=middle, r=5, class_=f"dot {style}")
            )
            y += row
        y += 8
    axis = [
        h("text", f"{t} %", x=f"{at_x(t / 100):.1f}", y=y + 14, text_anchor="middle" if t else "start") for t in (0, 50)
    ]
    axis.append(h("text", "100 %", x=right, y=y + 14, text_anchor="end"))
    line = h("path", d=f"M{at_x(chance):.1f} {first - 6}V{y}", class_="level")
    name = h("text", f"guessing {percent(chance, 0)}", x=f"{at_x(chance):.1f}", y=12, text_anchor="middle")
    return svg((width, y + 20), said, [line, name, marks, axis])


def both(make):
    """make(wide) twice: CSS shows the one that fits the screen."""
    return Html(h("div", make(True), class_="wide") + h("div", make(False), class_="narrow"))


def shares(records, name):
    """The list-valued column `name` of a log → one smoothed Line per position, such as the share of each expert."""
    rows = [(r["step"], r[name]) for r in records if isinstance(r.get(name), list)]
    most = max((len(values) for _, values in rows), default=0)
    return [
        Line(f"{i}:", f"c{i % 8}", smooth([(step, number(values[i])) for step, values in rows if i < len(values)]))
        for i in range(most)
    ]
