"""Data statistics against direct counting on small data."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleaning import tally
from cleaning.histogram import ERROR, Histogram, bounds_of, buckets_of
from cleaning.pretrain import run
from cleaning.pretrain_settings import PretrainSettings
from cleaning.scripts import LANGUAGES, SCRIPTS, SIMPLIFIED, TRADITIONAL, languages_of, scripts_of
from cleaning.stats import StatsSettings, statistics, stats
from cleaning.tally import Domains
from cleaning.urls import domain_of
from model.chat import load_tokenizer
from tests.conftest import SENTENCES

PLACES = [{"url": "https://www.example.org/a?b"}, {"source": "wiki"}, {"meta": {"url": "http://Example.org:80"}}, {}]


def write_lines(file, records):
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def corpus(tmp_path):
    """Two files: 300 documents of 1 to 12 sentences with a few copies, and 5 lines of which one can be used."""
    rng = random.Random(3)
    texts = ["".join(rng.choices(SENTENCES, k=rng.randint(1, 12))) for _ in range(300)]
    write_lines(tmp_path / "raw/a.jsonl", [{"text": t} | PLACES[i % 4] for i, t in enumerate(texts)])
    write_lines(tmp_path / "raw/b.jsonl", ["{bad", {"text": "  "}, {"text": texts[0]}, {"text": None}, {"no": 1}])
    return tmp_path / "raw", [*texts, texts[0]]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_direct_counting(corpus, tokenizer_dir):
    folder, texts = corpus
    figures, drops = statistics([folder], load_tokenizer, tokenizer_dir, workers=0)
    total, ids = figures["total"], load_tokenizer(tokenizer_dir).encode_batch(texts)
    assert total["documents"] == 301 and total["characters"] == sum(map(len, texts))
    assert total["bytes"] == sum(len(t.encode()) for t in texts) and total["tokens"] == sum(map(len, ids))
    assert total["characters_per_token"] == sum(map(len, texts)) / sum(map(len, ids))
    assert total["bytes_per_token"] == total["bytes"] / total["tokens"]
    assert total["duplicates"] == len(texts) - len(set(texts)) > 0
    assert total["lengths"]["characters"]["mean"] == np.mean([len(t) for t in texts])
    assert total["lengths"]["tokens"]["longest"] == max(map(len, ids))
    assert dict(figures["domains"]) == {"example.org": 150, "wiki": 75}
    assert total["dropped"] == {"bad JSON": 1, "empty text": 1, "no text field": 1, "text is null": 1}
    assert drops.counts == total["dropped"] and "b.jsonl:2" in drops.first["empty text"]
    own = list(figures["files"].values())
    assert [f["documents"] for f in own] == [300, 1] and own[1]["duplicate_rate"] == 1.0
    assert [f["tokens"] for f in own] == [sum(map(len, ids[:300])), len(ids[300])]
    for key in ("scripts", "languages"):
        assert total[key] == {name: sum(f[key][name] for f in own) for name in total[key]}
    assert sum(total["scripts"].values()) == total["characters"] and sum(total["languages"].values()) == 301
    json.dumps(figures, allow_nan=False)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_figures(corpus, tokenizer_dir, monkeypatch):
    monkeypatch.setattr("cleaning.stats.BATCH", 3000)
    alone, drops = statistics([corpus[0]], load_tokenizer, tokenizer_dir, workers=0)
    shared, others = statistics([corpus[0]], load_tokenizer, tokenizer_dir, workers=2)
    assert json.dumps(alone) == json.dumps(shared) and drops.table() == others.table()


def test_the_size_of_batches_changes_nothing(corpus, monkeypatch):
    whole = statistics([corpus[0]])[0]
    monkeypatch.setattr("cleaning.stats.BATCH", 500)
    assert statistics([corpus[0]])[0] == whole
    assert whole["total"]["tokens"] is whole["total"]["characters_per_token"] is whole["tokenizer"] is None


def test_packed_files_have_the_figures_of_the_text_they_were_made_of(corpus, tokenizer_dir, tmp_path, monkeypatch):
    folder, texts = corpus
    output = tmp_path / "p.bin"
    files = [folder / "a.jsonl"]
    run(PretrainSettings(files, output, tokenizer_dir, val_fraction=0.0), load_tokenizer)
    known = statistics([output])[0]["total"]
    monkeypatch.setattr("cleaning.packed.IDS", 1000)  # documents lie across what is read at a time
    read = statistics([output], load_tokenizer, tokenizer_dir)[0]["total"]
    distinct = list(dict.fromkeys(texts))
    write_lines(tmp_path / "once.jsonl", [{"text": t} for t in distinct])
    raw = statistics([tmp_path / "once.jsonl"], load_tokenizer, tokenizer_dir)[0]["total"]
    assert read == raw and read["documents"] == len(distinct) and read["duplicates"] == 0
    for key in ("documents", "characters", "bytes", "tokens", "characters_per_token"):
        assert known[key] == read[key]  # from the description beside the .bin
    assert known["lengths"]["tokens"] == read["lengths"]["tokens"] and "scripts" not in known
    assert statistics([tmp_path / "p.bin", output.parent / "p.bin"])[0]["total"]["documents"] == len(distinct)


def test_packed_files_of_others_and_broken_ones(tmp_path, tokenizer_dir, corpus):
    (tmp_path / "bins").mkdir()
    np.array([1, 50, 51, 2, 1, 2, 1, 50, 51, 2, 1, 60], dtype="<u2").tofile(tmp_path / "bins/theirs.bin")
    total = statistics([tmp_path / "bins"])[0]["total"]
    assert (total["documents"], total["tokens"], total["duplicates"], total["characters"]) == (4, 5, 1, None)
    assert total["lengths"]["tokens"]["shortest"] == 0
    np.array([1, 9999, 2], dtype="<u2").tofile(tmp_path / "theirs.bin")
    with pytest.raises(ValueError, match="id 9999 is in the file"):
        statistics([tmp_path / "theirs.bin"], load_tokenizer, tokenizer_dir)
    (tmp_path / "theirs.bin").write_bytes(b"\1\0\2")
    with pytest.raises(ValueError, match="odd number of bytes"):
        statistics([tmp_path / "theirs.bin"])
    run(PretrainSettings([corpus[0] / "a.jsonl"], tmp_path / "p.bin", tokenizer_dir, val_fraction=0.0), load_tokenizer)
    about = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    (tmp_path / "p.json").write_text(json.dumps(about | {"tokenizer_hash": "other"}), encoding="utf-8")
    with pytest.raises(ValueError, match="made with another tokenizer"):
        statistics([tmp_path / "p.bin"], load_tokenizer, tokenizer_dir)
    with pytest.raises(ValueError, match="name a --tokenizer"):
        statistics([tmp_path / "p.bin", corpus[0]])


@pytest.mark.parametrize("text", ["", "\n\n", '{"text": "\\ud800"}\n', '{"text": " "}\n', "\0\0\n", "[[[[\n"])
def test_data_without_a_document_are_refused_with_what_they_are(tmp_path, text):
    file, output = tmp_path / "x.jsonl", tmp_path / "s.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"nothing to count in .*\n.*dropped: {1 + (text == chr(10) * 2)} in all"):
        stats(StatsSettings(input=[str(file)], output=str(output)), load_tokenizer)
    assert not output.exists()


def test_the_command_prints_and_writes_and_its_file_is_no_data(corpus, tokenizer_dir, tmp_path, capsys):
    output = corpus[0] / "figures.json"
    cfg = StatsSettings(input=[str(corpus[0])], tokenizer=str(tokenizer_dir), output=str(output), num_workers=0)
    stats(cfg, load_tokenizer)
    said, written = capsys.readouterr().out, output.read_bytes()
    for part in (
        "a.jsonl",
        "301",
        "length in tokens",
        "simplified Chinese",
        "example.org",
        "exact duplicates",
        "bad JSON",
    ):
        assert part in said, part
    assert json.loads(written)["format"] == "data statistics"
    stats(cfg, load_tokenizer)
    assert output.read_bytes() == written


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"input": []}, "name at least one"),
        ({"output": "x.txt"}, "must end in .json"),
        ({"num_workers": -1}, "--num_workers -1"),
        ({"output": "same.json", "input": ["same.json"]}, "one of the inputs"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        stats(StatsSettings(**{"input": ["x.jsonl"]} | flags), load_tokenizer)
    with pytest.raises(FileNotFoundError, match=r"no file at nowhere\.bin"):
        statistics(["nowhere.bin"])


def test_figures_never_overwrite_anything_else(tmp_path):
    file = write_lines(tmp_path / "data.json", [{"text": "x"}])
    with pytest.raises(ValueError, match="holds something else"):
        stats(StatsSettings(input=["x.jsonl"], output=str(file)), load_tokenizer)


# --- lengths ----------------------------------------------------------------------------------------------------------


@given(length=st.integers(0, 2**50))
def test_every_length_is_inside_its_bucket_which_is_narrow(length):
    low, high = bounds_of(int(buckets_of([length])[0]))
    assert low <= length <= high and (high - low) / 2 <= ERROR * low


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 10**7)), min_size=1, max_size=80),
    parts=st.integers(1, 5),
)
def test_percentiles_are_numpys_within_the_stated_error(lengths, parts):
    histogram = Histogram()
    for i in range(parts):
        part = Histogram()
        part.add(np.array(lengths[i::parts], dtype=np.int64))
        histogram.merge(part)
    told = histogram.summary()
    for q, value in [*((float(q), v) for q, v in told["percentiles"].items()), (50.0, told["median"])]:
        exact = int(np.percentile(lengths, q, method="inverted_cdf"))
        assert abs(value - exact) <= ERROR * exact
        assert value == exact or exact >= 128
    assert told["mean"] == pytest.approx(np.mean(lengths)) and sum(n for *_, n in told["histogram"]) == len(lengths)
    assert (told["shortest"], told["longest"]) == (min(lengths), max(lengths))
    for low, high, n in told["histogram"]:
        assert n == sum(low <= length <= high for length in lengths)


# --- scripts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(alphabet="天为爲國国aZＡ1９é한あ，。 \n😀𠀀", max_size=30), min_size=1, max_size=6))
def test_scripts_are_those_of_counting_by_hand(texts):
    members = ["天为爲國国𠀀", "aZＡ", "1９", "é한あ", "，。 \n😀"]
    counts, found = scripts_of(texts)
    assert counts.tolist() == [[sum(c in m for c in t) for m in members] for t in texts]
    assert found.tolist() == [[sum(c in "为国" for c in t), sum(c in "爲國" for c in t)] for t in texts]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("这个国家的历史很长。", "simplified Chinese"),
        ("這個國家的歷史很長。", "traditional Chinese"),
        ("山高水清。", "Chinese, either"),
        ("To be or not to be 是", "English"),
        ("3.14159 26535", "digits"),
        ("Здравствуйте", "other letters"),
        ("——！", "signs only"),
    ],
)
def test_a_document_has_the_language_of_most_of_its_letters(text, language):
    assert LANGUAGES[languages_of(*scripts_of([text]))[0]] == language
    assert len(SCRIPTS) == 5


def test_hints_are_characters_that_the_other_way_of_writing_does_not_have():
    opencc = pytest.importorskip("opencc")
    to_simplified, to_traditional = opencc.OpenCC("t2s"), opencc.OpenCC("s2t")
    for character in SIMPLIFIED:
        assert to_traditional.convert(character) != character and to_simplified.convert(character) == character
    for character in TRADITIONAL:
        assert to_simplified.convert(character) != character
    assert not set(SIMPLIFIED) & set(TRADITIONAL)


# --- origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "domain"),
    [
        ({"url": "HTTPS://user:secret@WWW.Example.org:8080/a#b"}, "example.org"),
        ({"url": "//cdn.example.org"}, "cdn.example.org"),
        ({"source": " 百科 "}, "百科"),
        ({"metadata": {"domain": "a.cn"}}, "a.cn"),
        ({"url": 3, "source": ""}, None),
        ({"meta": "text"}, None),
        ({"source": "x" * 500}, "x" * 80),
        ({"url": "http:///path"}, "http:///path"),
    ],
)
def test_the_origin_of_a_record(record, domain):
    assert domain_of(record) == domain


def test_origins_beyond_a_limit_are_forgotten_the_rarest_first_and_counted(monkeypatch):
    monkeypatch.setattr(tally, "MOST_DOMAINS", 10)
    domains = Domains()
    for i in range(40):
        domains.add({"source": "frequent"})
        domains.add({"source": f"rare {i}"})
    assert domains.counts["frequent"] == 40 and len(domains.counts) <= 10
    assert domains.counts.total() + domains.forgotten == 80 and math.isfinite(domains.forgotten)
