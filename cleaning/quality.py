"""Texts of known worth or kind → a classifier that gives every other text a probability: for what to train on.

Two questions, one method (n-grams of characters, logistic regression; see cleaning/ngrams.py):
    quality   does this text look more like the good ones than like the raw ones?   --good PATH --raw PATH
    domains   which of these is it?                                                 --domains 法律=PATH 代码=PATH
and --labelled FILE.jsonl for either, each record with a `text` and a `label`: 0 or 1, or the name of a domain.

**What it learns is what tells the two sides apart, whatever that is.** Encyclopaedia, abstracts and manuals against
chats gave AUC 0.999 on held-out texts, and what spoke most for a chat was "？", "么", "什么", for a good text the
half-width comma of the abstracts, "年" and traditional characters: no word about worth. So the report shows the n-grams
that speak for either side, how far single cues (length, digits, …) get alone, and the texts nearest the threshold. Read
these before filtering; give both sides the same script, width of punctuation and subjects where you can.
Taken out beforehand are layout, everything beyond the same number of characters, and length (--match_lengths): two
classes of random texts that differ in nothing but length had AUC 0.96, with matched lengths 0.54. On the data above the
rank correlation of score and length went from 0.20 to 0.08 and AUC from 0.9994 to 0.9988. Near-duplicates on both sides
of the held-out split make every number too good: remove them first.

Sources: Penedo et al. 2024, arXiv:2406.17557 (FineWeb-Edu); Li et al. 2024, arXiv:2406.11794 (DCLM).
"""

import dataclasses
import heapq
import importlib.metadata
import json
import platform
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cleaning.binfile import sha256_of
from cleaning.calibration import calibrate
from cleaning.cleaner import is_held_out, key_of
from cleaning.encodings import ignore
from cleaning.files import prepare_folder_of, progress_meter, relative, write_files
from cleaning.ngrams import MOST_BITS, excerpt, library, shares
from cleaning.normalize import clean_text
from cleaning.quality_report import REPORT, measure, show
from cleaning.readers import Drops, expand_inputs, read_records, size_of, text_of
from cleaning.scorer import Scorer, save_scorer
from cleaning.settings import knob

MOST_CLASSES = 100  # more different labels than that are no domains
QUALITY = ["raw", "good"]  # the second is the class whose probability is the score
PARTS = ("train", "calibrate", "test")


@dataclasses.dataclass
class QualitySettings:
    """Settings of `python data_process.py quality`."""

    good: list[str] = knob(list, "files and folders of texts as they should be; needs --raw")
    raw: list[str] = knob(list, "files and folders of ordinary texts, to tell the good ones from")
    domains: list[str] = knob(list, "NAME=PATH of each domain; a name may come several times")
    labelled: list[str] = knob(list, "files whose records have a text and a `label`: 0, 1 or the name of a domain")
    output: str = knob("out/quality.npz", "the classifier; its report is the .json beside it")
    field: str | None = knob(None, "field with the text; unset: found by itself")
    max_documents: int = knob(50_000, "texts per class, chosen by hash; 100,000 texts of 500 characters take 1.2 GB")
    characters: int = knob(1000, "how much of a text is looked at: half from its beginning, half from its middle")
    longest: int = knob(3, "n-grams of 1 to so many characters")
    bits: int = knob(16, "2^bits buckets for n-grams; 18 is a little more exact and four times as large")
    C: float = knob(10.0, "how closely the training texts are followed (scikit-learn's C)")
    match_lengths: bool = knob(True, "cut training texts so that all classes have the lengths of the shortest one")
    held_out: float = knob(0.1, "share of texts for the report, and of the rest for calibration")
    seed: int = knob(0, "decides which texts are sampled and held out")


class Example(NamedTuple):
    """One text of known class: its hash, its excerpt, and where it was first met."""

    key: int
    text: str
    file: str
    line: int


# --- 1. texts of known class ------------------------------------------------------------------------------------------


class Sample:
    """At most `size` different texts, those whose hashes come first in an order that the seed decides.

    Which they are depends on the texts and the seed alone, not on the order or the number of files, and no more than
    `size` are in memory.
    """

    def __init__(self, size, seed):
        self.size, self.read = size, 0
        self.mask = int(np.random.default_rng(seed).integers(2**64, dtype=np.uint64))
        self.kept, self.order = {}, []  # key → Example; a heap of -rank, the last in order on top

    def add(self, text, file, line):
        """`text` is an excerpt."""
        self.read += 1
        new = Example(key_of(text), text, file, line)
        if new.key in self.kept:
            self.kept[new.key] = min(self.kept[new.key], new)  # the place does not depend on the order either
            return
        heapq.heappush(self.order, -(new.key ^ self.mask))
        self.kept[new.key] = new
        if len(self.kept) > self.size:
            del self.kept[-heapq.heappop(self.order) ^ self.mask]

    def examples(self):
        return sorted(self.kept.values())


def label_of(value):
    """What a record's `label` says → a name; '0' or '1' for a number or a truth value; None: unusable."""
    if isinstance(value, str):
        return value.strip() or None
    return str(int(value)) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def located_classes(settings, drops, progress=ignore):
    """Yields (class name, file, line, raw text) of everything that the settings name."""
    named = [("good", settings.good), ("raw", settings.raw)] if settings.good else []
    named += [(name, [path]) for name, path in map(split_domain, settings.domains)]
    for name, paths in [*named, (None, settings.labelled)]:
        for path in expand_inputs(paths) if paths else []:
            for line, record in read_records(path, drops, progress):
                text, reason = text_of(record, settings.field)
                label = name or label_of(record.get("label"))
                if reason or label is None:
                    reason = reason or ("label is neither 0, 1 nor a name" if "label" in record else "no label")
                    drops.add(reason, str(path), line, str(record))
                    continue
                yield label, str(path), line, text


def split_domain(entry):
    """'法律=laws.jsonl' → ('法律', 'laws.jsonl')."""
    name, equals, path = entry.partition("=")
    if not (name.strip() and equals and path):
        raise ValueError(f"--domains {entry} is not NAME=PATH, such as 法律=laws.jsonl")
    return name.strip(), path


def read_classes(settings, drops, progress=ignore):
    """Samples of all classes → (kind, {name: Sample}), names in the order of the classifier's columns."""
    samples = {}
    for name, file, line, raw in located_classes(settings, drops, progress):
        text, reason = clean_text(raw)
        if reason:
            drops.add(reason, file, line, raw)
            continue
        if name not in samples:
            if len(samples) == MOST_CLASSES:
                raise ValueError(
                    f"{file}:{line} has the label {name!r} after {MOST_CLASSES} others; is `label` a free text?"
                )
            samples[name] = Sample(settings.max_documents, settings.seed)
        samples[name].add(excerpt(text, settings.characters), file, line)
    if set(samples) == {"0", "1"}:
        samples = dict(zip(QUALITY, (samples["0"], samples["1"])))
    if set(samples) == set(QUALITY):
        return "quality", {name: samples[name] for name in QUALITY}
    if len(samples) < 2:
        found = f"of {', '.join(samples)} alone" if samples else "none"
        raise ValueError(f"usable texts of at least two classes are needed; there are {found}\n{drops.table()}")
    return "domains", {name: samples[name] for name in sorted(samples)}


def split(samples, settings, drops):
    """{name: Sample} → {part: list over classes of list of Example}; a text of two classes is in none.

    Raises:
        ValueError: a class has no text in one of the parts.
    """
    examples = [sample.examples() for sample in samples.values()]
    met = Counter(e.key for own in examples for e in own)
    parts = {part: [[] for _ in examples] for part in PARTS}
    for number, own in enumerate(examples):
        for e in own:
            if met[e.key] > 1:
                drops.add("in more than one class", e.file, e.line, e.text)
            elif is_held_out(e.key, settings.seed, settings.held_out):
                parts["test"][number].append(e)
            else:
                aside = is_held_out(e.key, settings.seed ^ 1, settings.held_out)
                parts["calibrate" if aside else "train"][number].append(e)
    for part, classes in parts.items():
        for name, own in zip(samples, classes):
            if not own:
                shared = sum(met[e.key] > 1 for e in samples[name].examples())
                also = f", {shared} of which are in another class too and count in none: take them out there"
                raise ValueError(
                    f"class {name} has {len(samples[name].kept)} different text(s){also if shared else ''}; none fell "
                    f"into the part to {part}. Give more texts (a few hundred at least), or change --held_out "
                    f"{settings.held_out}"
                )
    return parts


# --- 2. fitting -------------------------------------------------------------------------------------------------------


def match_lengths(classes):
    """Lists of texts → the same, each text cut to what the shortest-writing class has at the same rank.

    The longest text of every class becomes as long as the longest of the class whose longest is shortest, the median as
    the shortest median, and so on: length tells nothing any more.
    """
    ranks = np.linspace(0, 1, 101)
    lengths = [np.array([len(text) for text in texts]) for texts in classes]
    shortest = np.min([np.quantile(own, ranks) for own in lengths], axis=0)
    cut = []
    for texts, own in zip(classes, lengths):
        rank = np.searchsorted(np.sort(own), own, side="right") / len(own)
        limit = np.maximum(1, np.interp(rank, ranks, shortest).astype(int))
        cut.append([text[:most] for text, most in zip(texts, limit)])
    return cut


def flat(classes, balanced):
    """Lists of texts → (texts, (N,) class numbers, (N,) weights with mean 1).

    `balanced`: every class weighs the same in all. Files put together by hand say nothing about how frequent a class
    is; then 0.5 means "as likely good as raw, if both were equally frequent".
    """
    counts = np.array([len(texts) for texts in classes])
    numbers = np.repeat(np.arange(len(classes)), counts)
    weights = counts.sum() / (len(classes) * counts) if balanced else np.ones(len(classes))
    return [text for texts in classes for text in texts], numbers, weights[numbers]


def fit(texts, numbers, weights, settings):
    """Logistic regression on the texts' n-grams → (weights (2^bits, 1 or K) float64, bias (1 or K,))."""
    linear = library("sklearn.linear_model")
    model = linear.LogisticRegression(C=settings.C, max_iter=1000)
    model.fit(shares(texts, settings.bits, settings.longest), numbers, sample_weight=weights)
    return model.coef_.T, model.intercept_


def fit_calibrated(parts, kind, names, balanced, settings):
    """Learns from the part to train on and calibrates on the part to calibrate on → Scorer."""
    texts = {part: [[e.text for e in own] for own in parts[part]] for part in PARTS}
    train = match_lengths(texts["train"]) if settings.match_lengths else texts["train"]
    weights, bias = fit(*flat(train, balanced), settings)
    about = {"kind": kind, "labels": names, "settings": dataclasses.asdict(settings)}
    aside, numbers, count = flat(texts["calibrate"], balanced)
    scale, shifts = calibrate(Scorer(weights, bias, about).logits(aside), numbers, count)
    about["calibration"] = {"scale": float(scale), "shifts": shifts.tolist()}
    return Scorer((scale * weights).astype(np.float32), scale * bias + shifts, about)


# --- 3. the command ---------------------------------------------------------------------------------------------------


def check(settings):
    """Raises ValueError for settings that cannot be meant, before anything is read."""
    asked = [name for name in ("good", "domains", "labelled") if getattr(settings, name)]
    if len(asked) != 1 or bool(settings.good) != bool(settings.raw):
        raise ValueError(
            "give the texts to learn from in one of three ways: --good PATH --raw PATH, or --domains NAME=PATH "
            "NAME=PATH, or --labelled FILE"
        )
    limits = {"max_documents": (10, 10**7), "characters": (20, 10**6), "longest": (1, 8), "bits": (8, MOST_BITS)}
    limits |= {"held_out": (0.01, 0.4), "C": (1e-6, 1e6)}
    for name, (least, most) in limits.items():
        if not least <= getattr(settings, name) <= most:
            raise ValueError(f"--{name} {getattr(settings, name)} must be from {least:,} to {most:,}")
    output = Path(settings.output)
    if output.suffix != ".npz" or output.is_dir():
        raise ValueError(f"--output {output} must be a file name that ends in .npz, for example out/quality.npz")
    report = output.with_suffix(".json")
    if report.exists() and REPORT not in report.read_text(encoding="utf-8", errors="replace")[:200]:
        raise ValueError(f"{output} needs {report} for its report, but that file holds something else; rename it")


def described(files, samples, parts, drops):
    """What a classifier was made of, for whoever finds the file later."""
    sources = [{"path": relative(f), "bytes": size_of(f), "sha256": sha256_of(f)} for f in files if size_of(f)]
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn")}
    return {
        "documents": {
            name: {"read": sample.read, **{part: len(parts[part][i]) for part in PARTS}}
            for i, (name, sample) in enumerate(samples.items())
        },
        "dropped": dict(sorted(drops.counts.items())),
        "sources": sorted(sources, key=lambda source: source["path"]),
        "versions": {"python": platform.python_version(), **versions},
    }


def train(settings):
    """Reads, fits, measures on held-out texts, writes `settings.output` and the report beside it, prints the report.

    Returns:
        The report, a dict; see cleaning.quality_report.measure.
    Raises:
        ValueError, OSError: settings, files or texts that cannot be used; nothing is written.
        ImportError: scikit-learn is not installed.
    """
    check(settings)
    library("sklearn")
    start, drops = time.monotonic(), Drops()
    named = [*settings.good, *settings.raw, *settings.labelled, *(split_domain(d)[1] for d in settings.domains)]
    files = expand_inputs(named)
    prepare_folder_of(settings.output)
    kind, samples = read_classes(settings, drops, progress_meter(sum(map(size_of, files)), "reading"))
    parts = split(samples, settings, drops)
    balanced = not settings.labelled
    scorer = fit_calibrated(parts, kind, list(samples), balanced, settings)
    scorer.about |= {"balanced": balanced, **described(files, samples, parts, drops)}
    tested = [e for own in parts["test"] for e in own]
    report = {"format": REPORT, **scorer.about, **measure(scorer, tested, *flat(parts["test"], balanced)[1:])}
    scorer.about["measured"] = {k: report[k] for k in ("auc", "accuracy", "brier", "log_loss") if k in report}
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    output = Path(settings.output)
    write_files(output.parent, {output.with_suffix(".json").name: text})
    save_scorer(output, scorer)
    show(report, drops)
    print(f"{time.monotonic() - start:.1f} s; written to {output}, the report to {output.with_suffix('.json')}")
    return report
