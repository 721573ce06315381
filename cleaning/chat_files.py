"""Raw instruction or preference files → one JSONL file: same form, no duplicates, filtered and mixed as asked."""

import contextlib
import json
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress
from pathlib import Path

import numpy as np

from cleaning.chat_rules import CHAT_RULES, chat_rules, ruled
from cleaning.conversations import conversation_of
from cleaning.encodings import ignore
from cleaning.files import prepare_file, progress_meter, room_for, write_lines
from cleaning.preferences import pair_of
from cleaning.readers import Drops, expand_inputs, read_records, size_of
from cleaning.rules import RuleSettings
from cleaning.selection import check_named, check_once, parse_weights
from cleaning.settings import knob
from cleaning.spool import Spool, without_repeats

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


def usable(read, files, drops, filters, rules=(), progress=ignore):
    """Yields (record in the one form, line, number of its file, what was changed) of `files`.

    Args:
        read: conversation_of or pair_of.
        drops: Drops that counts what is left out.
        filters: Filters. rules: list of Rule.
    """
    for number, path in enumerate(files):
        for line, raw in read_records(path, drops, progress):
            record, reason, changed = read(raw)
            if not reason and rules:
                record, reason, by_rules = ruled(record, rules)
                changed = [*changed, *by_rules]
            reason = reason or filters.reason(record)
            if reason:
                drops.add(reason, str(path), line, json.dumps(raw, ensure_ascii=False))
            else:
                yield record, line, number, tuple(changed)


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
    if not found:
        raise ValueError(
            f"{path} has neither chats nor preferences; of raw text make a .bin, and look at that: "
            f"python data_process.py pretrain --input {path} --output text.bin"
        )
    raise ValueError(f"{path} has {found} usable records, numbered from 0; there is no {number}\n{drops.table()}")


def share_out(counts, weights):
    """How many records each source gives: in the ratio of the weights, none twice, as many as that allows."""
    whole = min(n * sum(weights) / w for n, w in zip(counts, weights))
    return [min(n, round(whole * w / sum(weights))) for n, w in zip(counts, weights)]


def drawn(kept, taken, rng):
    """Takes all but `taken`, drawn at random, out of each of `kept`, list of (n,) bool."""
    for own, k in zip(kept, taken):
        chosen = np.zeros(np.count_nonzero(own), bool)
        chosen[:k] = True
        rng.shuffle(chosen)
        own[own] = chosen


def interleaved(lines, taken, rng):
    """Yields from the iterators `lines`, taken[i] from the i-th, in an order drawn at random."""
    order = np.repeat(np.arange(len(lines), dtype=np.int16), taken)
    rng.shuffle(order)
    for source in memoryview(order):
        yield next(lines[source])


def clean(kind, sources, output, filters, seed=0, allow_empty=False, rules=(), progress=ignore):
    """Files of any schema → `output`, a JSONL file in the one form, whole or not at all.

    Args:
        kind: 'sft' or 'dpo'.
        sources: [(list of paths, weight)]; weights None: everything, in order.
        filters: Filters.
        seed: decides what a mix draws.
        allow_empty: keep conversations with an empty answer.
        rules: list of Rule that each text meets.
    Returns:
        (number of records written, Drops, Counter of changes, records per source).
    """
    drops, folder, kinds = Drops(), Path(output).parent, {}
    read = pair_of if kind == "dpo" else partial(conversation_of, allow_empty=allow_empty)
    files = [expand_inputs(paths) for paths, _ in sources]
    with room_for(output), contextlib.ExitStack() as stack:
        spools = [stack.enter_context(Spool(folder)) for _ in sources]
        for own, spool in zip(files, spools):
            for record, line, number, changed in usable(read, own, drops, filters, rules, progress):
                spool.add(record, line, number, kinds.setdefault(changed, len(kinds)))
        kept, notes = without_repeats(spools, files, drops, list(kinds))
        counts = [int(own.sum()) for own in kept]
        if not all(counts):
            empty = ", ".join(str(p) for (paths, _), n in zip(sources, counts) if not n for p in paths)
            raise ValueError(f"no usable record in {empty}; nothing written\n{drops.table()}")
        weights = [w for _, w in sources]
        taken = counts if None in weights else share_out(counts, weights)
        rng = np.random.default_rng(seed)
        if None not in weights:
            drawn(kept, taken, rng)
        # a byte a record: lists of numbers would be what takes the memory
        lines = [compress(spool.read(), memoryview(own)) for spool, own in zip(spools, kept)]
        lines = chain.from_iterable(lines) if None in weights else interleaved(lines, taken, rng)
        write_lines(output, lines)
    return sum(taken), drops, notes, taken


@dataclass
class ChatSettings:
    """What `data_process.py sft` and `dpo` are asked for. Those without a flag here are flags of the script itself."""

    output: str
    tokenizer: str
    input: list = field(default_factory=list)
    seed: int = 0
    mix: list[str] = knob(list, "PATH:WEIGHT instead of --input: draw from these in the ratio of the weights")
    min_tokens: int | None = knob(None, "drop records that are shorter")
    max_tokens: int | None = knob(None, "drop records that are longer")
    min_chinese: float = knob(0.0, "smallest share of Chinese letters, 0 to 1")
    allow_empty: bool = knob(False, "keep records with an empty answer")
    rules: list[str] = knob(list, f"rules that each text of a record meets, of {', '.join(CHAT_RULES)}")

    def __post_init__(self):
        check_named(self.input, self.mix)
        if not 0 <= self.min_chinese <= 1:
            raise ValueError(f"--min_chinese {self.min_chinese} is not a share; give 0 to 1")


def run(kind, cfg, load_tokenizer, limits=None):
    """Cleans what ChatSettings name and prints what came out; `kind` is 'sft' or 'dpo', `limits` RuleSettings."""
    rules = chat_rules(cfg.rules, limits or RuleSettings())
    weighted = [([path], weight) for path, weight in parse_weights(cfg.mix, "--mix")]
    sources = weighted or [(cfg.input, None)]
    files = [p for paths, _ in sources for p in expand_inputs(paths)]
    if cfg.mix:
        check_once(files)
    prepare_file(cfg.output, ".jsonl", (b'{"conversations": ',), files)
    tokenizer = load_tokenizer(cfg.tokenizer)
    count_tokens = lambda texts: sum(map(len, tokenizer.encode_batch(texts)))  # noqa: E731
    filters = Filters(cfg.min_chinese, cfg.min_tokens, cfg.max_tokens, count_tokens)
    meter = progress_meter(sum(map(size_of, files)), "reading")
    written, drops, notes, taken = clean(kind, sources, cfg.output, filters, cfg.seed, cfg.allow_empty, rules, meter)
    print(f"{written:>11,}  records in {cfg.output}", f"({' + '.join(f'{n:,}' for n in taken)})" if cfg.mix else "")
    for what, count in notes.most_common():
        print(f"{count:>11,}  changed: {what}")
    print(drops.table())
