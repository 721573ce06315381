"""Quality and domain scores: what scikit-learn says of the same n-grams, and what a formula says of made-up texts."""

import json
import math
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression

from cleaning.calibration import calibrate
from cleaning.cleaner import is_held_out, key_of
from cleaning.ngrams import buckets, excerpt, shares
from cleaning.quality import (
    QualitySettings,
    Sample,
    fit_calibrated,
    flat,
    label_of,
    match_lengths,
    read_classes,
    split,
    train,
)
from cleaning.quality_report import reliability, shares_of_kinds
from cleaning.readers import Drops
from cleaning.scorer import Scorer, load_scorer

GOOD, RAW, CODE = "山水日月金木火土天地人", "买卖钱快点加我微信您好火", "def return(x): = +\n\t"
ALPHABETS = {"nature": GOOD, "goods": RAW, "code": CODE}
SMALL = {"bits": 10, "longest": 2, "characters": 200}


def written(alphabet, number, seed=0, length=(20, 80)):
    """Texts of random characters of an alphabet."""
    rng = random.Random(f"{alphabet}{seed}")
    return ["".join(rng.choices(alphabet, k=rng.randint(*length))) for _ in range(number)]


def save(path, records):
    records = [r if isinstance(r, dict) else {"text": r} for r in records]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def sides(tmp_path):
    """The flags that name 400 good and 400 raw texts, which share some characters."""
    return {
        "good": [save(tmp_path / "good.jsonl", written(GOOD, 400))],
        "raw": [save(tmp_path / "raw.jsonl", written(RAW, 400))],
    }


def trained(tmp_path, name="q.npz", **flags):
    """(the report, the classifier, the path) of one run of the command with small settings."""
    cfg = QualitySettings(**{"output": str(tmp_path / name), "held_out": 0.25, **SMALL, **flags})
    return train(cfg), load_scorer(tmp_path / name), tmp_path / name


# --- what is seen of a text -------------------------------------------------------------------------------------------


def bucket_by_hand(gram, bits):
    """The hash of one n-gram in whole numbers of any size."""
    state = 0
    for character in gram:
        state = (state + ord(character) + 1) * 0x9E3779B1 % 2**32
        state ^= state >> 15
    return state * 0x85EBCA6B % 2**32 >> (32 - bits)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=5),
    st.integers(8, 16),
    st.integers(1, 4),
)
def test_every_n_gram_is_counted_once_in_its_bucket_and_none_runs_into_the_next_text(texts, bits, longest):
    numbers, lengths = buckets(texts, bits, longest)
    wanted = [
        [bucket_by_hand(text[i : i + n], bits) for n in range(1, longest + 1)]
        for text in (t.ljust(longest) for t in texts)
        for i in range(len(text) - longest + 1)
    ]
    assert numbers.tolist() == wanted
    assert lengths.tolist() == [max(len(t), longest) - longest + 1 for t in texts]
    found, row = shares(texts, bits, longest), 0
    for i, rows in enumerate(lengths):
        counts = Counter(b for grams in wanted[row : row + rows] for b in grams)
        assert found[i].indices.tolist() == sorted(counts)
        total = counts.total()
        assert found[i].data.tolist() == pytest.approx([math.sqrt(counts[b] / total) for b in sorted(counts)])
        row += rows


def test_a_text_has_the_same_n_grams_alone_and_among_many():
    texts = [*written(GOOD, 300), "", "a"]
    together = shares(texts, 16, 3)
    assert together.shape == (302, 1 << 16)
    for i in (0, 255, 256, 299, 300, 301):
        assert (together[i] != shares([texts[i]], 16, 3)).nnz == 0
    assert shares([], 16, 3).shape == (0, 1 << 16)


@given(st.text("ab 中。\n\t\u3000", max_size=80), st.integers(20, 60))
def test_an_excerpt_is_short_and_its_own_excerpt_and_knows_no_layout(text, characters):
    once = excerpt(text, characters)
    assert len(once) <= characters
    assert excerpt(once, characters) == once
    if len(text) <= characters // 3:
        spread = text.replace(" ", "\n \n").replace("中", " 中 ").replace("。", "。\n")
        assert excerpt(spread, 10**6) == once


def test_a_long_text_is_judged_by_its_beginning_and_its_middle():
    text = "".join(chr(0x4E00 + i) for i in range(10_000))
    assert excerpt(text, 100) == text[:50] + text[4975 : 4975 + 49]
    assert excerpt(text[:101], 100) == text[:50] + text[50:99]


# --- against scikit-learn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alphabets", [(RAW, GOOD), (RAW, GOOD, CODE)], ids=["two classes", "three classes"])
def test_probabilities_are_those_of_scikit_learn(alphabets):
    classes = [written(a, 60) for a in alphabets]
    numbers = np.repeat(np.arange(len(classes)), 60)
    texts = [excerpt(t, 200) for own in classes for t in own]
    model = LogisticRegression(C=10).fit(shares(texts, 10, 2), numbers)
    about = {"kind": "quality", "labels": list(alphabets), "settings": SMALL}
    scorer = Scorer(model.coef_.T.astype(np.float32), model.intercept_, about)
    new = [t for a in alphabets for t in written(a, 40, seed=1)] + ["", "火", "def 山"]
    wanted = model.predict_proba(shares([excerpt(t, 200) for t in new], 10, 2))
    assert np.abs(scorer.probabilities(new) - wanted).max() < 1e-6
    assert (scorer.labels(new) == wanted.argmax(axis=1)).all()
    assert 0.1 < wanted[-3:].max() < 0.999  # not only sure ones
    if len(alphabets) == 2:
        scores = scorer.scores(new)
        assert scores.dtype == np.float32 and np.abs(scores - wanted[:, 1]).max() < 1e-6
        assert scorer.scores([]).shape == (0,)


@pytest.mark.filterwarnings("ignore:Since FrozenEstimator")  # it has nothing left to learn from the weights
def test_two_classes_are_calibrated_as_scikit_learn_calibrates_them():
    calibration, frozen = pytest.importorskip("sklearn.calibration"), pytest.importorskip("sklearn.frozen")
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(500, 1)), rng.uniform(0.5, 2, 500)
    numbers = (rng.uniform(size=500) < 1 / (1 + np.exp(-2 * x[:, 0] - 1))).astype(int)
    model = LogisticRegression(C=100).fit(np.hstack([x, rng.normal(size=(500, 1))])[:40], numbers[:40])
    x = np.hstack([x, rng.normal(size=(500, 1))])
    theirs = calibration.CalibratedClassifierCV(frozen.FrozenEstimator(model), method="sigmoid", cv=2, ensemble=False)
    theirs.fit(x, numbers, sample_weight=weights)
    logits = model.decision_function(x)
    scale, shifts = calibrate(logits[:, None], numbers, weights)
    assert 1 / (1 + np.exp(-scale * logits - shifts[0])) == pytest.approx(theirs.predict_proba(x)[:, 1], abs=1e-4)


def test_three_classes_that_are_three_times_too_sure_are_brought_back():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], size=20_000)
    numbers = (rng.uniform(size=(len(p), 1)) > p.cumsum(axis=1)).sum(axis=1)
    scale, shifts = calibrate(3 * np.log(p), numbers, np.ones(len(p)))
    assert scale == pytest.approx(1 / 3, rel=0.03)
    assert shifts - shifts.mean() == pytest.approx([0, 0, 0], abs=0.05)


def test_a_classifier_that_is_worse_than_chance_is_silenced_not_turned_round():
    scale, shifts = calibrate(np.repeat([[-1.0], [1.0]], 50, axis=0), np.repeat([1, 0], 50), np.ones(100))
    assert scale == 0 and shifts == pytest.approx([0], abs=1e-5)


def test_perfectly_told_classes_keep_a_finite_scale():
    scale, _ = calibrate(np.repeat([[-1.0], [1.0]], 50, axis=0), np.repeat([0, 1], 50), np.ones(100))
    assert scale == pytest.approx(math.log(51), rel=1e-3)  # Platt: (50 + 1) / (50 + 2) is asked for


# --- on texts whose probability is known ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    """What comes of 3,000 labelled texts of 30 tosses, "甲" with chance 0.6 in good ones and 0.4 in raw ones."""
    folder, rng = tmp_path_factory.mktemp("coins"), random.Random(0)
    records = []
    for _ in range(3000):
        label = rng.randint(0, 1)
        text = "".join(rng.choices("甲乙", [0.4 + 0.2 * label, 0.6 - 0.2 * label], k=30))
        records.append({"text": text, "label": label})
    return trained(folder, labelled=[save(folder / "a.jsonl", records)], longest=1, C=1000)


def test_probabilities_are_those_of_the_formula(coins):
    _, scorer, _ = coins
    texts = ["甲" * k + "乙" * (30 - k) for k in range(8, 23)]
    wanted = [1 / (1 + 1.5 ** (30 - 2 * k)) for k in range(8, 23)]  # Bayes: each 甲 is a factor 0.6 / 0.4
    assert np.abs(scorer.scores(texts) - wanted).max() < 0.07


def test_the_brier_score_is_that_of_someone_who_knows_the_chances(coins):
    """sum over k of P(k heads) · p(1 - p), p the chance of good given k heads, is the least that can be reached."""
    least = 0.0
    for k in range(31):
        good, raw = (math.comb(30, k) * h**k * (1 - h) ** (30 - k) / 2 for h in (0.6, 0.4))
        least += good * raw / (good + raw)
    assert coins[0]["brier"] == pytest.approx(least, abs=0.02)


def test_what_is_said_happens_as_often_as_it_is_said(coins):
    report, _, _ = coins
    rows = [row for row in report["reliability"] if row["documents"] >= 30]
    assert len(rows) >= 6
    for row in rows:  # three standard errors of a share
        assert abs(row["said"] - row["happened"]) < 3 * math.sqrt(0.25 / row["documents"])
    assert (
        sum(row["documents"] for row in report["reliability"])
        == report["documents"]["good"]["test"] + (report["documents"]["raw"]["test"])
    )


def test_calibrating_a_calibrated_classifier_changes_nothing(tmp_path):
    """Here it had much to change: lengths matched for training only, and one class ten times as frequent."""
    records = [{"text": t, "label": 0} for t in written(GOOD * 2 + RAW, 900, length=(3, 60))]
    records += [{"text": t, "label": 1} for t in written(GOOD + RAW * 2, 90, length=(1, 9))]
    cfg = QualitySettings(labelled=[save(tmp_path / "a.jsonl", records)], held_out=0.3, C=0.1, **SMALL)
    kind, samples = read_classes(cfg, Drops())
    parts = split(samples, cfg, Drops())
    scorer = fit_calibrated(parts, kind, list(samples), False, cfg)
    assert abs(scorer.about["calibration"]["scale"] - 1) > 0.2 and abs(scorer.about["calibration"]["shifts"][0]) > 0.2
    texts, numbers, weights = flat([[e.text for e in own] for own in parts["calibrate"]], False)
    scale, shifts = calibrate(scorer.logits(texts), numbers, weights)
    assert (scale, shifts[0]) == (pytest.approx(1, abs=1e-3), pytest.approx(0, abs=1e-3))


def test_length_tells_nothing_when_lengths_are_matched(tmp_path):
    flags = {
        "good": [save(tmp_path / "good.jsonl", written(GOOD, 500, length=(60, 120)))],
        "raw": [save(tmp_path / "raw.jsonl", written(GOOD, 500, seed=1, length=(20, 70)))],
    }
    plain, matched = (trained(tmp_path, **flags, match_lengths=m)[0] for m in (False, True))
    assert plain["cues"]["length"]["auc_alone"] > 0.95 and plain["auc"] > 0.9
    assert matched["auc"] < 0.6


def test_matched_texts_are_as_long_as_the_shortest_of_their_rank():
    cut = match_lengths([["a" * n for n in range(100, 301)], ["b" * n for n in range(50, 452, 2)]])
    lengths = [np.array([len(text) for text in own]) for own in cut]
    assert np.abs(lengths[0] - np.minimum(np.arange(100, 301), np.arange(50, 452, 2))).max() <= 2
    assert np.abs(lengths[0] - lengths[1]).max() <= 2


# --- the report -------------------------------------------------------------------------------------------------------


def test_auc_is_the_chance_that_a_good_text_is_scored_above_a_raw_one(tmp_path):
    mixed = {
        "good": [save(tmp_path / "good.jsonl", written(GOOD * 2 + RAW, 300, length=(1, 12)))],
        "raw": [save(tmp_path / "raw.jsonl", written(GOOD + RAW * 2, 300, length=(1, 12)))],
    }
    report, scorer, _ = trained(tmp_path, **mixed, match_lengths=False)
    tested = {}
    for side, name in (("good", "good.jsonl"), ("raw", "raw.jsonl")):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        other = "raw.jsonl" if side == "good" else "good.jsonl"
        both = {json.loads(line)["text"] for line in lines} - {
            json.loads(line)["text"] for line in (tmp_path / other).read_text(encoding="utf-8").splitlines()
        }
        tested[side] = scorer.scores([t for t in both if is_held_out(key_of(t), 0, 0.25)])
    good, raw = tested["good"][:, None], tested["raw"][None, :]
    assert report["documents"]["good"]["test"] == len(good) > 20
    assert report["auc"] == pytest.approx(((good > raw) + (good == raw) / 2).mean(), abs=1e-4)
    assert 0.6 < report["auc"] < 0.99
    kept = {row["min_quality"]: row for row in report["kept_at"]}
    assert kept[0.5]["good"] == pytest.approx((tested["good"] >= 0.5).mean())
    assert kept[0.5]["raw"] == pytest.approx((tested["raw"] >= 0.5).mean())


def test_reliability_is_the_table_made_by_hand():
    said = np.array([0.05, 0.07, 0.55, 0.59, 1.0])
    rows = reliability(said, np.array([False, True, True, True, True]), np.array([1.0, 3.0, 1.0, 1.0, 2.0]))
    assert [(row["from"], row["documents"], row["happened"]) for row in rows] == [
        (0, 2, 0.75),
        (0.5, 2, 1),
        (0.9, 1, 1),
    ]
    assert [row["said"] for row in rows] == pytest.approx([0.065, 0.57, 1.0])


def test_the_lists_are_the_ten_texts_on_either_side_of_the_threshold(tmp_path, sides):
    report, scorer, _ = trained(tmp_path, **sides)
    for name, ordered in (("best", -1), ("just_above", 1), ("just_below", -1), ("worst", 1)):
        scores = [row["score"] for row in report[name]]
        assert len(scores) == 10 and scores == sorted(scores, key=lambda s: ordered * s)
        for row in report[name]:
            path, line = row["place"].rsplit(":", 1)
            with open(path, encoding="utf-8") as file:
                text = json.loads(file.readlines()[int(line) - 1])["text"]
            assert row["text"] == excerpt(text, 200)[:120]
            assert row["score"] == pytest.approx(scorer.scores([text])[0], abs=1e-5)
    assert min(r["score"] for r in report["just_above"]) >= 0.5 > max(r["score"] for r in report["just_below"])
    assert json.loads((tmp_path / "q.json").read_text(encoding="utf-8")) == report


def test_what_speaks_for_a_side_are_its_own_characters(tmp_path, sides):
    report, _, _ = trained(tmp_path, **sides, longest=1)
    assert set("".join(report["speaks_for"]["good"])) == set(GOOD) - {"火"}
    assert set("".join(report["speaks_for"]["raw"])) == set(RAW) - {"火"}
    counted = shares_of_kinds("山a1，，")
    assert counted["length"] == 5 and counted["punctuation"] == 0.4 and counted["digits"] == 0.2


def test_domains_are_named_and_counted_in_a_confusion_table(tmp_path):
    files = {name: save(tmp_path / f"{i}.jsonl", written(a, 200)) for i, (name, a) in enumerate(ALPHABETS.items())}
    report, scorer, _ = trained(tmp_path, domains=[f"{name}={path}" for name, path in files.items()])
    assert scorer.names == sorted(ALPHABETS) and report["kind"] == "domains"
    new = [text for alphabet in ALPHABETS.values() for text in written(alphabet, 20, seed=1)]
    assert [scorer.names[i] for i in scorer.labels(new)] == [name for name in ALPHABETS for _ in range(20)]
    confusion = np.array(report["confusion"])
    assert confusion.sum(axis=1).tolist() == [report["documents"][name]["test"] for name in scorer.names]
    assert report["accuracy"] == 1 and (confusion == np.diag(confusion.diagonal())).all()
    assert scorer.probabilities(new).sum(axis=1) == pytest.approx(np.ones(60))
    with pytest.raises(ValueError, match="tells code, goods, nature apart and knows nothing of quality"):
        scorer.scores(new)


# --- which texts are learnt from --------------------------------------------------------------------------------------


def test_a_sample_is_bounded_and_independent_of_order_and_repetition():
    texts = [f"第{i}篇" for i in range(500)]
    shuffled = random.Random(0).sample(texts * 3, 1500)
    kept = []
    for order, seed in ((texts, 0), (shuffled, 0), (texts, 1)):
        sample = Sample(60, seed)
        for i, text in enumerate(order):
            sample.add(text, "a", i)
            assert len(sample.kept) <= 60
        assert sample.read == len(order)
        kept.append([e.text for e in sample.examples()])
    assert kept[0] == kept[1] != kept[2]
    assert len(set(kept[0])) == 60
    assert 100 < np.mean([texts.index(t) for t in kept[0]]) < 400  # from everywhere


def test_the_same_texts_and_seed_give_the_same_bytes_in_any_number_and_order_of_files(tmp_path, sides):
    _, first, path = trained(tmp_path, **sides, max_documents=200)
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    trained(tmp_path, **sides, max_documents=200)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    good = written(GOOD, 400)
    random.Random(0).shuffle(good)
    (tmp_path / "more").mkdir()
    parts = [save(tmp_path / "more" / f"{i}.jsonl", good[i::3]) for i in range(3)]
    _, split, _ = trained(tmp_path, "split.npz", good=parts, raw=sides["raw"], max_documents=200)
    _, other, _ = trained(tmp_path, "other.npz", **sides, max_documents=200, seed=1)
    assert (split.weights == first.weights).all() and (split.bias == first.bias).all()
    assert (other.weights != first.weights).any()


def test_the_texts_of_the_report_are_not_among_those_learnt_from(tmp_path, sides):
    report, _, _ = trained(tmp_path, **sides)
    for counts in report["documents"].values():
        assert counts["read"] == counts["train"] + counts["calibrate"] + counts["test"] == 400
        assert 60 < counts["test"] < 140 and 40 < counts["calibrate"] < 110
    held = [json.loads(line)["text"] for line in open(sides["good"][0], encoding="utf-8")]
    assert report["documents"]["good"]["test"] == sum(is_held_out(key_of(t), 0, 0.25) for t in held)


def test_a_text_of_both_sides_is_in_none_and_counted(tmp_path, sides):
    with open(sides["raw"][0], "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": " " + written(GOOD, 1)[0] + "\n"}) + "\n{oops\n")
    report, _, _ = trained(tmp_path, **sides)
    assert report["dropped"] == {"in more than one class": 2, "bad JSON": 1}
    assert sum(report["documents"]["good"][part] for part in ("train", "calibrate", "test")) == 399


def test_labels_in_a_file_are_numbers_or_names(tmp_path):
    for given_label, name in (
        (1, "1"),
        (True, "1"),
        (0.0, "0"),
        (" 代码 ", "代码"),
        ("", None),
        (2, None),
        (None, None),
    ):
        assert label_of(given_label) == name
    records = [{"text": t, "label": "代码"} for t in written(CODE, 100)]
    records += [{"text": t, "label": "知识"} for t in written(GOOD, 100)]
    report, scorer, _ = trained(tmp_path, labelled=[save(tmp_path / "a.jsonl", [*records, {"text": "a"}])])
    assert (report["kind"], scorer.names) == ("domains", ["代码", "知识"])
    assert report["dropped"] == {"no label": 1}
    assert scorer.labels(["山水日月金木", "def return(x)"]).tolist() == [1, 0]


# --- what is refused --------------------------------------------------------------------------------------------------

# (the flags, what the error says)
MISUSED = [
    ({}, "one of three ways"),
    ({"good": ["a.jsonl"]}, "--good PATH --raw PATH"),
    ({"good": ["a.jsonl"], "raw": ["b.jsonl"], "labelled": ["c.jsonl"]}, "one of three ways"),
    ({"domains": ["laws.jsonl"]}, "--domains laws.jsonl is not NAME=PATH"),
    ({"labelled": ["missing.jsonl"]}, "no file or folder at missing.jsonl"),
    ({"labelled": ["a.jsonl"], "bits": 30}, "--bits 30 must be from 8 to 24"),
    ({"labelled": ["a.jsonl"], "held_out": 0.0}, "--held_out 0.0 must be from 0.01 to 0.4"),
    ({"labelled": ["a.jsonl"], "C": float("nan")}, "--C nan must be"),
    ({"labelled": ["a.jsonl"], "output": "q.bin"}, "must be a file name that ends in .npz"),
]


@pytest.mark.parametrize("flags,told", MISUSED, ids=[m[1] for m in MISUSED])
def test_a_misused_flag_is_told_before_anything_is_read(tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told)):
        train(QualitySettings(**flags))
    assert not list(tmp_path.iterdir())


def test_too_few_texts_are_told_with_their_number_and_nothing_is_written(tmp_path):
    records = [{"text": t, "label": i % 2} for i, t in enumerate(written(GOOD, 4))]
    with pytest.raises(ValueError, match=r"class raw has 2 different text\(s\); none fell into the part to \w+"):
        trained(tmp_path, labelled=[save(tmp_path / "a.jsonl", records)])
    with pytest.raises(ValueError, match="two classes are needed; there are of 0 alone"):
        trained(tmp_path, labelled=[save(tmp_path / "a.jsonl", records[::2])])
    names = [{"text": t, "label": t} for t in written(GOOD, 200)]
    with pytest.raises(ValueError, match="after 100 others; is `label` a free text?"):
        trained(tmp_path, labelled=[save(tmp_path / "a.jsonl", names)])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_json_that_is_not_our_report_is_not_overwritten(tmp_path, sides):
    (tmp_path / "q.json").write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="holds something else; rename it"):
        trained(tmp_path, **sides)
    assert (tmp_path / "q.json").read_text(encoding="utf-8") == '{"mine": 1}'


def test_without_scikit_learn_the_requirements_file_is_named(tmp_path, sides, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"quality scores need scikit-learn .*pip install -r requirements-data.txt"):
        trained(tmp_path, **sides)
