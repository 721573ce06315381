"""What a report is made of: everything in out_dir that can be read, and the names of what cannot."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.markup import at, number, table_at
from trainer.checkpoint import STAGES

BIN_FORMAT = "uint16 ids"  # how the description of a .bin begins
STATISTICS = "data statistics"  # what data_process.py stats writes, in the first HEAD bytes
HEAD = 64


@dataclass
class Stage:
    """One checkpoint: `name` full_sft_256, `kind` full_sft, its description, and its log in two parts."""

    name: str
    kind: str
    about: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)
    validations: list = field(default_factory=list)

    def column(self, name, validation=False):
        """[(step, value or None where it is no finite number)] of one value in the log."""
        records = self.validations if validation else self.steps
        return [(r["step"], number(r[name])) for r in records if name in r]

    def seconds(self):
        """Time spent in training steps, validations and saves not counted; None if the log does not tell."""
        total, before = 0.0, 0
        for record in self.steps:
            tokens, speed = number(record.get("tokens")), number(record.get("tokens_per_second"))
            if tokens is not None and speed and tokens >= before:
                total, before = total + (tokens - before) / speed, tokens
        return total or None


@dataclass
class Found:
    """All that was read; `problems` are sentences about files that could not be, or not wholly."""

    out_dir: Path
    stages: list = field(default_factory=list)
    tokenizers: dict = field(default_factory=dict)  # folder: report.json
    bins: dict = field(default_factory=dict)  # path of a .bin: its description
    figures: dict = field(default_factory=dict)  # path of a counts.json or manifest.json: what it holds
    statistics: dict = field(default_factory=dict)  # path of a file of data_process.py stats: what it holds
    exams: dict = field(default_factory=dict)  # path of a summary.json: what it holds
    comparisons: dict = field(default_factory=dict)
    samples: dict = field(default_factory=dict)  # name of a checkpoint: records
    growth: dict = field(default_factory=dict)  # growth.json of benchmarks/growth.py
    problems: list = field(default_factory=list)

    def is_empty(self):
        """Whether there is nothing to report."""
        found = (self.stages, self.tokenizers, self.bins, self.statistics, self.exams, self.comparisons, self.samples)
        return not any(found)

    def of_kind(self, kind):
        """The stages of a kind; last the one that others were built on, or else the newest."""
        bases = {Path(str(at(s.about, "settings", "init_from"))).stem for s in self.stages}
        own = [s for s in self.stages if s.kind == kind]
        return sorted(own, key=lambda s: (s.name in bases, str(s.about.get("saved", ""))))


def read_text(path, problems):
    """A file as text; None, and a problem, if it cannot be read. Bytes that are no UTF-8 become �."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path} could not be read: {error.strerror}")


def read_dict(path, problems):
    """A .json file that holds a dict; empty, and a problem, if it does not."""
    text = read_text(path, problems)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path} could not be read: it is not whole JSON ({str(error)[:80]})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path} could not be read: it holds no {{…}} but a {type(value).__name__}")
        return {}
    return value


def read_records(path, problems):
    """The dicts in a .jsonl file; lines that are none are counted in one problem."""
    records, broken = [], []
    for line_number, line in enumerate((read_text(path, problems) or "").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken.append(line_number)
    if broken:
        problems.append(f"{path}: lines that are not whole are left out: {len(broken)}, the first is line {broken[0]}")
    return records


def stage_names(out_dir):
    """Names of the checkpoints that have weights, a description or a log in out_dir."""
    kind_of = lambda name: next((k for k in STAGES if name.startswith(f"{k}_")), None)  # noqa: E731
    names = {file.stem: kind_of(file.stem) for end in ("pth", "json", "jsonl") for file in out_dir.glob(f"*.{end}")}
    order = list(STAGES)
    known = [
        name
        for name, kind in names.items()
        if kind and not name.endswith("_resume") and not (out_dir / f"{name}.bin").exists()
    ]
    return sorted(((name, names[name]) for name in known), key=lambda pair: (order.index(pair[1]), pair[0]))


def name_in(out_dir, summary):
    """'pretrain_256' of the results of <out_dir>/pretrain_256.pth, 'letters/full_sft_256' of one in a folder of it."""
    model = Path(str(summary.get("model")))
    inside = out_dir.resolve() in model.resolve().parents
    return str(model.resolve().relative_to(out_dir.resolve()) if inside else model.name).removesuffix(".pth")


def read_stage(out_dir, name, kind, problems):
    """A Stage from <name>.json and <name>.jsonl, either of which may be missing."""
    stage = Stage(name, kind)
    description, log = out_dir / f"{name}.json", out_dir / f"{name}.jsonl"
    if description.is_file():
        stage.about = read_dict(description, problems)
    if not log.is_file():
        return stage
    records = [r for r in read_records(log, problems) if number(r.get("step")) is not None]
    records.sort(key=lambda r: r["step"])
    stage.steps = [r for r in records if "loss" in r]
    stage.validations = [r for r in records if "val_loss" in r]
    watched = ("loss", "val_loss", "norm", "lr", "tokens_per_second", "mfu")
    odd = sum(number(r[name]) is None for r in records for name in watched if name in r)
    if odd:
        problems.append(f"{log}: values that are no finite numbers: {odd}; the curves have gaps there")
    return stage


def read_bins(found, paths):
    """The descriptions of .bin files at `paths` (files or folders), and counts.json, manifest.json beside them."""
    seen = set()  # the same file may be named in several ways
    for path in paths:
        folder = path if path.is_dir() else path.parent
        own = [path, path.with_name(f"{path.stem}_val.bin")] if path.suffix == ".bin" else []
        for file in sorted(folder.glob("*.bin")) if path.is_dir() else own:
            sidecar = file.with_suffix(".json")
            if sidecar.is_file() and file.resolve() not in seen:
                seen.add(file.resolve())
                about = read_dict(sidecar, found.problems)
                if about not in found.bins.values() and str(about.get("format", "")).startswith(BIN_FORMAT):
                    found.bins[str(file)] = about
        for name in ("counts.json", "manifest.json"):
            if (folder / name).is_file() and (folder / name).resolve() not in seen:
                seen.add((folder / name).resolve())
                found.figures[str(folder / name)] = read_dict(folder / name, found.problems)


def read_statistics(found, paths):
    """Files of data statistics at `paths`, which are such files or folders with them; the same figures count once."""
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path] if path.suffix == ".json" else []:
            try:
                with open(file, "rb") as start:
                    marked = f'"format": "{STATISTICS}"'.encode() in start.read(HEAD)
            except OSError as error:
                found.problems.append(f"{file} could not be read: {error.strerror}")
                continue
            content = read_dict(file, found.problems) if marked else {}
            if content and content not in found.statistics.values():
                found.statistics[str(file)] = content


def read_tokenizers(found):
    """report.json of every tokenizer folder in out_dir, or named by a checkpoint or a .bin."""
    named = [at(about, "tokenizer") for about in [*(s.about for s in found.stages), *found.bins.values()]]
    folders = {Path(name) for name in named if isinstance(name, str)}
    folders |= {file.parent for file in found.out_dir.glob("*/tokenizer.json")} | {found.out_dir}
    for folder in sorted(folders):
        file = folder / "report.json"
        if file.is_file() and (folder / "tokenizer.json").is_file():
            report = read_dict(file, found.problems)
            if "vocab_size" in report and report not in found.tokenizers.values():
                found.tokenizers[str(folder)] = report


def read_all(out_dir, data_paths=()):
    """Everything below out_dir, and data statistics from where the checkpoints say that their data lie → Found.

    Args:
        data_paths: more places to look for data statistics: .bin files, files of data_process.py stats, or folders.
    Raises:
        FileNotFoundError: out_dir or one of data_paths is not there.
    """
    found = Found(Path(out_dir))
    for path in (found.out_dir, *map(Path, data_paths)):
        if not path.exists():
            raise FileNotFoundError(
                f"there is no {path}; name the folder that the training scripts wrote to: --out_dir"
            )
    found.stages = [read_stage(found.out_dir, *pair, found.problems) for pair in stage_names(found.out_dir)]
    recorded = [table_at(s.about, "settings").get(key) for s in found.stages for key in ("data_path", "replay_path")]
    recorded = [Path(path) for path in recorded if isinstance(path, str)]
    cache = found.out_dir / "cache"
    read_bins(found, [found.out_dir, *([cache] if cache.is_dir() else []), *recorded, *map(Path, data_paths)])
    read_statistics(found, [found.out_dir, *map(Path, data_paths)])
    for path in map(Path, data_paths):
        own = Found(found.out_dir)
        read_bins(own, [path])
        read_statistics(own, [path])
        if not (own.bins or own.figures or own.statistics):
            found.problems.append(
                f"{path} has no figures to show; make some: python data_process.py stats --input {path} "
                f"--output {found.out_dir / 'stats.json'}"
            )
    read_tokenizers(found)
    for name, kept in (("summary.json", found.exams), ("comparison.json", found.comparisons)):
        for file in sorted(found.out_dir.rglob(name)):
            content = read_dict(file, found.problems)
            if content and not ("scorings" in content or "pairs" in content):
                found.problems.append(f"{file} could not be read: it holds neither scorings nor pairs of models")
            elif content:
                kept[str(file)] = content | {"name": name_in(found.out_dir, content)}
    order = {stage.name: i for i, stage in enumerate(found.stages)}
    files = sorted(found.out_dir.glob("samples/*.jsonl"), key=lambda f: (order.get(f.stem, len(order)), f.stem))
    found.samples = {file.stem: records for file in files if (records := read_records(file, found.problems))}
    growth = found.out_dir / "growth.json"
    found.growth = read_dict(growth, found.problems) or {} if growth.is_file() else {}
    return found
