"""Near-duplicates: what is compared, how candidates are found, and who stays, against brute force over strings."""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleaning import minhash, near_duplicates
from cleaning.minhash import (
    FOUND,
    MAX_BANDS,
    NearDuplicates,
    band_keys,
    bands_and_rows,
    chance_found,
    check_near_duplicates,
)
from cleaning.near_duplicates import COMPARED, drop_mask
from cleaning.shingles import jaccard, shingle_hashes, shingle_set

USUAL = NearDuplicates()
WORDS = st.text("aB春 ，Ａ", max_size=14)


def plain(text):
    """What is compared, character by character; a second writing of the rule for what NFKC leaves in one piece."""
    kept = (c for c in text if unicodedata.category(c)[0] not in "PZ" and unicodedata.category(c) not in ("Cc", "Cf"))
    return "".join(unicodedata.normalize("NFKC", c).lower() for c in kept)


def grams(text, n):
    text = plain(text)
    return {text[i : i + n] for i in range(max(1, len(text) - n + 1))} - {""}


def similar(a, b, n=5):
    """Jaccard similarity by Python's sets of strings."""
    a, b = (x if isinstance(x, set) else grams(x, n) for x in (a, b))
    return len(a & b) / max(1, len(a | b))


def families(rng, count, size):
    """count × size texts of 40 to 200 characters: each family an original and copies with 0 to 8 characters changed."""
    letters, texts = [chr(0x4E00 + i) for i in range(400)], []
    for _ in range(count):
        original = rng.choice(letters, rng.integers(40, 200)).tolist()
        for _ in range(size):
            copy = list(original)
            for at in rng.integers(0, len(copy), rng.integers(0, 9)):
                copy[at] = str(rng.choice(letters))
            texts.append("".join(copy))
    return [texts[i] for i in rng.permutation(len(texts))]


def run(texts, scores=None, chosen=USUAL, **more):
    return drop_mask([band_keys(texts, chosen)], texts.__getitem__, chosen, scores, **more)


# ---- what is compared ------------------------------------------------------------------------------------------------
@given(st.lists(WORDS, max_size=5), st.integers(1, 7))
@settings(max_examples=80, deadline=None)
def test_runs_are_those_of_the_compared_characters(texts, n):
    hashes, starts = shingle_hashes(texts, n)
    sets = [set(hashes[a:b].tolist()) for a, b in zip(starts, starts[1:])]
    strings = [grams(text, n) for text in texts]
    assert [len(s) for s in sets] == [len(s) for s in strings]
    for i in range(len(texts)):
        for j in range(i):
            assert len(sets[i] & sets[j]) == len(strings[i] & strings[j])
            assert jaccard(shingle_set(texts[i], n), shingle_set(texts[j], n)) == pytest.approx(
                similar(texts[i], texts[j], n)
            )


def test_width_case_space_and_punctuation_do_not_matter():
    assert np.array_equal(shingle_set("Ｐｙｔｈｏｎ 3．１４：\n《春天来了》……", 5), shingle_set("python314春天来了", 5))
    assert not np.array_equal(shingle_set("x＋y＝１", 5), shingle_set("xy1", 5))  # signs of sums are no punctuation


def test_a_short_text_resembles_its_equal_and_no_longer_one():
    texts = ["春天", "春、天！", "春天来", "春天来了吗", "……", "", "——！"]
    keys = band_keys(texts, USUAL)
    assert (keys == 0).all(axis=1).tolist() == [False] * 4 + [True] * 3 and (keys[:4] > 0).all()
    drop, kept = run(texts)
    assert drop.tolist() == [False, True, False, False, False, False, False]
    assert kept.tolist() == [0, 0, 2, 3, 4, 5, 6]  # texts without a letter are never called near-duplicates


# ---- bands and rows --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7, 0.8, 0.9, 0.97, 1.0])
def test_bands_and_rows_find_the_threshold_with_as_many_rows_as_bands_allow(threshold):
    bands, rows = bands_and_rows(threshold)
    assert chance_found(threshold, bands, rows) >= FOUND and bands <= MAX_BANDS
    assert rows == 32 or chance_found(threshold, MAX_BANDS, rows + 1) < FOUND
    assert bands == 1 or chance_found(threshold, bands - 1, rows) < FOUND


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.8])
def test_the_s_curve_is_what_coins_give(similarity):
    agree = np.random.default_rng(0).random((20_000, 5, 4)) < similarity
    assert agree.all(axis=2).any(axis=1).mean() == pytest.approx(chance_found(similarity, 5, 4), abs=0.015)


@pytest.mark.parametrize(("length", "shared"), [(90, 60), (90, 70), (800, 600), (12, 9)])
def test_pairs_share_a_key_as_often_as_the_s_curve_says(length, shared):
    """With runs of one character a text is the set of its letters, so the Jaccard similarity is chosen at will."""
    chosen, rng, texts, pairs = NearDuplicates(shingle=1), np.random.default_rng(1), [], 800
    for _ in range(pairs):
        codes = 0x4E00 + rng.choice(20_000, 2 * length - shared, replace=False)
        texts += ["".join(map(chr, codes[:length])), "".join(map(chr, codes[length - shared :]))]
    keys = band_keys(texts, chosen)
    found = (keys[0::2] == keys[1::2]).any(axis=1).mean()
    expected = chance_found(shared / (2 * length - shared), *bands_and_rows(chosen.similarity))
    assert found == pytest.approx(expected, abs=4 * (0.25 / pairs) ** 0.5)


def test_keys_are_the_same_in_another_process_with_other_batches_and_without_vector_instructions(monkeypatch):
    texts = [*families(np.random.default_rng(2), 6, 3), "……", "春"]
    monkeypatch.setattr(minhash, "TOGETHER", 3)
    own = np.concatenate([band_keys(texts[:7], USUAL), band_keys(texts[7:], USUAL)])
    code = (
        "import sys; from cleaning.minhash import *\n"
        "texts = sys.stdin.buffer.read().decode('utf-8').split('\\n')\n"
        "print(band_keys(texts, NearDuplicates()).tolist())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "RENSA_FORCE_KERNEL": "scalar", "RAYON_NUM_THREADS": "3"}
    there = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(texts).encode(), env=env, capture_output=True, check=True
    )
    assert there.stdout.decode().strip() == str(own.tolist())


def test_keys_are_those_of_earlier_runs(tmp_path):
    """Parts made with another rensa must not be mixed with these: then this number changes too."""
    keys = band_keys(["春眠不觉晓，处处闻啼鸟。"], USUAL)
    assert keys.shape == (1, 23) and keys[0, 0] == 16628122574288899360
    keys = band_keys(["春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。"], USUAL)
    np.save(tmp_path / "keys.npy", keys)
    read = np.load(tmp_path / "keys.npy", mmap_mode="r")
    assert read.flags.f_contiguous and np.array_equal(read, keys)  # one band is one piece of the file


# ---- who stays -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threshold", [0.6, 0.8])
@pytest.mark.parametrize("scored", [False, True])
def test_who_goes_is_what_comparing_all_pairs_best_first_says(threshold, scored):
    rng, chosen = np.random.default_rng(3), NearDuplicates(similarity=threshold)
    texts = families(rng, 36, 5)
    scores = rng.integers(0, 4, len(texts)) / 3 if scored else None
    order = sorted(range(len(texts)), key=lambda i: (-scores[i] if scored else 0, i))
    staying, sets = [], [grams(text, 5) for text in texts]
    for i in order:
        if all(similar(sets[i], sets[j]) < threshold for j in staying):
            staying.append(i)
    drop, kept = run(texts, scores, chosen)
    assert np.flatnonzero(~drop).tolist() == sorted(staying)
    assert 20 < drop.sum() < 144  # some families keep together, some do not
    for i in np.flatnonzero(drop):
        assert not drop[kept[i]] and similar(texts[i], texts[kept[i]]) >= threshold
        assert order.index(kept[i]) < order.index(i)


def test_the_end_of_a_chain_stays():
    text = "".join(chr(0x4E00 + i) for i in range(100))
    a, b, c = text, "甲乙丙丁" + text[4:], "甲乙丙丁" + text[4:96] + "戊己庚辛"
    chosen = NearDuplicates(similarity=0.9)
    assert similar(a, b) > 0.9 and similar(b, c) > 0.9 > similar(a, c)
    assert run([a, b, c], chosen=chosen)[1].tolist() == [0, 0, 2]
    for scores in ([0, 1, 0], np.array([0, 1, 0], np.uint8), [False, True, False]):
        assert run([a, b, c], scores, chosen)[1].tolist() == [1, 1, 1]  # the best one resembles both


def test_parts_and_memory_change_nothing():
    texts = families(np.random.default_rng(4), 10, 4)
    keys, expected = band_keys(texts, USUAL), run(texts)[1].tolist()
    assert len(set(expected)) < len(texts)
    for cuts, memory in (([], 600), ([1], 1 << 20), ([20, 20, 21], 600), (list(range(40)), 1 << 20)):
        drop, kept = drop_mask(np.split(keys, cuts), texts.__getitem__, USUAL, memory=memory)
        assert kept.tolist() == expected and drop.tolist() == [k != i for i, k in enumerate(expected)]


def test_no_documents_are_no_error():
    for parts in ([], [np.zeros((0, 23), np.uint64)]):
        drop, kept = drop_mask(parts, None, USUAL)
        assert len(drop) == len(kept) == 0


@pytest.fixture
def compared(monkeypatch):
    """List that grows by one at each comparison of two texts."""
    calls = []
    monkeypatch.setattr(near_duplicates, "jaccard", lambda a, b: calls.append(1) or jaccard(a, b))
    return calls


def test_a_letter_sent_to_thousands_is_read_and_compared_once_each(compared):
    letter, reads = "尊敬的客户，您的订单已经发货，请注意查收。", []
    text_of = lambda i: reads.append(i) or letter  # noqa: E731
    keys = np.repeat(band_keys([letter], USUAL), 1000, axis=0)
    drop, kept = drop_mask(np.array_split(keys, 7), text_of, USUAL)
    assert drop.sum() == 999 and not kept.any()
    assert len(compared) == 999 and sorted(reads) == list(range(1000))


def test_thousands_of_different_texts_with_one_key_are_no_square(compared):
    texts = [f"第{i:09}号文件{i * 7919:012}" for i in range(150)]
    keys = band_keys(texts, NearDuplicates())
    keys[:, 0] = 5
    drop, _ = drop_mask([keys], texts.__getitem__, NearDuplicates())
    assert not drop.any() and len(compared) <= COMPARED * len(texts)
    keys[149] = keys[10]  # equal in all bands: found though its first bucket is full of others
    assert drop_mask([keys], [*texts[:149], texts[10]].__getitem__, NearDuplicates())[1][149] == 10


def test_progress_ends_at_the_number_of_documents():
    texts, done = families(np.random.default_rng(5), 5, 3), []
    run(texts, progress=done.append)
    assert sum(done) == len(texts)


# ---- what a person can get wrong -------------------------------------------------------------------------------------
def test_settings_out_of_range_and_wrong_scores_are_named():
    for wrong, words in (
        (NearDuplicates(similarity=0.1), "similarity is 0.1.*0.2 to 1"),
        (NearDuplicates(similarity=80), "similarity is 80"),
        (NearDuplicates(similarity=float("nan")), "similarity is nan"),
        (NearDuplicates(shingle=0), "shingle is 0.*1 to 64"),
    ):
        with pytest.raises(ValueError, match=words):
            check_near_duplicates(wrong)
    check_near_duplicates(USUAL)
    with pytest.raises(ValueError, match="2 documents need as many scores"):
        run(["春", "夏"], [1.0])
    with pytest.raises(ValueError, match="some are not numbers"):
        run(["春", "夏"], [1.0, float("nan")])


def test_a_missing_rensa_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ImportError, match="requirements-data.txt"):
        band_keys(["春"], USUAL)
