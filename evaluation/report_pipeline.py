"""The picture at the top of a report: every stage with its headline figure, and what has not been run."""

from dataclasses import dataclass

from evaluation.markup import at, count, decimal, h, number, percent, short, table_at
from evaluation.report_charts import svg
from evaluation.report_exam import best_result
from evaluation.report_stages import TITLES, latest, n_params


@dataclass
class Box:
    """A stage in the picture: `lines` are its figures, none if it has not been run; `link` is a place on the page."""

    name: str
    lines: list
    link: str


def box_marks(box, x, y, width, tall):
    """One box, a link to its part of the page where there is one."""
    marks = [h("rect", x=x, y=y, width=width, height=tall, rx=8, class_="box" if box.lines else "box missing")]
    marks.append(h("text", box.name, x=x + 12, y=y + 21, class_="strong" if box.lines else None))
    for i, line in enumerate(box.lines or ["not run"]):
        marks.append(h("text", line, x=x + 12, y=y + 40 + 16 * i, class_="soft" if i or not box.lines else "figure"))
    return h("a", marks, href=f"#{box.link}") if box.lines else h("g", marks)


def pipeline(boxes, wide):
    """The picture of all stages: tokenizer, data, pretrain, sft, lora, dpo, exam in this order.

    Args:
        boxes: seven Boxes.
        wide: from left to right; else from top to bottom, for a narrow screen.
    """
    tokenizer, data, pretrain, sft, lora, dpo, exam = boxes
    if wide:
        w, tall, gap, y = 160, 76, 23, 50
        spots = [(i * (w + gap), y) for i in range(4)]
        spots += [(4 * (w + gap), 2), (4 * (w + gap), 98), (5 * (w + gap), y)]
        size, middle = (6 * w + 5 * gap + 2, 178), y + tall / 2
        joins = [f"M{x + w + 2} {middle}h{gap - 6}" for x, _ in spots[:3]]
        x = spots[3][0] + w
        joins += [f"M{x + 2} {middle}C{x + 14} {middle} {x + 4} {t} {x + gap - 4} {t}" for t in (40, 136)]
        x += w + gap
        joins += [f"M{x + 2} {t}C{x + 18} {t} {x + 4} {middle} {x + gap - 4} {middle}" for t in (40, 136)]
    else:
        w, tall, gap = 356, 66, 22
        spots = [(2, 2 + i * (tall + gap)) for i in range(4)]
        y = spots[3][1] + tall + gap
        spots += [(2, y), (184, y), (2, y + tall + gap)]
        size = (360, y + 2 * tall + gap + 4)
        joins = [f"M180 {top + tall + 2}v{gap - 6}" for _, top in spots[:3]]
        joins += [f"M{x} {t + 2}v{gap - 6}" for x in (91, 269) for t in (spots[3][1] + tall, y + tall)]
    half = 174 if not wide else w
    widths = [w, w, w, w, half, half, w]
    marks = [h("path", d=d, class_="join", marker_end="url(#tip)" if wide else "url(#tip2)") for d in joins]
    for box, (x, top), own in zip((tokenizer, data, pretrain, sft, lora, dpo, exam), spots, widths):
        marks.append(box_marks(box, x + (1 if wide else 0), top, own, tall))
    arrow = h("path", d="M0 0L6 3L0 6z", class_="tip")
    tip = h("marker", arrow, id="tip" if wide else "tip2", refX=5, refY=3, markerWidth=7, markerHeight=7, orient="auto")
    run = ", ".join(f"{box.name}: {' '.join(box.lines) or 'not run'}" for box in boxes)
    return svg(size, f"The pipeline. {run}", [h("defs", tip), *marks], role="group")


def boxes(found):
    """The seven Boxes of the pipeline picture."""
    ids = next((f"{count(at(r, 'vocab_size'))} ids" for r in found.tokenizers.values()), None)
    ids = ids or next(
        (f"{count(v)} ids" for s in found.stages if (v := number(at(s.about, "config", "vocab_size")))), None
    )
    rates = [r for report in found.tokenizers.values() for r in [table_at(report, "characters_per_token")]]
    rate = next(((k, v) for r in rates for k, v in r.items() if number(v) is not None), None)
    tokenizer = [ids, rate and f"{decimal(rate[1], 2)} chars per id"] if ids else []
    documents, tokens = (sum(number(at(b, key)) or 0 for b in found.bins.values()) for key in ("documents", "tokens"))
    data = [f"{short(documents)} documents", f"{short(tokens)} ids"] if found.bins else []
    made = [Box("Tokenizer", [line for line in tokenizer if line], "tokenizer"), Box("Data", data, "data")]
    for kind, title in TITLES.items():
        lines, own = [], found.of_kind(kind)
        if own:
            loss, accuracy = latest(own[-1], "val_loss"), latest(own[-1], "val_accuracy")
            bits, size = latest(own[-1], "val_bits_per_byte"), n_params(own[-1].about)
            steps = latest(own[-1], "step", False)
            first = f"{percent(accuracy)} of pairs" if accuracy is not None else f"val loss {decimal(loss)}"
            if accuracy is None and loss is None:
                first = "trained"
            second = f"{decimal(bits)} bits/byte" if bits is not None else f"{count(steps)} steps" if steps else ""
            lines = [first, f"{short(size)} parameters" if kind == "pretrain" and size else second]
        made.append(Box(title, lines, f"stage-{own[-1].name}" if own else ""))
    best = best_result(found)
    exam = [percent(best["accuracy"]), f"guessing: {percent(best['chance'], 0)}"] if best else []
    return [*made, Box("Exam", exam, "exam")]
