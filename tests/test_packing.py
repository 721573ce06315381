"""Documents → rows: every id once, in order, nearly without padding."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import FILLER, collate
from model.bin_data import find_documents, tokenizer_of
from model.dataset import PretrainDataset, split_rows
from model.labels import IGNORE
from model.packing import best_fit, cut, pack

BOS, EOS = 1, 2


class Vocabulary:
    """As much of a tokenizer as PretrainDataset asks for."""

    vocab_size, bos_id, eos_id, hash, path = 1000, BOS, EOS, "abc", "somewhere"

    def check(self, expected, vocab_size, name):
        if expected not in (None, self.hash):
            raise ValueError(f"{name} was made with another tokenizer")


def write_documents(path, documents):
    np.array([i for d in documents for i in [BOS, *d, EOS]], dtype=np.uint16).tofile(path)
    return path


def random_documents(n, longest, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 1000, rng.integers(0, longest)).tolist() for _ in range(n)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(2, 40))
def test_every_id_is_in_exactly_one_piece_and_every_later_id_is_a_target_once(lengths, capacity):
    starts = np.cumsum([0, *lengths[:-1]])
    piece_starts, piece_lengths = cut(np.array(starts), np.array(lengths), capacity)
    assert piece_lengths.min() >= 1 and piece_lengths.max() <= capacity
    targets = Counter(i for s, n in zip(piece_starts, piece_lengths) for i in range(s + 1, s + n))
    expected = [i for s, n in zip(starts, lengths) for i in range(s + 1, s + n)]
    assert targets == Counter(expected)


def test_rows_in_order_follow_the_documents_and_are_still_full():
    lengths = np.random.default_rng(0).integers(5, 60, 30_000)
    starts = np.cumsum(lengths) - lengths
    rows = [np.split(s, np.cumsum(n)[:-1]) for s, _, n in pack(starts, lengths, 64, in_order=True)]
    places = np.searchsorted(starts, [row[0] for window in rows for row in window], side="right") - 1
    assert len(rows) > 10 and np.corrcoef(np.arange(len(places)), places)[0, 1] > 0.99
    within = places[: len(rows[0])]  # a few thousand documents come in no order, least of all by their length
    assert abs(np.corrcoef(np.arange(len(within)), lengths[within])[0, 1]) < 0.1
    assert sorted(np.concatenate([s for window in rows for s in window]).tolist()) == sorted(
        cut(starts, lengths, 64)[0].tolist()
    )
    assert lengths.sum() / (len(places) * 64) > 0.97


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=80))
def test_rows_hold_every_piece_once_and_never_overflow(lengths):
    order, rows = best_fit(np.array(lengths), 30)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    filled = np.bincount(rows, weights=np.array(lengths)[order])
    assert filled.max() <= 30 and filled.min() > 0
    assert sum(f <= 15 for f in filled) <= 1  # two half-empty rows would have become one


def test_packing_fills_more_than_95_percent_of_the_slots():
    lengths = np.random.default_rng(0).integers(10, 2000, 5000)
    starts = np.cumsum(np.concatenate([[0], lengths[:-1]]))
    rows = np.concatenate([sizes for *_, sizes in pack(starts, lengths, 513)])
    pieces = np.concatenate([n for _, n, _ in pack(starts, lengths, 513)])
    assert pieces.sum() / (len(rows) * 513) > 0.99


def test_targets_over_all_rows_are_the_documents_without_their_bos(tmp_path):
    documents = random_documents(200, 90)
    data = PretrainDataset(write_documents(tmp_path / "d.bin", documents), 31, Vocabulary(), tmp_path)
    batch = collate([data[i] for i in range(len(data))])
    scored = batch.labels[batch.labels != IGNORE]
    assert Counter(scored.tolist()) == Counter(i for d in documents for i in [*d, EOS])
    # each scored label is what follows its input inside one document
    follows = {pair for d in documents for pair in zip([BOS, *d], [*d, EOS])}
    at = batch.labels != IGNORE
    assert set(zip(batch.ids[at].tolist(), batch.labels[at].tolist())) <= follows


def test_padding_and_first_ids_are_never_scored(tmp_path):
    data = PretrainDataset(write_documents(tmp_path / "d.bin", random_documents(50, 20)), 31, Vocabulary(), tmp_path)
    batch = collate([data[i] for i in range(len(data))])
    assert (batch.labels != BOS).all()
    assert (batch.labels[batch.docs < 0] == IGNORE).all()
    assert batch.tokens == int((batch.docs >= 0).sum()) and batch.units == int((batch.labels != IGNORE).sum())


def test_filler_rows_score_nothing(tmp_path):
    data = PretrainDataset(write_documents(tmp_path / "d.bin", random_documents(50, 20)), 31, Vocabulary(), tmp_path)
    batch = collate([data[0], data[FILLER]])
    assert batch.real_rows == 1 and batch.units == collate([data[0]]).units
    assert (batch.labels[1] == IGNORE).all() and batch.ids.shape == (2, 31)


def test_short_documents_start_their_rows_with_bos(tmp_path):
    data = PretrainDataset(write_documents(tmp_path / "d.bin", random_documents(100, 25)), 31, Vocabulary(), tmp_path)
    assert all(data[i][1][0] == BOS for i in range(len(data)))


def test_a_bin_without_any_bos_is_one_document():
    starts, lengths = find_documents(np.arange(3, 90, dtype=np.uint16), BOS, 1000, "x.bin")
    assert starts.tolist() == [0] and lengths.tolist() == [87]


def test_shards_of_a_folder_give_the_rows_of_all_files(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    documents = random_documents(60, 40)
    for n in range(3):
        write_documents(folder / f"{n}.bin", documents[n * 20 : n * 20 + 20])
    write_documents(folder / "0_val.bin", [[999] * 5])
    data = PretrainDataset(folder, 31, Vocabulary(), tmp_path / "cache")
    labels = collate([data[i] for i in range(len(data))]).labels
    assert Counter(labels[labels != IGNORE].tolist()) == Counter(i for d in documents for i in [*d, EOS])


def test_the_table_of_rows_is_found_again_and_changes_with_the_data(tmp_path):
    path = write_documents(tmp_path / "d.bin", random_documents(50, 40))
    first = PretrainDataset(path, 31, Vocabulary(), tmp_path / "cache")
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()}
    again = PretrainDataset(path, 31, Vocabulary(), tmp_path / "cache")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()} == files
    assert first.fingerprint == again.fingerprint and (first[3][1] == again[3][1]).all()
    write_documents(path, random_documents(50, 40, seed=1))
    assert PretrainDataset(path, 31, Vocabulary(), tmp_path / "cache").fingerprint != first.fingerprint


def test_an_id_outside_the_vocabulary_is_named(tmp_path):
    path = write_documents(tmp_path / "d.bin", [[5, 6, 1500, 7]])
    with pytest.raises(ValueError, match=r"d.bin holds id 1500 at position 3.*vocab_size 1000"):
        PretrainDataset(path, 31, Vocabulary(), tmp_path)


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"abc", "3 bytes, an odd number")])
def test_a_file_that_is_no_bin_is_refused(tmp_path, content, words):
    (tmp_path / "d.bin").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        PretrainDataset(tmp_path / "d.bin", 31, Vocabulary(), tmp_path)


def test_missing_data_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_process.py pretrain"):
        PretrainDataset(tmp_path / "none.bin", 31, Vocabulary(), tmp_path)
    with pytest.raises(FileNotFoundError, match="no .bin files"):
        PretrainDataset(tmp_path, 31, Vocabulary(), tmp_path)


def test_a_bin_of_another_tokenizer_is_refused(tmp_path):
    path = write_documents(tmp_path / "d.bin", [[5, 6]])
    (tmp_path / "d.json").write_text(json.dumps({"tokenizer_hash": "other"}), encoding="utf-8")
    with pytest.raises(ValueError, match="another tokenizer"):
        PretrainDataset(path, 31, Vocabulary(), tmp_path)


def test_the_sidecar_names_the_tokenizer_to_use(tmp_path, tokenizer_dir):
    path = write_documents(tmp_path / "d.bin", [[5, 6]])
    assert tokenizer_of(path) is None
    for folder, expected in ((str(tokenizer_dir), str(tokenizer_dir)), ("/gone", None)):
        (tmp_path / "d.json").write_text(json.dumps({"tokenizer": folder}), encoding="utf-8")
        assert tokenizer_of(path) == expected


def test_split_rows_is_a_partition():
    train, val = split_rows(1000, 0.03, seed=5)
    assert len(val) == 30 and sorted([*train, *val]) == list(range(1000))
    assert not np.array_equal(val, split_rows(1000, 0.03, seed=6)[1])


def test_reading_rows_does_not_load_the_file(tmp_path):
    path = tmp_path / "big.bin"
    documents = np.full((200_000, 500), 7, dtype=np.uint16)  # 200 MB
    documents[:, 0], documents[:, -1] = BOS, EOS
    documents.tofile(path)
    code = (
        "import sys, resource, torch; sys.path.insert(0, '.')\n"
        "from model.dataset import PretrainDataset; from tests.test_packing import Vocabulary\n"
        "def anonymous(): return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        f"before = anonymous(); data = PretrainDataset({str(path)!r}, 511, Vocabulary(), {str(tmp_path)!r})\n"
        "rows = [data[i][1].sum() for i in range(0, len(data), 50)]; print(anonymous() - before)\n"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 60_000, f"{grown} kB of private memory for a 200 MB file"
