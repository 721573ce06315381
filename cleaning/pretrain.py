"""Raw records → clean, different texts → ids, a few megabytes at a time."""

import collections
import hashlib
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from cleaning.encodings import ignore
from cleaning.normalize import clean_text, mark_new
from cleaning.readers import read_located

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
