"""Raw records → clean, different texts → ids in the order and mixture asked for: `data_process.py pretrain`."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from cleaning.binfile import check_output, sha256_of
from cleaning.cleaner import Job, find_repeated_lines, make_parts
from cleaning.corpus import Selection, select, write_files
from cleaning.downloads import RECORD
from cleaning.dry_run import dry_run
from cleaning.files import code_digest, is_description, progress_meter, relative, room_for
from cleaning.minhash import NearDuplicates
from cleaning.pieces import encoder_of
from cleaning.pretrain_settings import check_scorers, mixture_of, sources_of
from cleaning.readers import Drops
from cleaning.repeated_lines import RepeatedLines
from cleaning.rules import RuleSettings, check_limits
from cleaning.selection import used_of_sources
from cleaning.units import read_units
from cleaning.work_folder import work_folder
from cleaning.workers import count_workers

LIBRARIES = ("numpy", "tokenizers", "tiktoken", "opencc", "rensa", "scikit-learn")  # what they do may differ
NOT_RECORDED = ("input", "output", "tokenizer", "seed", "val_fraction", "num_workers", "fresh")  # or recorded otherwise


def size_and_time(path):
    """(bytes, time of the last change) of a file; zeros for one that cannot be looked at: reading it will tell."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


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
        others = ("repeated_lines", "near_duplicates", "quality", "min_quality", "mix_domains", "anneal")
        if asked := [f"--{name}" for name in others if getattr(cfg, name)]:
            print(f"not looked at here, rules only: {' '.join(asked)}\n")
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
        "the input files": [[os.path.realpath(path), *seen[path]] for path in files],
        "a scorer, a blocklist or an exam": [[str(path), sha256_of(path)] for path in files_of_settings(cfg, limits)],
        "the code": [code_digest(Path(__file__).parent), sha256_of(sys.modules[load_tokenizer.__module__].__file__)],
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
            more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
            nothing = f"no usable text in {', '.join(map(str, files[:3]))}{more}; nothing written"
            kept = f"{n_val} text(s) fell into the validation part, none is left to train on; lower --val_fraction"
            raise ValueError(f"{kept if n_val else nothing}\n{drops.table()}")

        # 3. Write.
        used = used_of_sources(parts, selection.train, selection.order, len(files))
        sources = [source_of(path, seen[path][0], *own) for path, own in zip(files, used.T.tolist()) if seen[path][0]]
        description = described(cfg, limits, tokenizer, sources, drops, changes)
        description |= {"uses": selection.uses, "mixed": selection.mixed}
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


def source_of(path, size, documents, tokens):
    """What the description says of one source; its licence where `data_process.py download` has noted it.

    Args:
        path: its file; size: in bytes; documents, tokens: what of it is written to be trained on.
    """
    try:
        digest = sha256_of(path)
    except OSError:  # what could not be read was counted
        digest = None
    about = {"path": str(path), "bytes": size, "sha256": digest, "documents": documents, "tokens": tokens}
    notes = (folder / RECORD for folder in list(path.parents)[:3])
    note = next((file for file in notes if file.is_file() and is_description(file)), None)
    return about | ({"licence": json.loads(note.read_text(encoding="utf-8")).get("licence")} if note else {})


def report(counts, selection, drops, changes, megabytes, seconds):
    """Prints a line per file that was written, what was dropped and changed, and how fast it went."""
    print(f"\n{'file':<24} {'documents':>11} {'tokens':>14} {'characters':>14} {'chars/token':>11} {'text bytes':>14}")
    for path, n in counts.items():
        print(f"{path.name:<24} {n['documents']:>11,} {n['tokens']:>14,} {n['characters']:>14,}", end=" ")
        print(f"{n['characters'] / n['tokens']:>11.2f} {n['text_bytes']:>14,}")
    tokens = sum(own["tokens"] for own in selection.mixed.values())
    for name, own in selection.mixed.items():
        print(f"mixed: {name}, {own['documents']:,} documents, {own['tokens']:,} tokens, {own['tokens'] / tokens:.1%}")
    for times, documents in selection.uses.items():
        if documents and sum(map(bool, selection.uses.values())) > 1:
            print(f"{documents:>11,}  texts used {times} times")
    for what, count in changes.most_common():
        print(f"{count:>11,}  changed: {what}")
    print(drops.table())
    folder = next(iter(counts)).parent
    print(f"{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s; written to {folder}")
