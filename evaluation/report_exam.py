"""The exam's part of a report: one chart per exam, then tables by scoring, category and subject, and what flipped."""

from pathlib import Path

from evaluation.markup import (
    NOTHING,
    at,
    chance_of_luck,
    count,
    folded,
    h,
    interval,
    interval_of,
    list_at,
    number,
    percent,
    table,
    table_at,
    words,
)
from evaluation.report_charts import both, interval_chart
from evaluation.report_stages import missing, section

MOST_FLIPPED = 200


def name_of(exam):
    """What the model is called: see report_data.name_in."""
    return str(at(exam, "name"))


def chance_of(exam):
    """The accuracy of guessing: a quarter, unless the exam says otherwise."""
    chance = number(at(exam, "chance"))
    return 0.25 if chance is None else chance


def scorings_of(exam):
    """{scoring: its dict} of those that could be graded."""
    known = table_at(exam, "scorings")
    return {name: s for name, s in known.items() if number(at(s, "accuracy")) is not None}


def best_result(found):
    """The best model of the exam with most questions, by its first scoring, as a dict; None without an exam."""
    results = []
    for exam in found.exams.values():
        for scoring, s in list(scorings_of(exam).items())[:1]:
            asked = number(s.get("answered")) or number(at(exam, "questions")) or 0
            facts = {"name": name_of(exam), "scoring": scoring, "answered": asked, "interval": s.get("interval_95")}
            results.append(facts | {"accuracy": s["accuracy"], "chance": chance_of(exam)})
    return max(results, key=lambda r: (r["answered"], r["accuracy"]), default=None)


def exams_by_paper(found):
    """{(data_dir, split, shots): [summary]}: what was answered under the same conditions belongs in one chart."""
    papers, order = {}, {stage.name: i for i, stage in enumerate(found.stages)}
    for exam in sorted(found.exams.values(), key=lambda e: (order.get(name_of(e), len(order)), name_of(e))):
        paper = tuple(str(at(exam, key)) if at(exam, key) is not None else "" for key in ("data_dir", "split", "shots"))
        papers.setdefault(paper, []).append(exam)
    return papers


def exam_section(found):
    """All exams, and all comparisons of models."""
    if not found.exams:
        parts = [missing(found, "No exam has been taken.", "exam")]
    else:
        parts = [paper_part(*pair) for pair in exams_by_paper(found).items()]
    parts += [comparison_part(file, content) for file, content in found.comparisons.items()]
    return section("exam", "Exam", parts)


def paper_part(paper, exams):
    """One exam: its chart and its tables."""
    data_dir, split, shots = paper
    title = ", ".join(filter(None, [data_dir, split, f"{shots} shots" if shots else ""])) or "Exam"
    columns = [(exam, scoring, s) for exam in exams for scoring, s in scorings_of(exam).items()]
    parts = [h("h3", words(title))]
    if not columns:
        return h("article", parts, h("p", "None of its questions has a known answer, so nothing is graded."))
    styles = {scoring: f"c{i % 8}" for i, scoring in enumerate(dict.fromkeys(c[1] for c in columns))}
    groups = {}
    for exam, scoring, s in columns:
        row = (scoring, styles[scoring], s["accuracy"], *interval_of(s.get("interval_95")))
        groups.setdefault(name_of(exam), []).append(row)
    chance = chance_of(exams[0])
    said = f"{title}: accuracy with 95 % intervals; guessing gives {percent(chance, 0)}"
    chart = both(lambda wide: interval_chart(said, list(groups.items()), chance, wide))
    caption = h("figcaption", h("b", "Accuracy with its 95 % interval"))
    parts += [h("figure", caption, chart, class_="chart"), table_of_scorings(columns), troubles(exams)]
    parts.append(table_of_categories(columns))
    by_subject = table_of_subjects(columns)
    return h("article", parts, folded("Every subject", by_subject) if by_subject else None)


def table_of_scorings(columns):
    """One row per model and scoring."""
    head = ["model, scoring", "accuracy", "95 % interval", "right", "mean of subjects", "p if guessing"]
    head += ["chose A / B / C / D, %", "options rotated", "kept when rotated", "verdict"]
    rows = []
    for exam, scoring, s in columns:
        chosen = " / ".join(f"{100 * (number(share) or 0):.0f}" for share in table_at(s, "chosen").values())
        row = [two_lines(exam, scoring), percent(s["accuracy"]), interval(s.get("interval_95"))]
        row += [f"{count(s.get('right'))} / {count(s.get('answered'))}", percent(at(s, "macro", "accuracy"))]
        row += [chance_of_luck(s.get("p_chance")), chosen or NOTHING]
        row += [percent(at(s, "rotated", "mean")), percent(at(s, "rotated", "consistent"))]
        rows.append([*row, h("span", words(s.get("verdict") or ""), class_="sentence")])
    return table(head, rows, "Results")


def troubles(exams):
    """Questions that could not be asked, by reason."""
    said = [f"{name_of(e)}: {count(n)} × {reason}" for e in exams for reason, n in table_at(e, "problems").items()]
    return h("p", "Problems: ", "; ".join(said), class_="missing") if said else None


def two_lines(exam, scoring):
    """What a row or a column of results is about."""
    prompt = at(exam, "prompt", scoring.partition("_")[0])
    how = f"{scoring}, {prompt} prompt" if prompt else scoring
    return h("span", name_of(exam), h("br"), h("small", how, class_="soft"))


def table_of_categories(columns):
    """Accuracy by category, a row per model and scoring; None where no result has categories."""
    names = sorted({name for *_, s in columns for name in table_at(s, "categories")})
    rows = []
    for exam, scoring, s in columns:
        cells = [table_at(s, "categories", name) for name in names]
        shown = [f"{percent(c.get('accuracy'))} {interval(c.get('interval_95')).strip(NOTHING)}" for c in cells]
        rows.append([two_lines(exam, scoring), *shown])
    return table(["model, scoring", *names], rows, "By category, with 95 % intervals") if names else None


def table_of_subjects(columns):
    """Accuracy by subject, a column per model and scoring; None where no result has subjects."""
    names = {}
    for *_, s in columns:
        for key, found in table_at(s, "subjects").items():
            names.setdefault(key, (str(at(found, "category") or ""), str(at(found, "name") or key)))
    rows = []
    for key, (category, name) in sorted(names.items(), key=lambda item: (item[1], item[0])):
        row = [h("span", words(name), h("small", f" {category}", class_="soft") if category else None)]
        for *_, s in columns:
            cell = table_at(s, "subjects", key)
            told = f"{count(cell.get('right'))} of {count(cell.get('questions'))} right"
            if interval_of(cell.get("interval_95"))[0] is not None:
                told += f", 95 % interval {interval(cell['interval_95'])}"
            row.append(h("span", percent(cell.get("accuracy"), 0), title=told))
        rows.append(row)
    heads = [two_lines(exam, scoring) for exam, scoring, _ in columns]
    return table(["subject", *heads], rows, "By subject") if rows else None


def comparison_part(file, content):
    """Two models on the same questions: who is right alone, and the questions whose answer flipped."""
    rows = []
    for pair in list_at(content, "pairs"):
        names = [Path(str(at(pair, side))).name.removesuffix(".pth") for side in ("first", "second")]
        counts = [count(at(pair, key)) for key in ("only_first", "only_second", "both", "neither")]
        verdict = h("span", words(at(pair, "verdict") or ""), class_="sentence")
        scoring = h("span", at(pair, "scoring"))
        rows.append([" → ".join(names), scoring, *counts, chance_of_luck(at(pair, "p_value")), verdict])
    head = ["models", "scoring", "only first right", "only second right", "both", "neither", "p", "verdict"]
    parts = [h("h3", "Model against model"), table(head, rows, file) if rows else None]
    flipped = list_at(content, "flipped")
    if flipped:
        shown = [flipped_part(question) for question in flipped[:MOST_FLIPPED]]
        if len(flipped) > MOST_FLIPPED:
            shown.append(h("li", f"{len(flipped) - MOST_FLIPPED} more are in {file}.", class_="soft"))
        parts.append(folded(f"{len(flipped)} questions whose answer flipped", h("ul", shown, class_="flipped")))
    return h("article", parts)


def flipped_part(question):
    """A question and what each model chose; the right choice is marked."""
    answer = at(question, "answer")
    chosen = []
    for model, choice in table_at(question, "choices").items():
        mark = " ✓" if choice == answer else ""
        chosen.append(h("span", f"{Path(model).name.removesuffix('.pth')}: {choice}{mark}", class_="choice"))
    where = " ".join(str(at(question, key) or "") for key in ("subject", "id", "scoring"))
    told = h("p", h("span", f"{where}, answer\u00a0{answer}"), chosen, class_="soft")
    return h("li", h("p", words(at(question, "question") or "")), told)
