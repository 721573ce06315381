"""Scores of an exam → what they are worth: tables for people, JSON and CSV for machines.

summary.json holds everything that the screen shows; <subject>.csv every question's scores and choices;
submission.json, for a split whose answers are secret, the letters in C-Eval's official form.
"""

import csv
import io
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from evaluation.exams import LETTERS
from evaluation.intervals import macro_interval, p_of_guessing, wilson
from trainer.checkpoint import save_json, write_atomically

CHANCE = 1 / len(LETTERS)
SAME_EXAM = ("model", "lora", "data_dir", "split", "shots", "prompt", "instruction", "dtype")  # a repetition replaces


def tally(marks, keys):
    """(whether right or None, keys it counts under) per question → {key: {right, questions, accuracy, interval_95}}."""
    counts = defaultdict(lambda: [0, 0])
    for mark, own in zip(marks, keys):
        for key in own:
            if mark is not None:
                counts[key][0] += mark
                counts[key][1] += 1
    return {
        key: {"right": right, "questions": n, "accuracy": right / n, "interval_95": list(wilson(right, n))}
        for key, (right, n) in counts.items()
    }


def verdict(right, n):
    """(p-value, a plain sentence) on whether a score differs from guessing."""
    p = p_of_guessing(right, n, CHANCE)
    low, high = wilson(right, n)
    if p >= 0.05:
        return (
            p,
            f"no different from guessing (p = {p:.2f}): {right} of {n}, where guessing gets about {n * CHANCE:.0f}",
        )
    return p, f"{'better' if right > n * CHANCE else 'worse'} than guessing (p = {p:.1g}): {low:.1%} to {high:.1%}"


def summarise_scoring(exam, choices, turned=()):
    """One scoring's results.

    Args:
        choices: list of N options chosen, 0-3.
        turned: lists like `choices`, for each rotation of the options, in the exam's order of options.
    """
    questions = exam.questions
    mark = lambda chosen: [None if q.answer is None else int(c == q.answer) for q, c in zip(questions, chosen)]  # noqa: E731
    marks = mark(choices)
    scored = [m for m in marks if m is not None]
    chosen = Counter(choices)
    result = {
        "right": sum(scored),
        "answered": len(scored),
        "accuracy": sum(scored) / len(scored) if scored else None,
        "interval_95": list(wilson(sum(scored), len(scored))),
        "chosen": {letter: chosen[i] / len(choices) for i, letter in enumerate(LETTERS)},
    }
    if not scored:
        return result
    result["p_chance"], result["verdict"] = verdict(sum(scored), len(scored))
    subjects = tally(marks, [[q.subject] for q in questions])
    result["categories"] = tally(marks, [exam.categories[q.subject] for q in questions])
    result["subjects"] = {
        s: {"name": exam.names[s], "category": ", ".join(exam.categories[s]), **found} for s, found in subjects.items()
    }
    accuracies = [s["accuracy"] for s in subjects.values()]
    result["macro"] = {
        "accuracy": sum(accuracies) / len(accuracies),
        "interval_95": list(macro_interval(accuracies)),
        "subjects": len(accuracies),
    }
    if turned:
        every = [scored, *([m for m in mark(chosen) if m is not None] for chosen in turned)]
        shares = [sum(m) / len(m) for m in every]
        result["rotated"] = {
            "accuracy": shares[1:],
            "mean": sum(shares) / len(shares),
            "consistent": sum(all(own) for own in zip(*every)) / len(scored),
        }
    return result


def summarise(exam, scores, turned):
    """{scoring: summary} of {scoring: (N, 4)} scores and {scoring: [(N, 4) per rotation]}."""
    choose = lambda table: table.argmax(1).tolist()  # noqa: E731
    return {
        name: summarise_scoring(exam, choose(table), [choose(t) for t in turned.get(name, ())])
        for name, table in scores.items()
    }


def show(summary):
    """The summary as lines for a person; a column per scoring."""
    names = [name for name, s in summary.items() if s["answered"]]
    if not names:
        yield "the answers of this split are not known: nothing is counted"
        return
    row = lambda label, cells: f"{label:<36}" + "".join(f"{cell:>12}" for cell in cells)  # noqa: E731
    span = lambda interval: "-".join(f"{100 * end:.1f}" for end in interval)  # noqa: E731
    yield row("%", (name.partition("_")[0] for name in names))
    yield row("", (name.partition("_")[2].replace("_", " ") for name in names))
    for key in ("subjects", "categories"):
        entries = summary[names[0]][key]
        if len(entries) > 1:
            for entry in sorted(entries):
                label = f"{entry[:28]} ({entries[entry]['questions']})"
                yield row(label, (f"{100 * summary[name][key][entry]['accuracy']:.1f}" for name in names))
            yield ""
    n = summary[names[0]]["answered"]
    rows = {
        f"all {n} questions (micro average)": lambda s: f"{100 * s['accuracy']:.1f}",
        "  95 % interval (Wilson)": lambda s: span(s["interval_95"]),
        "mean of subjects (macro average)": lambda s: f"{100 * s['macro']['accuracy']:.1f}",
        "  95 % interval (bootstrap)": lambda s: span(s["macro"]["interval_95"]),
        "guessing": lambda s: f"{100 * CHANCE:.1f}",
        "A, B, C, D chosen": lambda s: "/".join(f"{100 * share:.0f}" for share in s["chosen"].values()),
        "mean over orders of the options": lambda s: f"{100 * s['rotated']['mean']:.1f}" if "rotated" in s else "same",
        "  right in each of them": lambda s: f"{100 * s['rotated']['consistent']:.1f}" if "rotated" in s else "same",
    }
    for label, cell in rows.items():
        yield row(label, (cell(summary[name]) for name in names))
    yield ""
    for name in names:
        yield f"{name}: {summary[name]['verdict']}"


def set_aside(folder, facts):
    """Moves results of another model, or taken in another way, to a folder of their own → it; None: there are none.

    Args:
        folder: where results lie; facts: as in save, of those that are to come.
    """
    summary = Path(folder, "summary.json")
    if not summary.is_file():
        return None
    try:
        before = json.loads(summary.read_text(encoding="utf-8"))
        same = all(before.get(name) == facts.get(name) for name in SAME_EXAM)
        name = re.sub(r"\W+", "_", f"{Path(before['model']).stem}_{before['saved']}")
    except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or not written here
        same, name = False, "unreadable"
    if same:
        return None
    aside = Path(folder, name)
    aside.mkdir(exist_ok=True)
    for file in (
        *Path(folder).glob("*.csv"),
        Path(folder, "submission.json"),
        summary,
    ):  # what tells whose they are last
        if file.is_file():
            file.replace(aside / file.name)
    return aside


def save(folder, exam, scores, summary, facts, submit=None):
    """Writes <subject>.csv, summary.json and, where answers are secret, submission.json of scoring `submit`.

    Returns:
        the folder that other results went to which lay there; None: there were none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = set_aside(folder, facts)
    choices = {name: table.argmax(1).tolist() for name, table in scores.items()}
    letters = [f"{name}_{letter}" for name in scores for letter in LETTERS]
    by_subject = defaultdict(list)
    for i, q in enumerate(exam.questions):
        by_subject[q.subject].append(i)
    for subject, rows in by_subject.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["id", "answer", *(f"{name}_choice" for name in scores), *letters])
        for i in rows:
            q = exam.questions[i]
            answer = "" if q.answer is None else LETTERS[q.answer]
            values = [f"{v:.6f}" for table in scores.values() for v in table[i].tolist()]
            writer.writerow([q.id, answer, *(LETTERS[chosen[i]] for chosen in choices.values()), *values])
        write_atomically(folder / f"{subject}.csv", lambda f, t=text: f.write(t.getvalue().encode("utf-8")))
    if submit:
        sheet = {s: {exam.questions[i].id: LETTERS[choices[submit][i]] for i in rows} for s, rows in by_subject.items()}
        save_json(folder / "submission.json", sheet)
    problems = dict(exam.problems)
    save_json(
        folder / "summary.json",
        {**facts, "questions": len(exam.questions), "problems": problems, "chance": CHANCE, "scorings": summary},
    )
    return aside
