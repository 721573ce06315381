"""The page of a report, section by section: what was read in report_data.py becomes HTML."""

from pathlib import Path

from evaluation.markup import (
    Html,
    at,
    count,
    decimal,
    folded,
    h,
    interval,
    interval_of,
    list_at,
    number,
    percent,
    short,
    table,
    table_at,
    words,
)
from evaluation.report_charts import both
from evaluation.report_exam import best_result, exam_section
from evaluation.report_pipeline import boxes, pipeline
from evaluation.report_stages import TITLES, latest, missing, n_params, section, stages_section
from evaluation.report_statistics import statistics_part

MOST_PROMPTS = 200


# --- the beginning ----------------------------------------------------------------------------------------------------


def headline(found):
    """The result in a few plain sentences."""
    said = []
    for stage in found.of_kind("pretrain")[-1:]:
        size, tokens, loss = n_params(stage.about), number(at(stage.about, "tokens")), latest(stage, "val_loss")
        said.append(f"A model of {short(size)} parameters" if size else "A model")
        said[-1] += f" was trained on {short(tokens)} tokens of text" if tokens else " was trained on text"
        bits = latest(stage, "val_bits_per_byte")
        said[-1] += f"; on text it had not seen, its loss is {decimal(loss)} nats per token" if loss is not None else ""
        said[-1] += f", {decimal(bits)} bits per byte." if bits is not None else "."
    later = [TITLES[kind] for kind in TITLES if kind != "pretrain" and found.of_kind(kind)]
    if later:
        said.append(f"It then went through {' and '.join(filter(None, [', '.join(later[:-1]), later[-1]]))}.")
    for stage in found.of_kind("dpo")[-1:]:
        accuracy = latest(stage, "val_accuracy")
        if accuracy is not None:
            said.append(
                f"DPO's rewards put the better of two held-out answers first in {percent(accuracy)} of the pairs."
            )
    best = best_result(found)
    if best:
        low, _ = interval_of(best["interval"])
        lost = ", so this is no better than guessing" if low is not None and low <= best["chance"] else ""
        said.append(f"In the exam, the highest accuracy by {best['scoring']} is that of {best['name']}:")
        said.append(f"{percent(best['accuracy'])} of {count(best['answered'])} questions {interval(best['interval'])};")
        said.append(f"guessing gives {percent(best['chance'], 0)}{lost}.")
    return " ".join(said) or "No stage has been trained yet; the page shows what is there."


# --- data and tokenizer -----------------------------------------------------------------------------------------------


def data_section(found):
    """Documents, ids, bytes, what was dropped and why, the share for validation."""
    if not found.bins and not found.figures and not found.statistics:
        return section("data", "Data", missing(found, "There are no packed data to describe.", "data"))
    parts = [table_of_bins(found.bins)] if found.bins else [missing(found, "There is no packed text.", "data")]
    drops = {f: table_at(about, "dropped") for f, about in found.bins.items() if at(about, "part") != "val"}
    rows = [[Path(f).name, reason, count(n)] for f, reasons in drops.items() for reason, n in reasons.items()]
    if rows:
        parts.append(table(["file", "reason", "records"], rows, "Dropped while cleaning"))
    elif drops:
        parts.append(h("p", "Nothing was dropped while cleaning."))
    sources = {
        str(at(source, "path")): [
            words(at(source, "path")),
            count(at(source, "bytes")),
            str(at(source, "sha256"))[:16],
        ]
        for about in found.bins.values()
        for source in list_at(about, "sources")
    }
    if sources:
        head = ["source", "bytes", "SHA-256 begins"]
        parts.append(folded(f"Source files: {len(sources)}", table(head, list(sources.values()))))
    for file, figures in found.figures.items():
        rows = [[key.replace("_", " "), count(value)] for key, value in figures.items() if number(value) is not None]
        if rows:
            parts.append(folded(f"Counts of the corpus: {file}", table(["what", "number"], rows)))
    parts += [statistics_part(file, figures) for file, figures in found.statistics.items()]
    return section("data", "Data", parts)


def table_of_bins(bins):
    """One row per .bin; a _val file is named as a share of both."""
    rows = []
    for file, about in bins.items():
        documents, tokens, characters = (number(at(about, k)) for k in ("documents", "tokens", "characters"))
        path = Path(file)
        twin = bins.get(str(path.with_name(path.stem.removesuffix("_val") + ".bin")), {})
        total = (number(at(twin, "documents")) or 0) + (documents or 0)
        share = percent((documents or 0) / total) if path.stem.endswith("_val") and twin and total else ""
        rate = decimal(characters / tokens, 2) if characters and tokens else ""
        size = count(at(about, "text_bytes"))
        rows.append([path.name, count(documents), count(tokens), size, rate, share])
    head = ["file", "documents", "ids", "bytes of text", "characters per id", "held out"]
    return table(head, rows, "Packed text")


def tokenizer_section(found):
    """Vocabulary, compression by kind of text, round trip, longest tokens."""
    parts = []
    hashes = sorted({str(at(s.about, "tokenizer_hash")) for s in found.stages if at(s.about, "tokenizer_hash")})
    if not found.tokenizers:
        used = f"The checkpoints were trained with tokenizer {', '.join(hashes)}. " if hashes else ""
        parts.append(missing(found, f"{used}There is no report.json with a tokenizer's figures.", "tokenizer"))
    for folder, report in found.tokenizers.items():
        size, same = count(at(report, "vocab_size")), count(at(report, "round_trip"))
        facts = f"{folder}: {size} ids, hash {at(report, 'hash')}; {same} of {count(at(report, 'texts'))} "
        parts.append(h("p", facts + "texts come back exactly as they were."))
        rates, sizes = table_at(report, "characters_per_token"), table_at(report, "characters")
        rows = [
            [kind, decimal(rate), count(sizes.get(kind))] for kind, rate in rates.items() if number(rate) is not None
        ]
        if rows:
            head = ["kind of text", "characters per id", "characters measured"]
            parts.append(table(head, rows, f"Compression, measured on {at(report, 'measured_on')}"))
        longest = [h("code", words(token)) for token in list_at(report, "longest_tokens")]
        if longest:
            parts.append(h("p", "Longest ids: ", [[" ", token] for token in longest], class_="tokens"))
        dirty = [
            [why, count(at(kind, "count")), words(" ".join(map(str, list_at(kind, "first"))))]
            for why, kind in table_at(report, "dirty_tokens").items()
        ]
        if dirty:
            parts.append(folded("Ids one may want to exclude", table(["kind", "ids", "the longest"], dirty)))
    return section("tokenizer", "Tokenizer", parts)


# --- samples ----------------------------------------------------------------------------------------------------------


def samples_section(found):
    """What each checkpoint answers to the same prompt, side by side."""
    if not found.samples:
        return section("samples", "Samples", missing(found, "There are no answers to show.", "samples"))
    prompts = {}
    for name, records in found.samples.items():
        for record in records:
            prompts.setdefault(str(record.get("prompt", "")), {})[name] = record
    cards = []
    shown = list(prompts.items())[:MOST_PROMPTS]
    alone = [(prompt, *pair) for prompt, answers in shown if len(answers) == 1 for pair in answers.items()]
    if alone:  # a base model is asked to continue, so its prompts are its own
        titled = [(h("h4", name, " ", h("b", words(prompt))), answer_of(record)) for prompt, name, record in alone]
        cards.append(h("div", [h("div", pair, class_="answer") for pair in titled], class_="answers"))
    for prompt, answers in shown:
        if len(answers) == 1:
            continue
        cells = [h("div", h("h4", name), answer_of(record), class_="answer") for name, record in answers.items()]
        cards.append(h("article", h("h3", words(prompt), class_="prompt"), h("div", cells, class_="answers")))
    if len(prompts) > MOST_PROMPTS:
        cards.append(
            h("p", f"{len(prompts) - MOST_PROMPTS} more prompts are in {found.out_dir}/samples.", class_="soft")
        )
    return section("samples", "Samples", cards)


def answer_of(record):
    """An answer as it is, or why there is none."""
    if record.get("error"):
        return h("p", f"error: {record['error']}", class_="missing")
    answer = str(record.get("answer", ""))
    return h("p", words(answer), class_="said") if answer.strip() else h("p", "(empty)", class_="soft")


# --- how it was made --------------------------------------------------------------------------------------------------


def commands_section(found):
    """The exact command of each stage, its versions, seed and machine, and on demand all its settings."""
    parts = []
    for stage in found.stages:
        about = stage.about
        if not about:
            parts.append(h("p", f"{stage.name} has no description beside it.", class_="missing"))
            continue
        versions = ", ".join(f"{k} {v}" for k, v in table_at(about, "versions").items())
        facts = {"saved": about.get("saved"), "machine": about.get("machine"), "versions": versions}
        facts |= {name: about.get(name) for name in ("seed", "dtype", "world_size", "tokenizer", "tokenizer_hash")}
        listed = [[h("dt", k.replace("_", " ")), h("dd", v)] for k, v in facts.items() if v not in (None, "")]
        settings = {**table_at(about, "config"), **table_at(about, "settings")}
        rows = [[key, str(value)] for key, value in settings.items()]
        shown = [h("h3", stage.name), h("pre", f"python {about.get('command', '')}"), h("dl", listed)]
        parts.append(h("article", shown, folded("All settings", table(["setting", "value"], rows)) if rows else None))
    for file, exam in found.exams.items():
        if at(exam, "command"):
            parts.append(h("article", h("h3", f"Exam: {file}"), h("pre", f"python {at(exam, 'command')}")))
    return section("commands", "How it was made", parts or h("p", "No command is recorded.", class_="missing"))


def page(found, date):
    """Everything that was found → a whole HTML document, the same for the same files.

    Args:
        date: when the newest thing on the page was made.
    """
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    sections = [data_section, tokenizer_section, stages_section, exam_section, samples_section, commands_section]
    title = f"Report of {found.out_dir}"
    links = [("data", "Data"), ("tokenizer", "Tokenizer"), ("stages", "Training"), ("exam", "Exam")]
    links += [("samples", "Samples"), ("commands", "How it was made")]
    trouble = [h("li", problem) for problem in found.problems]
    head = [
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Html(style)),
    ]
    top = h("header", h("h1", title), h("p", f"State of {date}", class_="soft"), h("p", headline(found), class_="lead"))
    body = [
        top,
        h("figure", both(lambda wide: pipeline(boxes(found), wide)), class_="pipeline"),
        h("aside", h("h2", "Could not be read"), h("ul", trouble), class_="trouble") if trouble else None,
        h("nav", [h("a", name, href=f"#{place}") for place, name in links], aria_label="Parts of this page"),
        [part(found) for part in sections],
    ]
    return "<!doctype html>\n" + h("html", h("head", head), h("body", h("main", body)), lang="en") + "\n"
