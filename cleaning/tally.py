"""What is found in a batch of documents, and how it adds up."""

import hashlib
from collections import Counter

import numpy as np

from cleaning.cleaner import key_of
from cleaning.histogram import Histogram
from cleaning.normalize import clean_text
from cleaning.packed import text_of_ids
from cleaning.pieces import encoder_of
from cleaning.readers import Drops
from cleaning.scripts import LANGUAGES, SCRIPTS, languages_of, scripts_of
from cleaning.urls import domain_of

MOST_DOMAINS = 100_000  # counted at a time


def measure(load_tokenizer, path, packed, items):
    """A batch of raw texts, or of packed documents (uint16 ids as bytes) → what is to be added up.

    Args:
        load_tokenizer, path: see encoder_of; path None: no tokenizer.
    Returns:
        dict: `empty` places in the batch of texts with nothing to read, `keys` (N,) uint64 of the others, `tokens`,
        `characters` (N,) or None where they cannot be known, `bytes`, `scripts` (5,), `hints` (2,), `languages` (7,).
    """
    if packed:
        keys = [key_of_ids(ids) for ids in items]
        tokens = np.array([len(ids) // 2 for ids in items], dtype=np.int64)
        texts, empty = [text_of_ids(load_tokenizer, path, ids) for ids in items] if path else None, []
    else:
        cleaned = [clean_text(text) for text in items]
        empty = [i for i, (_, reason) in enumerate(cleaned) if reason]
        texts = [text for text, reason in cleaned if not reason]
        keys = [key_of(text) for text in texts]
        ends = encoder_of(load_tokenizer, path).encode(texts)[1] if path and texts else np.zeros(0, np.int64)
        tokens = np.diff(ends, prepend=0) if path else None
    found = {"empty": empty, "keys": np.array(keys, dtype=np.uint64), "tokens": tokens, "characters": None}
    if texts is not None:
        counts, hints = scripts_of(texts)
        languages = np.bincount(languages_of(counts, hints), minlength=len(LANGUAGES))
        found |= {"characters": counts.sum(axis=1), "scripts": counts.sum(axis=0), "hints": hints.sum(axis=0)}
        found |= {"languages": languages, "bytes": sum(len(t.encode("utf-8", "surrogatepass")) for t in texts)}
    return found


def key_of_ids(ids):
    """uint64 hash of a packed document (bytes): equal ids are equal text."""
    return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "little")


class Tally:
    """Everything that is counted of a file, or of all."""

    def __init__(self):
        self.documents = self.duplicates = self.bytes = 0
        self.has_text = self.has_tokens = False
        self.characters, self.tokens = Histogram(), Histogram()
        self.scripts, self.hints, self.languages = (np.zeros(n, np.int64) for n in (len(SCRIPTS), 2, len(LANGUAGES)))
        self.drops = Drops()

    def add(self, found, new):
        """Adds what `measure` found; `new` (N,) marks documents met for the first time."""
        self.documents += len(new)
        self.duplicates += int(len(new) - new.sum())
        if found["tokens"] is not None:
            self.has_tokens = True
            self.tokens.add(found["tokens"])
        if found["characters"] is not None:
            self.has_text = True
            self.bytes += found["bytes"]
            self.characters.add(found["characters"])
            self.scripts += found["scripts"]
            self.hints += found["hints"]
            self.languages += found["languages"]

    def summary(self, known=None):
        """What goes into the file of figures; `known` fills in characters and bytes that a description tells."""
        characters = self.characters.total if self.has_text else (known or {}).get("characters")
        size = self.bytes if self.has_text else (known or {}).get("text_bytes")
        tokens = self.tokens.total if self.has_tokens else None
        figures = {"documents": self.documents, "characters": characters, "bytes": size, "tokens": tokens}
        figures |= {"characters_per_token": ratio(characters, tokens), "bytes_per_token": ratio(size, tokens)}
        figures |= {"duplicates": self.duplicates, "duplicate_rate": ratio(self.duplicates, self.documents) or 0.0}
        figures["lengths"] = {"characters": self.characters.summary(), "tokens": self.tokens.summary()}
        if self.has_text:
            figures["scripts"] = dict(zip(SCRIPTS, self.scripts.tolist()))
            figures["only_simplified"], figures["only_traditional"] = self.hints.tolist()
            figures["languages"] = dict(zip(LANGUAGES, self.languages.tolist()))
        return figures | {"dropped": dict(sorted(self.drops.counts.items()))}


def ratio(a, b):
    """a / b; None where one of them is not known, or b is 0."""
    return a / b if a is not None and b else None


class Domains:
    """Documents per origin; of more than MOST_DOMAINS the rarer half is forgotten, and counted as such."""

    def __init__(self):
        self.counts, self.forgotten = Counter(), 0

    def add(self, record):
        """Counts the domain of a raw record, if it names one."""
        domain = domain_of(record)
        if domain is None:
            return
        self.counts[domain] += 1
        if len(self.counts) > MOST_DOMAINS:
            kept = Counter(dict(self.counts.most_common(MOST_DOMAINS // 2)))
            self.forgotten += self.counts.total() - kept.total()
            self.counts = kept
