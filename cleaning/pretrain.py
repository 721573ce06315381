"""Raw records → clean, different texts → ids in the order and mixture asked for: `data_process.py pretrain`."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cleaning.binfile import check_output, sha256_of
from cleaning.cleaner import Job, find_repeated_lines, make_parts
from cleaning.corpus import select, write_files
from cleaning.files import code_digest, progress_meter, relative, room_for
from cleaning.minhash import NearDuplicates, check_near_duplicates
from cleaning.pieces import encoder_of
from cleaning.readers import Drops, expand_inputs
from cleaning.repeated_lines import RepeatedLines, check_repeated_lines
from cleaning.scorer import load_scorer
from cleaning.selection import ORDERS, Mixture, parse_weights
from cleaning.settings import knob
from cleaning.units import read_units
from cleaning.workers import count_workers

NOT_RECORDED = ("input", "output", "tokenizer", "seed", "val_fraction", "num_workers")  # or recorded otherwise


@dataclass
class PretrainSettings:
    """What `data_process.py pretrain` is asked for. Those without a flag here are flags of the script itself."""

    input: list
    output: str
    tokenizer: str
    seed: int = 0
    field: str | None = knob(None, "field with the text; unset: found by itself")
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
    num_workers: int | None = knob(None, "processes; unset: one per core, or none for small inputs")

    def __post_init__(self):
        if not 0 <= self.val_fraction < 1:
            raise ValueError(
                f"--val_fraction {self.val_fraction} is not a share of the texts; give 0 up to below 1, such as 0.01"
            )
        if not 0 <= self.anneal < 1:
            raise ValueError(f"--anneal {self.anneal} is not a share of the tokens; give 0 up to below 1, such as 0.1")
        if self.max_repeats < 1:
            raise ValueError(f"--max_repeats {self.max_repeats}: a text is used at least once; give 1 or more")
        if (self.anneal or self.min_quality or self.order == "quality") and not self.quality:
            raise ValueError("--anneal, --min_quality and --order quality need scores: --quality out/quality.npz")
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
    files = {path.resolve(): (path, number) for number, paths in enumerate(groups) for path in paths}
    if sum(map(len, groups)) > len(files):
        raise ValueError("--mix names a file twice; each file belongs to one entry")
    return [path for path, _ in files.values()], [number for _, number in files.values()]


def mixture_of(cfg, groups):
    """The Mixture that --mix or --mix_domains asks for, or None; `groups`: that of each source."""
    if cfg.mix:
        return Mixture("source", dict(enumerate(groups)), [weight for _, weight in parse_weights(cfg.mix, "--mix")])
    if not cfg.mix_domains:
        return None
    weights, names = dict(parse_weights(cfg.mix_domains, "--mix_domains", "NAME")), load_scorer(cfg.domains).names
    if unknown := set(weights).difference(names):
        raise ValueError(f"--mix_domains: {cfg.domains} tells {', '.join(names)} apart, not {', '.join(unknown)}")
    return Mixture("domain", {names.index(n): i for i, n in enumerate(weights)}, list(weights.values()))


def size_and_time(path):
    """(bytes, time of the last change) of a file; zeros for one that cannot be looked at: reading it will tell."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def work_folder(output, identity):
    """A folder beside `output` for parts; those of an interrupted run of the same `identity` are found in it again.

    It is removed at the end, and after an error if nothing in it is worth keeping.
    """
    folder = Path(f"{output}.parts")
    mark, text = folder / "job.json", json.dumps(identity, ensure_ascii=False, indent=1, default=str)
    if folder.is_dir() and not (mark.is_file() and mark.read_text(encoding="utf-8") == text):
        print(f"{folder} belongs to a run with other settings or files; starting anew")
        shutil.rmtree(folder)
    made = len(list(folder.glob("*.npz")))
    if made:
        print(f"going on with the {made:,} parts that are already in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(text, encoding="utf-8")
    done = False
    try:
        yield folder
        done = True
    finally:
        if done or sys.exc_info()[0] is ValueError or not any(folder.glob("*.npz")):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"finished parts stay in {folder}; the same command goes on from there", flush=True)


def described(cfg, tokenizer, sources, drops, changes):
    """What the descriptions of all files of a corpus say: with it, the same files can be made again."""
    settings = {name: value for name, value in dataclasses.asdict(cfg).items() if name not in NOT_RECORDED}
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


def job_of(cfg, folder, load_tokenizer):
    """What PretrainSettings ask to be done to every document; the parts go to `folder`."""
    return Job(
        str(folder),
        load_tokenizer,
        cfg.tokenizer,
        cfg.field,
        cfg.seed,
        cfg.val_fraction,
        lines=RepeatedLines(cfg.repeated_lines) if cfg.repeated_lines else None,
        quality=cfg.quality,
        min_quality=cfg.min_quality,
        domains=cfg.domains,
        near=NearDuplicates(cfg.near_duplicates) if cfg.near_duplicates else None,
    )


def run(cfg, load_tokenizer):
    """Raw files → `cfg.output`, its validation and annealing parts, with a description beside each.

    Args:
        cfg: PretrainSettings.
        load_tokenizer: loads a tokenizer folder.
    Raises:
        ValueError: nothing usable, or everything fell into the validation part; nothing is written.
    """
    files, groups = sources_of(cfg)
    mixture = mixture_of(cfg, groups)
    check_output(cfg.output, files, bool(cfg.shard_tokens))
    tokenizer = load_tokenizer(cfg.tokenizer)
    encoder_of(load_tokenizer, cfg.tokenizer)  # V ≤ 65,536
    seen = {path: size_and_time(path) for path in files}
    total, start = sum(size for size, _ in seen.values()), time.monotonic()
    identity = {
        "settings": {k: v for k, v in dataclasses.asdict(cfg).items() if k != "num_workers"},
        "tokenizer": tokenizer.hash,
        "files": [[str(path.resolve()), *seen[path]] for path in files],
        "scorers": [sha256_of(path) for path in (cfg.quality, cfg.domains) if path],
        "code": code_digest(Path(__file__).parent),
    }
    with room_for(cfg.output), work_folder(cfg.output, identity) as folder:
        # 1. Clean and encode, a few megabytes at a time, on all cores.
        job = job_of(cfg, folder, load_tokenizer)
        workers = count_workers(cfg.num_workers, total)
        if job.lines:
            units = read_units(files, cfg.field, progress_meter(total, "looking for repeated lines"))
            job = dataclasses.replace(job, frequent=find_repeated_lines(job, units, workers))
        parts = make_parts(job, read_units(files, cfg.field, progress_meter(total, "reading")), workers)
        drops, changes = Drops(), Counter()
        for part in parts:
            drops.merge(part.drops())
            changes.update(part.about["changed"])

        # 2. Look at all documents together: duplicates, mixtures, order.
        selection = select(parts, cfg, mixture, drops, tokenizer)
        n_train, n_val = selection.counts()
        if not n_train:
            reason = f"no usable text in {', '.join(map(str, files))}; nothing written"
            if n_val:
                reason = (
                    f"{n_val} text(s) fell into the validation part, none is left to train on; lower --val_fraction"
                )
            raise ValueError(f"{reason}\n{drops.table()}")

        # 3. Write.
        sources = [{"path": str(p), "bytes": seen[p][0], "sha256": sha256_of(p)} for p in files if seen[p][0]]
        description = described(cfg, tokenizer, sources, drops, changes) | {"uses": selection.uses}
        counts = write_files(parts, selection, cfg.output, cfg.shard_tokens, description)
    report(counts, selection, drops, changes, total / 1e6, time.monotonic() - start)


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
