"""Raw instruction or preference files → one JSONL file: same form, no duplicates, filtered and mixed as asked."""

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from cleaning.conversations import conversation_of
from cleaning.encodings import ignore
from cleaning.files import room_for, write_lines
from cleaning.preferences import pair_of
from cleaning.readers import Drops, expand_inputs, read_records

CJK = (0x3400, 0x9FFF)  # the Chinese characters of the Basic Multilingual Plane


def texts_of(record):
    """Everything that is said in a record of the one form."""
    turns = [*record["conversations"], *({"content": record[k]} for k in ("chosen", "rejected") if k in record)]
    return [turn[part] for turn in turns for part in ("reasoning_content", "content") if part in turn]


def calls_of(record):
    """The tools of a record of the one form, and how they are called, as the model reads them: JSON."""
    calls = [call for turn in record["conversations"] for call in turn.get("tool_calls", ())]
    return [json.dumps(x, ensure_ascii=False) for x in (*record.get("tools", ()), *calls)]


def chinese_share(text):
    """Share of Chinese among the characters that are letters of any script; 1.0 where there are none."""
    letters = [c for c in text if c.isalpha()]
    return sum(CJK[0] <= ord(c) <= CJK[1] for c in letters) / len(letters) if letters else 1.0


class Filters:
    """What a person asked to leave out; a record meets them in this order.

    Args:
        min_chinese: smallest share of Chinese letters, 0 to 1.
        min_tokens, max_tokens: length of the whole record in tokens; None: no limit.
        count_tokens: list of str → number of tokens; needed for the lengths.
    """

    def __init__(self, min_chinese=0.0, min_tokens=None, max_tokens=None, count_tokens=None):
        self.min_chinese, self.count_tokens = min_chinese, count_tokens
        self.min_tokens, self.max_tokens = min_tokens or 0, max_tokens or float("inf")
        self.by_length = bool(min_tokens or max_tokens)

    def reason(self, record):
        """Why the record is left out, or None."""
        texts = texts_of(record)
        if self.min_chinese and chinese_share("".join(texts)) < self.min_chinese:
            return f"less than {self.min_chinese:.0%} Chinese"
        if self.by_length:
            length = self.count_tokens([*texts, *calls_of(record)])
            if length < self.min_tokens:
                return f"under {self.min_tokens} tokens"
            if length > self.max_tokens:
                return f"over {self.max_tokens} tokens"
        return None


class Seen:
    """Records met before: by what they say, whatever schema said it."""

    def __init__(self):
        self.keys = set()  # 8 bytes of hash each, about 60 MB for a million

    def reason(self, record):
        """'duplicate', 'contradicts an earlier pair', or None for a record that is new and remembered now."""
        own = self._key(record)
        if own in self.keys:
            return "duplicate"
        swapped = {**record, "chosen": record.get("rejected"), "rejected": record.get("chosen")}
        if "chosen" in record and self._key(swapped) in self.keys:
            return "contradicts an earlier pair"
        self.keys.add(own)
        return None

    @staticmethod
    def _key(record):
        text = json.dumps(record, ensure_ascii=False, sort_keys=True).encode("utf-8")
        return hashlib.blake2b(text, digest_size=8).digest()


def usable(read, paths, drops, notes, filters, seen, progress=ignore):
    """Yields the records of `paths` in the one form.

    Args:
        read: conversation_of or pair_of.
        drops: Drops that counts what is left out; notes: Counter of what was changed.
        filters: Filters; seen: Seen.
    """
    for path in paths:
        for line, raw in read_records(path, drops, progress):
            record, reason, changed = read(raw)
            reason = reason or filters.reason(record) or seen.reason(record)
            if reason:
                drops.add(reason, str(path), line, json.dumps(raw, ensure_ascii=False))
            else:
                notes.update(changed)
                yield record


def record_at(path, number):
    """The usable record with this number, counted from 0, of a raw file of any schema, in the one form.

    Raises:
        ValueError: there are fewer.
    """
    drops, found = Drops(), 0
    for _, raw in read_records(path, drops):
        record, reason, _ = conversation_of(raw)
        if reason:
            record, _, _ = pair_of(raw)
        if record and found == number:
            return record
        found += bool(record)
    raise ValueError(f"{path} has {found} usable records, numbered from 0; there is no {number}\n{drops.table()}")


def parse_mix(entries):
    """['zh.jsonl:0.6', 'en.jsonl:0.4'] → [(path, weight)]; ValueError for a weight that is none."""
    sources = []
    for entry in entries:
        path, colon, weight = entry.rpartition(":")
        try:
            number = float(weight)
        except ValueError:
            number = -1.0
        if not colon or not 0 < number < float("inf"):
            raise ValueError(f"--mix {entry} is not PATH:WEIGHT with a weight above 0, such as zh.jsonl:0.6")
        sources.append((path, number))
    return sources


def share_out(counts, weights):
    """How many records each source gives: in the ratio of the weights, none twice, as many as that allows."""
    whole = min(n * sum(weights) / w for n, w in zip(counts, weights))
    return [min(n, round(whole * w / sum(weights))) for n, w in zip(counts, weights)]


def mixed(files, counts, taken, seed):
    """Yields lines of the open `files`, `taken[i]` of the `counts[i]` lines of each, interleaved at random by seed."""
    rng = np.random.default_rng(seed)
    chosen = [np.sort(rng.permutation(n)[:k]) for n, k in zip(counts, taken)]
    lines = [pick(file, numbers) for file, numbers in zip(files, chosen)]
    for source in rng.permutation(np.repeat(np.arange(len(files)), taken)):
        yield next(lines[source])


def pick(file, numbers):
    """Yields the lines of `file` with these sorted numbers."""
    wanted = iter(numbers.tolist())
    number = next(wanted, None)
    for at, line in enumerate(file):
        if at == number:
            yield line
            number = next(wanted, None)


def clean(kind, sources, output, filters, seed=0, allow_empty=False, progress=ignore):
    """Files of any schema → `output`, a JSONL file in the one form, whole or not at all.

    Args:
        kind: 'sft' or 'dpo'.
        sources: [(list of paths, weight)]; weights None: everything, in order.
        filters: Filters.
        seed: decides what a mix draws.
        allow_empty: keep conversations with an empty answer.
    Returns:
        (number of records written, Drops, Counter of changes, records per source).
    """
    drops, notes, seen, folder = Drops(), Counter(), Seen(), Path(output).parent
    folder.mkdir(parents=True, exist_ok=True)
    read = pair_of if kind == "dpo" else partial(conversation_of, allow_empty=allow_empty)
    counts, files = [], []
    with room_for(output), contextlib.ExitStack() as stack:
        for paths, _ in sources:
            file = stack.enter_context(tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", newline="\n"))
            files.append(file)
            number = 0
            for record in usable(read, expand_inputs(paths), drops, notes, filters, seen, progress):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                number += 1
            counts.append(number)
            file.seek(0)
        if not all(counts):
            empty = ", ".join(str(p) for (paths, _), n in zip(sources, counts) if not n for p in paths)
            raise ValueError(f"no usable record in {empty}; nothing written\n{drops.table()}")
        weights = [w for _, w in sources]
        taken = counts if None in weights else share_out(counts, weights)
        lines = itertools.chain(*files) if None in weights else mixed(files, counts, taken, seed)
        write_lines(output, lines)
    return sum(taken), drops, notes, taken
