"""What raw files or packed .bin files hold: counts, lengths, scripts, duplicates, origins, and what is unusable.

Files are read once, front to end, here; texts are measured beside it in worker processes, a few megabytes at a time,
and what they find is added up in the order of the files: any number of workers gives the same result.

Bounded memory: lengths go into histograms whose buckets grow (cleaning/histogram.py: percentiles are right within
0.8 %), domains beyond 100,000 lose their rarest, and duplicates are found by 8 bytes per distinct document, 80 MB
for 10 million.
"""

import json
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

from cleaning.binfile import sidecar_of
from cleaning.encodings import ignore
from cleaning.files import STATISTICS, prepare_file, progress_meter, relative, write_files
from cleaning.histogram import ERROR
from cleaning.normalize import mark_new
from cleaning.packed import packed_batches
from cleaning.readers import expand_inputs, read_records, size_of, text_of
from cleaning.settings import knob
from cleaning.stats_text import report
from cleaning.tally import Domains, Tally, measure
from cleaning.workers import count_workers, in_order

SHOWN_DOMAINS = 50
BATCH = 1 << 20  # characters measured together, about 3 MB of Chinese


@dataclass
class StatsSettings:
    """Flags of `data_process.py stats`."""

    input: list[str] = knob(list, "files and folders: raw ones of any format, or .bin files")
    tokenizer: str | None = knob(None, "folder of a tokenizer; without one, raw files have no tokens and .bin no text")
    field: str | None = knob(None, "field with the text, if it is not found by itself")
    output: str | None = knob(None, "a .json for these figures, which python -m evaluation.report draws")
    num_workers: int | None = knob(None, "processes that measure; 0: this one; unset: one per core for large inputs")


def check(cfg):
    """Raises ValueError for flags that make no sense."""
    if not cfg.input:
        raise ValueError("no input: name at least one file or folder with --input")
    if cfg.output:
        prepare_file(cfg.output, ".json", (f'{{\n "format": "{STATISTICS}"'.encode(),), cfg.input)
    count_workers(cfg.num_workers, 0)


def find_files(inputs):
    """Files and folders → (raw files, .bin files); a folder with nothing but .bin files means these."""
    raw, packed = [], []
    for path in map(Path, inputs):
        bins = [path] if path.suffix == ".bin" else sorted(path.glob("*.bin")) if path.is_dir() else []
        missing = [p for p in bins if not p.is_file()]
        if missing:
            raise FileNotFoundError(f"no file at {missing[0]}; check the path")
        if bins and (path.suffix == ".bin" or not any_raw(path)):
            packed += [p for p in bins if p not in packed]
        else:
            raw.append(path)
    return expand_inputs(raw) if raw else [], packed


def any_raw(folder):
    """Does a folder hold a file of text?"""
    try:
        return bool(expand_inputs(folder))
    except FileNotFoundError:
        return False


# --- files ------------------------------------------------------------------------------------------------------------


def raw_batches(path, field, drops, domains, progress=ignore):
    """Yields (texts, lines) of a raw file, about BATCH characters at a time; counts drops and domains on the way."""
    texts, lines, size = [], [], 0
    for line, record in read_records(path, drops, progress):
        text, reason = text_of(record, field)
        if reason:
            drops.add(reason, str(path), line, str(record))
            continue
        domains.add(record)
        texts.append(text)
        lines.append(line)
        size += len(text)
        if size >= BATCH:
            yield texts, lines
            texts, lines, size = [], [], 0
    if texts:
        yield texts, lines


def tally_files(files, batches_of, measure_batch, total, workers):
    """{path: Tally} of files of one kind, adding to `total`.

    Args:
        batches_of: (path, its Tally) → iterable of (items, lines).
        measure_batch: items → what `measure` returns.
    """
    tallies, seen = {path: Tally() for path in files}, []
    batches = ((items, path, lines) for path in files for items, lines in batches_of(path, tallies[path]))
    for (items, path, lines), found in in_order(measure_batch, batches, workers, sent=itemgetter(0)):
        for i in found["empty"]:
            tallies[path].drops.add("empty text", str(path), lines[i], items[i])
        new = mark_new(found["keys"], seen)
        tallies[path].add(found, new)
        total.add(found, new)
    for tally in tallies.values():
        total.drops.merge(tally.drops)
    return tallies


def statistics(inputs, load_tokenizer=None, tokenizer=None, field=None, workers=None):
    """Files → (figures that JSON can hold, Drops with the first example of each reason).

    Args:
        load_tokenizer, tokenizer: the function that loads a tokenizer folder, and the folder or None.
        workers: processes that measure; 0: this one; None: one per core, if there is enough to do. The result
            does not depend on it.
    Raises:
        ValueError: no input, a .bin that another tokenizer made, ids that are too large.
        FileNotFoundError: a path that is not there.
    """
    raw, packed = find_files(inputs)
    if raw and packed and not tokenizer:
        raise ValueError(
            "raw text has characters and .bin files have ids, which gives no sums: name a --tokenizer, or count them "
            "in two commands"
        )
    path = Path(tokenizer) if tokenizer else None
    vocabulary = load_tokenizer(path) if path else None
    described = {file: description_of(file, vocabulary) for file in packed}
    total, domains = Tally(), Domains()
    size = sum(map(size_of, [*raw, *packed]))
    # without a tokenizer, measuring is some 15 times faster
    workers = count_workers(workers, size if path else size // 16)
    meter = progress_meter(size, "reading")

    def texts_of(file, tally):
        return raw_batches(file, field, tally.drops, domains, meter)

    def documents_of(file, _):
        return packed_batches(file, described[file].get("bos_id", 1), described[file].get("eos_id", 2), meter)

    measured = tally_files(raw, texts_of, partial(measure, load_tokenizer, path, False), total, workers)
    measured |= tally_files(packed, documents_of, partial(measure, load_tokenizer, path, True), total, workers)
    if not total.documents:
        raise ValueError(f"nothing to count in {', '.join(map(str, inputs))}\n{total.drops.table()}")
    files = {relative(f): tally.summary(described.get(f)) for f, tally in measured.items()}
    figures = {
        "format": STATISTICS,
        "version": 1,
        "inputs": [relative(p) for p in inputs],
        "tokenizer": relative(path) if path else None,
        "exactness": {"percentiles": ERROR, "documents_of_forgotten_domains": domains.forgotten},
        "total": total.summary(known_of_all(files) if packed and not path and not raw else None),
        "files": files,
        "domains": domains.counts.most_common(SHOWN_DOMAINS),
    }
    return figures, total.drops


def known_of_all(files):
    """Characters and bytes of .bin files in all, where every description tells them."""
    names = {"characters": "characters", "text_bytes": "bytes"}
    told = {key: [figures[name] for figures in files.values()] for key, name in names.items()}
    return {key: sum(values) for key, values in told.items() if None not in values}


def description_of(file, vocabulary):
    """The .json beside a .bin, {} without one; ValueError if the tokenizer is another than the one that made it."""
    sidecar = sidecar_of(file)
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{sidecar} is not whole JSON ({error}); pack {file} again") from error
    if not isinstance(about, dict):
        raise ValueError(f"{sidecar} does not describe {file}; rename it")
    if vocabulary and about:
        vocabulary.check(about.get("tokenizer_hash"), vocabulary.vocab_size, file)
    return about


def stats(cfg, load_tokenizer):
    """Counts, prints and, with --output, writes the figures.

    Args:
        cfg: StatsSettings.
        load_tokenizer: a function of a module, because workers get it by name.
    """
    check(cfg)
    figures, drops = statistics(cfg.input, load_tokenizer, cfg.tokenizer, cfg.field, cfg.num_workers)
    print(report(figures, drops))
    if cfg.output:
        output = Path(cfg.output)
        write_files(output.parent, {output.name: json.dumps(figures, ensure_ascii=False, indent=1)})
        print(f"written to {output}; python -m evaluation.report --data {output} draws it")
