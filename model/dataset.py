"""Data sets: packed rows of ids, read from memory-mapped files, so that memory does not grow with the corpus."""

from pathlib import Path

import numpy as np

from model.batch import FILLER, Sample
from model.bin_data import Mapped, bin_files, find_documents, fingerprint, mapped, open_ids, read_sidecar
from model.chat_data import Growing, chunks, file_digest, read_jsonl
from model.files import code_digest
from model.labels import IGNORE
from model.packing import pack

# The code that makes rows of conversations; edited, it may make others of the same file.
MAKE_ROWS = [Path(__file__).with_name(name) for name in ("chat.py", "dataset.py", "packing.py")]


def lines_of(table, row_ends, index):
    """The lines of `table` that make up row `index`; none for FILLER."""
    if index == FILLER:
        return table[:0]
    return table[row_ends[index - 1] if index else 0 : row_ends[index]]


def filled_row(index, T, pad_id, parts):
    """A Sample of documents one after another, padding behind them.

    Args:
        parts: (ids (n,), labels (n,)) of each document; together at most T + 1 ids.
    """
    ids = np.full(T + 1, pad_id, dtype=np.int64)
    docs = np.full(T + 1, -1, dtype=np.int64)
    labels = np.full(T + 1, IGNORE, dtype=np.int64)
    at = 0
    for number, (own, own_labels) in enumerate(parts):
        place = slice(at, at + len(own))
        ids[place], labels[place], docs[place] = own, own_labels, number
        at += len(own)
    return Sample(index, ids, docs, labels)


class PretrainDataset(Mapped):
    """Rows of T + 1 ids packed from the documents of a .bin, or of a folder of shards.

    Indexing gives a Sample; index FILLER one that is all padding.

    Args:
        path: a .bin file or a folder of them.
        T: positions per row.
        tokenizer: its hash, BOS and V are checked against the data.
        cache_dir: the table of rows is kept there, memory-mapped, and found again by the next run.
        vocab_size: V of the model, if it differs from the tokenizer's.
        in_order: rows follow the order of the documents, a few thousand at a time, for a curriculum.
    """

    def __init__(self, path, T, tokenizer, cache_dir, vocab_size=None, in_order=False):
        self.T, self.files, self.in_order = T, bin_files(path), in_order
        self.pad_id = tokenizer.eos_id
        self.vocab_size = vocab_size or tokenizer.vocab_size
        for file in self.files:
            tokenizer.check(read_sidecar(file).get("tokenizer_hash"), self.vocab_size, file)
        self.shards = [open_ids(f) for f in self.files]
        self.fingerprint = fingerprint(self.shards)
        key = f"rows_{self.fingerprint}_{T}_{self.vocab_size}" + "_in_order" * in_order
        self.pieces, self.row_ends = mapped(cache_dir, key, ("pieces", "ends"), lambda: self._table(tokenizer.bos_id))

    def _table(self, bos_id):
        """pieces (n, 3) int64 [shard, start, length] in row order, and row_ends (rows,) int64."""
        pieces, sizes = [], []
        for i, ids in enumerate(self.shards):
            documents = find_documents(ids, bos_id, self.vocab_size, self.files[i])
            for starts, lengths, row_sizes in pack(*documents, self.T + 1, self.in_order):
                pieces.append(np.stack([np.full_like(starts, i), starts, lengths], axis=1))
                sizes.append(row_sizes)
        return np.concatenate(pieces), np.cumsum(np.concatenate(sizes))

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "shards"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.shards = [open_ids(f) for f in self.files]

    @property
    def fill(self):
        """Share of the row slots that hold a real token."""
        return float(self.pieces[:, 2].sum() / (len(self) * (self.T + 1)))

    def __len__(self):
        return len(self.row_ends)

    def __getitem__(self, index):
        pieces = lines_of(self.pieces, self.row_ends, index)
        documents = (self.shards[shard][start : start + length] for shard, start, length in pieces)
        return filled_row(index, self.T, self.pad_id, ((ids, ids) for ids in documents))


class ChatRows(Mapped):
    """What conversations and preference pairs share: encoded once into files that are then memory-mapped.

    Args:
        path: .jsonl in the form that data_process.py sft or dpo writes.
        T: positions per row.
        tokenizer: a ChatTokenizer.
        cache_dir: the encoded form is kept there and found again by the next run.
    """

    kind = ""  # of the files in the cache
    columns = 2  # of the table: start and length of each document

    def __init__(self, path, T, tokenizer, cache_dir):
        self.path, self.T, self.pad_id = path, T, tokenizer.eos_id
        if tokenizer.vocab_size > 65_536:
            raise ValueError(
                f"{tokenizer.path} has {tokenizer.vocab_size:,} ids, but ids are kept in 16 bits, which hold 65,536; "
                "make a smaller one with: python train_tokenizer.py --vocab_size 6400"
            )
        self.fingerprint = file_digest(path)
        self.key = f"{self.kind}_{self.fingerprint}_{T}_{tokenizer.hash}_{code_digest(*MAKE_ROWS)}"
        names = ("ids", "labels", "table", "ends", "counts")
        self.ids, self.labels, self.table, self.row_ends, counts = mapped(
            cache_dir, self.key, names, lambda: self._make(tokenizer, cache_dir)
        )
        self.counts = dict(zip(self.count_names, counts.tolist()))
        if not len(self):
            raise ValueError(
                f"{path}: none of {sum(counts)} records fits into {T} positions; give a larger --max_seq_len"
            )

    def _make(self, tokenizer, cache_dir):
        """The arrays `mapped` keeps: ids uint16, labels int32, table (n, columns) in row order, row ends, counts."""
        with Growing(np.uint16, cache_dir) as ids, Growing(np.int32, cache_dir) as labels:
            counts, table = dict.fromkeys(self.count_names, 0), [np.empty((0, self.columns), np.int64)]
            for records in chunks(read_jsonl(self.path), 2048):
                for documents in self._documents(records, tokenizer, counts):
                    row = []
                    for document_ids, document_labels in documents:
                        row += [ids.size, len(document_ids)]
                        ids.append(document_ids)
                        labels.append(document_labels)
                    table.append(np.array([row], np.int64))
            table = np.concatenate(table)
            # a pair takes what its longer side takes, in both of its rows
            packed = list(pack(np.arange(len(table)), table[:, 1::2].max(axis=1, initial=0), self.T + 1))
            order = np.concatenate([np.empty(0, np.int64), *(p[0] for p in packed)])
            ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *(p[2] for p in packed)]))
            return ids.array(), labels.array(), table[order], ends, np.array(list(counts.values()))

    def __len__(self):
        return len(self.row_ends)

    @property
    def fill(self):
        """Share of the row slots that hold a real token."""
        return float(self.table[:, 1::2].sum() / (len(self) * (self.T + 1) * (self.columns // 2)))

    def _entries(self, index):
        return lines_of(self.table, self.row_ends, index)

    def _sample(self, index, places):
        """One row of the documents at `places`: (start, length) each."""
        parts = ((self.ids[start : start + n], self.labels[start : start + n]) for start, n in places)
        return filled_row(index, self.T, self.pad_id, parts)


class SFTDataset(ChatRows):
    """Rows packed from whole conversations, in which what the assistant says, its EOS and the asides are scored.

    A conversation longer than a row is cut after the last assistant turn that fits; one whose first answer does not fit
    is left out. `counts` tells how many of each. Indexing gives a Sample; index FILLER one that is all padding.
    """

    kind, count_names = "sft", ("whole", "cut after a turn", "too long")

    def _documents(self, records, tokenizer, counts):
        for chat in tokenizer.encode_chats([(r["conversations"], r.get("tools", ())) for r in records]):
            end = max((e for e in chat.ends if e <= self.T + 1), default=0)
            counts["too long" if not end else "whole" if end == chat.ends[-1] else "cut after a turn"] += 1
            if end:
                yield [(chat.ids[:end], chat.labels[:end])]

    def __getitem__(self, index):
        return self._sample(index, self._entries(index))


class DPODataset(ChatRows):
    """Pairs of rows: the chosen answers in one, the rejected answers to the same questions in the other.

    Only the two answers and their EOS are scored. Indexing gives (chosen Sample, rejected Sample, reference (2, M)
    float32, number of pairs), as `model.batch.collate_pairs` takes them; M is the most pairs that any row holds.
    """

    kind, count_names, columns = "dpo", ("pairs", "too long"), 4

    def __init__(self, path, T, tokenizer, cache_dir):
        super().__init__(path, T, tokenizer, cache_dir)
        self.most_pairs = int(np.diff(self.row_ends, prepend=0).max())
        self.reference = None  # (rows, 2, M) float32 summed log-probs, once they are known

    def _documents(self, records, tokenizer, counts):
        sides = [
            ([*r["conversations"], {"role": "assistant", "content": r[side]}], r.get("tools", ()))
            for r in records
            for side in ("chosen", "rejected")
        ]
        encoded = tokenizer.encode_chats(sides, last_only=True)
        for chosen, rejected in zip(encoded[::2], encoded[1::2]):
            fits = max(len(chosen.ids), len(rejected.ids)) <= self.T + 1
            counts["pairs" if fits else "too long"] += 1
            if fits:
                yield [(chosen.ids, chosen.labels), (rejected.ids, rejected.labels)]

    def __getitem__(self, index):
        entries = self._entries(index)
        reference = np.zeros((2, self.most_pairs), np.float32)
        if self.reference is not None and index != FILLER:
            reference = self.reference[index]
        return self._sample(index, entries[:, :2]), self._sample(index, entries[:, 2:]), reference, len(entries)


class Mixed:
    """Two data sets as one: the rows of the second follow those of the first."""

    def __init__(self, first, second):
        self.first, self.second = first, second
        self.T, self.fingerprint = first.T, f"{first.fingerprint}+{second.fingerprint}"
        self.fill = (first.fill * len(first) + second.fill * len(second)) / len(self)

    def __len__(self):
        return len(self.first) + len(self.second)

    def __getitem__(self, index):
        if index < len(self.first):  # FILLER too
            return self.first[index]
        return self.second[index - len(self.first)]._replace(row=index)


def split_rows(n, fraction, seed):
    """Row numbers 0 … n - 1 → (train, validation), `fraction` of them drawn by seed for validation."""
    order = np.random.default_rng(seed).permutation(n)
    held_out = int(n * fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
