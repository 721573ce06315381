"""Raw records → clean, different texts → ids, a few megabytes at a time."""

import collections
import hashlib
import importlib.metadata
import multiprocessing
import platform
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from cleaning.binfile import BinWriter, remove_bin, sha256_of, val_path_of
from cleaning.encodings import ignore
from cleaning.files import progress_meter, relative
from cleaning.normalize import clean_text, mark_new
from cleaning.pieces import encode_texts
from cleaning.readers import Drops, read_located

BATCH = 1 << 20  # characters per batch, about 3 MB of Chinese


def key_of(text):
    """uint64 hash by which duplicates are found: of the cleaned text without the space around it."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8"), digest_size=8).digest(), "little")


def is_held_out(key, seed, fraction):
    """Does the text with this key belong to the validation part? Depends on nothing but the text and the seed."""
    digest = hashlib.blake2b(
        int(key).to_bytes(8, "little"), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)
    )
    return int.from_bytes(digest.digest(), "little") < fraction * 2**64


def clean_batches(paths, drops, field=None, progress=ignore):
    """Yields (texts, keys): cleaned texts, each met for the first time, with their uint64 keys. See read_texts."""
    texts, places, size, seen = [], [], 0, []

    def first_met():
        keys = np.array([key_of(text) for text in texts], dtype=np.uint64)
        new = mark_new(keys, seen)
        for i in np.flatnonzero(~new):
            drops.add("duplicate", *places[i], texts[i])
        return [text for text, is_new in zip(texts, new) if is_new], keys[new]

    for file, line, raw in read_located(paths, drops, field, progress):
        text, reason = clean_text(raw)
        if reason:
            drops.add(reason, file, line, raw)
            continue
        texts.append(text)
        places.append((file, line))
        size += len(text)
        if size >= BATCH:
            yield first_met()
            texts, places, size = [], [], 0
    if texts:
        yield first_met()


def encoded_batches(batches, encode, workers):
    """Yields (texts, keys, encoded) in order, `encode(texts)` running in `workers` processes, or here if 0."""
    if not workers:
        for texts, keys in batches:
            yield texts, keys, encode(texts)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the parent, which then ends the workers
    with ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=ignore_interrupt) as pool:
        waiting = collections.deque()
        for texts, keys in batches:
            waiting.append((texts, keys, pool.submit(encode, texts)))
            if len(waiting) > workers + 1:  # so many batches are in memory, however long the corpus is
                texts, keys, future = waiting.popleft()
                yield texts, keys, future.result()
        for texts, keys, future in waiting:
            yield texts, keys, future.result()


def write_bins(paths, output, load_tokenizer, tokenizer, seed, val_fraction, field=None, workers=0):
    """Raw files → `output` and its validation part, with a description beside each; prints what came out.

    Args:
        load_tokenizer, tokenizer: the function that loads a tokenizer folder, and what it gave; see encode_texts.
        workers: processes that encode; 0: this one.
    Raises:
        ValueError: nothing usable, or everything fell into the validation part; nothing is written.
    """
    total, start, drops = sum(p.stat().st_size for p in paths), time.monotonic(), Drops()

    # 1. Texts are read and cleaned here and encoded beside it, a few megabytes at a time.
    batches = clean_batches(paths, drops, field, progress_meter(total, "reading"))
    encode = partial(encode_texts, load_tokenizer, tokenizer.path)
    new_writer = partial(BinWriter, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    with new_writer(output) as train, new_writer(val_path_of(output)) as val:
        for texts, keys, encoded in encoded_batches(batches, encode, workers):
            held_out = [is_held_out(key, seed, val_fraction) for key in keys]
            for writer, part in ((train, False), (val, True)):
                chosen = [i for i, h in enumerate(held_out) if h == part]
                writer.add([texts[i] for i in chosen], [encoded[i] for i in chosen])

        # 2. All files are complete on the disk before the first one replaces an old one.
        if not train.documents:
            kept = (
                f"{val.documents} text(s) fell into the validation part, none is left to train on; lower --val_fraction"
            )
            nothing = f"no usable text in {', '.join(map(str, paths))}; nothing written"
            raise ValueError(f"{kept if val.documents else nothing}\n{drops.table()}")
        description = {
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "tokenizer": relative(tokenizer.path),
            "tokenizer_hash": tokenizer.hash,
            "seed": seed,
            "val_fraction": val_fraction,
            "sources": [{"path": str(p), "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths],
            "dropped": dict(sorted(drops.counts.items())),
            "versions": {"python": platform.python_version(), "tokenizers": importlib.metadata.version("tokenizers")},
        }
        writers = [train, val] if val.documents else [train]
        for writer in writers:
            writer.prepare(part="val" if writer is val else "train", **description)
        for writer in writers:
            writer.commit()
    if not val.documents:
        remove_bin(val.path)
    report([train, val] if val.documents else [train], drops, total, time.monotonic() - start)


def report(writers, drops, total, seconds):
    """Prints a line per file that was written, what was dropped, and how fast it went."""
    print(f"\n{'file':<24} {'documents':>11} {'tokens':>14} {'characters':>14} {'chars/token':>11} {'text bytes':>14}")
    for w in writers:
        print(f"{w.path.name:<24} {w.documents:>11,} {w.tokens:>14,} {w.characters:>14,}", end=" ")
        print(f"{w.characters / w.tokens:>11.2f} {w.text_bytes:>14,}")
    print(drops.table())
    megabytes = total / 1e6
    print(
        f"{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s; written to {writers[0].path.parent}"
    )
