"""Raw records → clean, different texts → ids in the order and mixture asked for: `data_process.py pretrain`."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cleaning.binfile import check_output, sha256_of
from cleaning.cleaner import Job, find_repeated_lines, make_parts
from cleaning.corpus import Selection, select, write_files
from cleaning.downloads import RECORD
from cleaning.dry_run import dry_run
from cleaning.files import code_digest, is_description, progress_meter, relative, room_for
from cleaning.minhash import NearDuplicates, check_near_duplicates
from cleaning.pieces import encoder_of
from cleaning.readers import Drops, expand_inputs
from cleaning.repeated_lines import RepeatedLines, check_repeated_lines
from cleaning.rules import RuleSettings, rules_for
from cleaning.scorer import load_scorer
from cleaning.selection import ORDERS, Mixture, parse_weights
from cleaning.settings import knob
from cleaning.units import read_units
from cleaning.work_folder import work_folder
from cleaning.workers import count_workers

LIBRARIES = ("numpy", "tokenizers", "tiktoken", "opencc", "rensa", "scikit-learn")  # what they do may differ
NOT_RECORDED = ("input", "output", "tokenizer", "seed", "val_fraction", "num_workers", "fresh")  # or recorded otherwise


@dataclass
class PretrainSettings:
    """What `data_process.py pretrain` is asked for. Those without a flag here are flags of the script itself."""

    input: list
    output: str
    tokenizer: str
    seed: int = 0
    field: str | None = knob(None, "field with the text; unset: found by itself")
    rules: list[str] = knob(list, "cleaning rules, or sets of them: web, books, light; a wrong name lists all")
    dry_run: bool = knob(False, "show what the rules would do, and ten examples of each, and write nothing")
    val_fraction: float = knob(0.01, "share of the texts that is held out")
    mix: list[str] = knob(list, "PATH:WEIGHT instead of --input: draw from them in this ratio of tokens")
    max_repeats: float = knob(1.0, "with --mix: how often the texts of the scarcest source may be used")
    mix_domains: list[str] = knob(list, "NAME:WEIGHT, the same by the kinds that --domains tells apart")
    repeated_lines: int = knob(0, "leave out lines that stand in so many documents, such as footers; 0: none")
    near_duplicates: float = knob(
        0.0, "of texts that share so much of their runs of characters one stays; 0.8 is usual"
    )
    quality: str | None = knob(None, "scorer made by `data_process.py quality --good`; the best near-duplicate stays")
    min_quality: float = knob(0.0, "with --quality: drop texts that score less")
    domains: str | None = knob(None, "scorer made by `data_process.py quality --domains`")
    order: str = knob("source", "order of the texts; the longest or best come last", ORDERS)
    anneal: float = knob(0.0, "share of the tokens, the best texts, that goes into NAME_anneal.bin instead")
    shard_tokens: int = knob(0, "write a folder of .bin files of this many ids; 0: one file")
    fresh: bool = knob(False, "start over instead of going on with an unfinished run")
    num_workers: int | None = knob(None, "processes; unset: one per core, or none for small inputs")

    def __post_init__(self):
        if not 0 <= self.val_fraction < 1:
            raise ValueError(
                f"--val_fraction {self.val_fraction} is not a share of the texts; give 0 up to below 1, such as 0.01"
            )
        if not 0 <= self.anneal < 1:
            raise ValueError(f"--anneal {self.anneal} is not a share of the tokens; give 0 up to below 1, such as 0.1")
        if not 0 <= self.min_quality <= 1:
            raise ValueError(f"--min_quality {self.min_quality} is not a score; give 0 to 1")
        if self.domains and not self.mix_domains:
            raise ValueError("--domains has no effect without --mix_domains; leave it out, or say what to mix")
        if self.max_repeats < 1:
            raise ValueError(f"--max_repeats {self.max_repeats}: a text is used at least once; give 1 or more")
        if (self.anneal or self.min_quality or self.order == "quality") and not self.quality:
            raise ValueError("--anneal, --min_quality and --order quality need scores: --quality out/quality.npz")
        if self.dry_run and not self.rules:
            raise ValueError("--dry_run shows what rules would do; name them: --rules web, or --rules html pii ...")
        if bool(self.input) == bool(self.mix):
            raise ValueError("name the raw files: --input PATH ..., or a mixture: --mix PATH:WEIGHT ...")
        if self.mix and self.mix_domains:
            raise ValueError("--mix and --mix_domains are two mixtures; give one")
        if self.mix_domains and not self.domains:
            raise ValueError("--mix_domains needs to know the kinds: --domains out/domains.npz")
        if not (self.mix or self.mix_domains) and self.max_repeats != 1:
            raise ValueError("--max_repeats has no effect without --mix or --mix_domains; leave it out")
        if self.near_duplicates:
            check_near_duplicates(NearDuplicates(self.near_duplicates))
        check_repeated_lines(RepeatedLines(self.repeated_lines))
        if self.shard_tokens < 0:
            raise ValueError(f"--shard_tokens {self.shard_tokens}: give a number of ids, such as 100000000, or 0")


def sources_of(cfg):
    """(files, group of each): those of --input, group 0, or of --mix with a group for each of its entries."""
    names = [name for name, _ in parse_weights(cfg.mix, "--mix")]
    groups = [expand_inputs(name) for name in names] if names else [expand_inputs(cfg.input)]
    files = {os.path.realpath(path): (path, number) for number, paths in enumerate(groups) for path in paths}
    if sum(map(len, groups)) > len(files):
        raise ValueError("--mix names a file twice; each file belongs to one entry")
    return [path for path, _ in files.values()], [number for _, number in files.values()]


def mixture_of(cfg, groups):
    """The Mixture that --mix or --mix_domains asks for, or None; `groups`: that of each source."""
    if cfg.mix:
        names, weights = zip(*parse_weights(cfg.mix, "--mix"))
        return Mixture("source", dict(enumerate(groups)), list(weights), list(names))
    if not cfg.mix_domains:
        return None
    weights, names = dict(parse_weights(cfg.mix_domains, "--mix_domains", "NAME")), load_scorer(cfg.domains).names
    if unknown := set(weights).difference(names):
        raise ValueError(f"--mix_domains: {cfg.domains} tells {', '.join(names)} apart, not {', '.join(unknown)}")
    if len(weights) < len(cfg.mix_domains):
        raise ValueError("--mix_domains names a kind twice; give each one weight")
    return Mixture("domain", {names.index(n): i for i, n in enumerate(weights)}, list(weights.values()), list(weights))


def check_scorers(cfg):
    """ValueError, or FileNotFoundError, for a scorer that cannot be used for what it is named for."""
    for flag, kind in (("quality", "quality"), ("domains", "domains")):
        path = getattr(cfg, flag)
        if path and load_scorer(path).about["kind"] != kind:
            raise ValueError(f"--{flag} {path} is a classifier of the other kind; see data_process.py quality --help")


def size_and_time(path):
    """(bytes, time of the last change) of a file; zeros for one that cannot be looked at: reading it will tell."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def check_limits(rules, limits):
    """ValueError for a limit that was set although no rule named by `rules` reads it."""
    run = {rule.name for rule in rules_for(rules, limits)}
    for f in dataclasses.fields(limits):
        rule, default = f.metadata["help"].partition(":")[0], getattr(RuleSettings(), f.name)
        if getattr(limits, f.name) != default and rule not in run:
            raise ValueError(f"--{f.name} is a limit of the rule {rule}, which is not asked for: --rules {rule}")


def described(cfg, limits, tokenizer, sources, drops, changes):
    """What the descriptions of all files of a corpus say: with it, the same files can be made again."""
    settings = {name: value for name, value in dataclasses.asdict(cfg).items() if name not in NOT_RECORDED}
    settings |= {"limits": dataclasses.asdict(limits)} if cfg.rules else {}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "tokenizer": relative(tokenizer.path),
        "tokenizer_hash": tokenizer.hash,
        "seed": cfg.seed,
        "val_fraction": cfg.val_fraction,
        "settings": settings,
        "sources": sources,
        "dropped": dict(sorted(drops.counts.items())),
        "changed": dict(sorted(changes.items())),
        "versions": {"python": platform.python_version(), "tokenizers": importlib.metadata.version("tokenizers")},
    }


def run(cfg, load_tokenizer, limits=None):
    """Raw files → `cfg.output`, its validation and annealing parts, with a description beside each.

    Args:
        cfg: PretrainSettings.
        load_tokenizer: loads a tokenizer folder.
        limits: RuleSettings of cfg.rules; None: the usual ones.
    Raises:
        ValueError: nothing usable, or everything fell into the validation part; nothing is written.
    """
    limits, start = limits or RuleSettings(), time.monotonic()
    check_limits(cfg.rules, limits)
    files, groups = sources_of(cfg)
    seen = {path: size_and_time(path) for path in files}
    total = sum(size for size, _ in seen.values())
    workers, units = count_workers(cfg.num_workers, total), partial(units_with_progress, files, cfg.field, total)
    if cfg.dry_run:
        dry_run(units("reading"), cfg.rules, limits, cfg.field, workers)
        return
    check_scorers(cfg)
    mixture = mixture_of(cfg, groups)
    check_output(cfg.output, files, bool(cfg.shard_tokens), bool(cfg.anneal))
    tokenizer = load_tokenizer(cfg.tokenizer)
    encoder_of(load_tokenizer, cfg.tokenizer)  # V ≤ 65,536
    identity = {
        "settings": {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("num_workers", "fresh")},
        "limits": dataclasses.asdict(limits),
        "tokenizer": tokenizer.hash,
        "files": [[os.path.realpath(path), *seen[path]] for path in files],
        "read besides": [[str(path), sha256_of(path)] for path in files_of_settings(cfg, limits)],
        "code": [code_digest(Path(__file__).parent), sha256_of(sys.modules[load_tokenizer.__module__].__file__)],
        "versions": {name: version_of(name) for name in LIBRARIES},
    }
    with room_for(cfg.output), work_folder(cfg.output, identity, cfg.fresh) as folder:
        # 1. Clean and encode, a few megabytes at a time, on all cores.
        job = job_of(cfg, limits, folder, load_tokenizer)
        if job.lines:
            job = dataclasses.replace(job, frequent=find_repeated_lines(job, units("repeated lines"), workers))
        parts = make_parts(job, units("reading"), workers)
        drops, changes = Drops(), Counter()
        for part in parts:
            drops.merge(part.drops())
            changes.update(part.about["changed"])

        # 2. Look at all documents together: duplicates, mixtures, order.
        selection = select(parts, cfg, mixture, drops, tokenizer) if parts else Selection([], [])
        n_train, n_val = selection.counts()
        if not n_train:
            nothing = f"no usable text in {', '.join(map(str, files))}; nothing written"
            kept = f"{n_val} text(s) fell into the validation part, none is left to train on; lower --val_fraction"
            raise ValueError(f"{kept if n_val else nothing}\n{drops.table()}")

        # 3. Write.
        sources = [source_of(path, seen[path][0]) for path in files if seen[path][0]]
        description = described(cfg, limits, tokenizer, sources, drops, changes) | {"uses": selection.uses}
        counts = write_files(parts, selection, cfg.output, cfg.shard_tokens, description)
    report(counts, selection, drops, changes, total / 1e6, time.monotonic() - start)


def version_of(library):
    """Its version; None if it is not installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def files_of_settings(cfg, limits):
    """The files beside the input that decide what is kept: scorers, a blocklist, exams."""
    named = [Path(path) for path in (cfg.quality, cfg.domains, limits.blocklist) if path]
    return named + [file for folder in limits.exams for file in sorted(Path(folder).glob("*/*.csv"))]


def units_with_progress(files, field, size, label):
    """All Units of `files`, `size` bytes together, with a sign of life."""
    return read_units(files, field, progress_meter(size, label))


def job_of(cfg, limits, folder, load_tokenizer):
    """The Job of PretrainSettings and RuleSettings."""
    return Job(
        folder=str(folder),
        load_tokenizer=load_tokenizer,
        tokenizer=cfg.tokenizer,
        text_field=cfg.field,
        rules=tuple(cfg.rules),
        limits=limits,
        seed=cfg.seed,
        val_fraction=cfg.val_fraction,
        lines=RepeatedLines(cfg.repeated_lines) if cfg.repeated_lines else None,
        quality=cfg.quality,
        min_quality=cfg.min_quality,
        domains=cfg.domains,
        near=NearDuplicates(cfg.near_duplicates) if cfg.near_duplicates else None,
    )


def source_of(path, size):
    """What the description says of one source; its licence where `data_process.py download` has noted it."""
    try:
        digest = sha256_of(path)
    except OSError:  # what could not be read was counted
        digest = None
    about = {"path": str(path), "bytes": size, "sha256": digest}
    notes = (folder / RECORD for folder in list(path.parents)[:3])
    note = next((file for file in notes if file.is_file() and is_description(file)), None)
    return about | ({"licence": json.loads(note.read_text(encoding="utf-8")).get("licence")} if note else {})


def report(counts, selection, drops, changes, megabytes, seconds):
    """Prints a line per file that was written, what was dropped and changed, and how fast it went."""
    print(f"\n{'file':<24} {'documents':>11} {'tokens':>14} {'characters':>14} {'chars/token':>11} {'text bytes':>14}")
    for path, n in counts.items():
        print(f"{path.name:<24} {n['documents']:>11,} {n['tokens']:>14,} {n['characters']:>14,}", end=" ")
        print(f"{n['characters'] / n['tokens']:>11.2f} {n['text_bytes']:>14,}")
    for times, documents in selection.uses.items():
        if documents and len(selection.uses) > 1:
            print(f"{documents:>11,}  texts used {times} times")
    for what, count in changes.most_common():
        print(f"{count:>11,}  changed: {what}")
    print(drops.table())
    folder = next(iter(counts)).parent
    print(f"{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s; written to {folder}")
