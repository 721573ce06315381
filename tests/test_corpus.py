"""A corpus from raw files to shards: the same bytes whatever happens, in the mixture and order that was asked for."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_process
from cleaning import formats, pretrain, units
from cleaning.binfile import remove_bin
from cleaning.files import DOWNLOADED
from cleaning.pieces import PieceEncoder
from cleaning.quality import QualitySettings, train
from cleaning.readers import Drops, read_records
from cleaning.selection import arranged, best_share, hashed, uses_in_mixture
from model.chat import load_tokenizer
from tests.test_data_process import run, save, texts_of

ROOT = Path(__file__).parent.parent
NOUNS, VERBS, PLACES = (
    "小明 老师 北京 孩子 天气 朋友".split(),
    "看见 喜欢 画出 买来 走过".split(),
    "河边 学校 山上 家里".split(),
)


def sentences(n, seed=0):
    """n different texts of several sentences."""
    rng = random.Random(seed)
    words = lambda: f"{rng.choice(NOUNS)}在{rng.choice(PLACES)}{rng.choice(VERBS)}了{rng.randint(1, 999)}只鸟。"  # noqa: E731
    return [f"{i}：" + "".join(words() for _ in range(rng.randint(2, 12))) for i in range(n)]


@pytest.fixture
def small_units(monkeypatch):
    """Units of a few kilobytes, so that little data make many parts."""
    monkeypatch.setattr(units, "UNIT", 4000)


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- units ------------------------------------------------------------------------------------------------------------

LINES = ['{"text": "天"}', '{"text": "a\\nb"}', "oops", "", " ", '{"text": "' + "长" * 40 + '"}', '{"no": 1}', "[1]"]


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=12),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=12, max_size=12),
    final=st.booleans(),
    unit=st.integers(1, 80),
    chunk=st.integers(1, 50),
    longest=st.sampled_from([60, 1 << 20]),
)
def test_a_file_in_units_is_the_file_as_a_whole(tmp_path_factory, lines, ends, final, unit, chunk, longest):
    path = tmp_path_factory.mktemp("units") / "a.jsonl"
    joined = "".join(line + end for line, end in zip(lines, ends))
    path.write_bytes((joined if final else joined.rstrip("\r\n")).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT", unit)
        patch.setattr(units, "MAX_RECORD", longest)
        patch.setattr(formats, "MAX_RECORD", longest)
        patch.setattr("cleaning.encodings.CHUNK", chunk)
        whole, parts = Drops(), Drops()
        expected = [(line, record["text"]) for line, record in read_records(path, whole) if "text" in record]
        without_text = sum("text" not in record for _, record in read_records(path, Drops()))
        found = [pair for unit in units.read_units([path]) for pair in unit.located(parts)]
    assert found == expected
    assert parts.counts - parts.counts.__class__({"no text field": without_text}) == whole.counts
    assert {k: v.split(": ")[0] for k, v in parts.first.items() if k != "no text field"} == {
        k: v.split(": ")[0] for k, v in whole.first.items()
    }


def test_what_cannot_be_read_is_named_and_the_rest_is_processed(tmp_path, tokenizer_dir, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    save(raw / "a.jsonl", sentences(5))
    (raw / "b.jsonl").symlink_to("nowhere.jsonl")
    (raw / "e.jsonl").symlink_to("nowhere_else.jsonl")
    (raw / "loop").symlink_to(raw)
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "d.jsonl", sentences(3, 9))
    (raw / "linked").symlink_to(tmp_path / "elsewhere")
    (raw / "notes.docx").write_bytes(b"")
    save(raw / "c.jsonl", sentences(2000, 1))
    (raw / "c.jsonl.gz").write_bytes(gzip.compress((raw / "c.jsonl").read_bytes())[:-2000])
    (raw / "c.jsonl").unlink()
    run(tokenizer_dir, raw, tmp_path / "p.bin", "--val_fraction", 0)
    said, noted = capsys.readouterr()
    assert "2  cannot be read" in said and "b.jsonl:0: No such file" in said
    assert "1  broken gzip file" in said
    for name in ("b.jsonl: cannot be read", "e.jsonl: cannot be read", "c.jsonl.gz: broken gzip file"):
        assert f"{raw}/{name}" in said.partition("WARNING: files that could not be read to their end")[2]
    assert f"{raw}/loop is not searched: it leads to a folder that was" in noted
    assert f"1 files in {raw} are of a kind that is not read, such as {raw}/notes.docx" in noted
    texts = texts_of(tmp_path / "p.bin", tokenizer_dir)
    assert len(texts) > 1000 and set(sentences(3, 9)) < set(texts)


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_one_two_and_four_workers_write_the_same_bytes(tmp_path, tokenizer_dir, small_units):
    save(tmp_path / "a.jsonl", [*sentences(400), *sentences(50), "oops"])
    (tmp_path / "b.csv").write_text("text\n" + "\n".join(sentences(100, 5)), encoding="utf-8")
    results = []
    for workers in (0, 1, 2, 4):
        out = tmp_path / f"out{workers}"
        more = ["--num_workers", workers, "--shard_tokens", 3000, "--order", "shuffle", "--near_duplicates", 0.8]
        run(tokenizer_dir, [tmp_path / "a.jsonl", tmp_path / "b.csv"], out / "p", *more)
        results.append(files(out))
    assert len(results[0]) > 8 and all(r == results[0] for r in results)


def test_a_run_killed_at_any_moment_and_started_again_ends_in_the_same_bytes(tmp_path, tokenizer_dir, monkeypatch):
    """SIGKILL at random moments; the parts that were finished are used, and no process stays behind."""
    save(tmp_path / "a.jsonl", sentences(4000))
    flags = ["--repeated_lines", "3", "--near_duplicates", "0.8", "--num_workers"]
    with monkeypatch.context() as patch:
        patch.setattr(units, "UNIT", 50_000)
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "whole/p.bin", *flags, 0)
    code = "import sys; import cleaning.units as u; u.UNIT = 50_000; import data_process as d; d.main(sys.argv[1:])"
    words = ["pretrain", "--input", tmp_path / "a.jsonl", "--output", tmp_path / "killed/p.bin"]
    command = [sys.executable, "-c", code, *words, "--tokenizer", tokenizer_dir, *flags, "1"]
    rng, parts = random.Random(3), tmp_path / "killed/p.bin.parts"
    for first_file in ("*_lines.npy", "*.npz"):
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        while process.poll() is None and len(list(parts.glob(first_file))) < rng.randint(1, 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()  # ends when the worker, which holds the pipe, is gone too
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "going on with the" in done.stdout and not parts.exists()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_parts_of_other_settings_or_files_are_not_used(tmp_path, tokenizer_dir, small_units, monkeypatch, capsys):
    save(tmp_path / "a.jsonl", sentences(300))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    def stopped(*more):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no room for"):
            patch.setattr("cleaning.pretrain.write_files", full_disk)
            run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *more)
        assert (tmp_path / "p.bin.parts").is_dir()
        return capsys.readouterr().out

    assert "the same command goes on" in stopped()
    assert "going on with the" in stopped()
    for change, words in (
        (["--seed", 1, "--order", "length"], "differs in --seed, --order"),
        ([], "differs in the input files"),
    ):
        if not change:
            save(tmp_path / "a.jsonl", sentences(301))
        with pytest.raises(ValueError, match=words):
            run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *change)
        assert any((tmp_path / "p.bin.parts").glob("*.npz"))
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--fresh", "--val_fraction", 0)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == sentences(301)
    assert not (tmp_path / "p.bin.parts").exists()


# --- mixtures, orders, shards -----------------------------------------------------------------------------------------


def test_a_mixture_stands_in_its_ratio_and_tells_how_often_texts_are_used(tmp_path, tokenizer_dir, capsys):
    save(tmp_path / "a.jsonl", sentences(600, 1))
    save(tmp_path / "b.jsonl", sentences(100, 2))
    mix = ["--mix", f"{tmp_path}/a.jsonl:3", f"{tmp_path}/b.jsonl:1", "--val_fraction", "0", "--tokenizer"]
    count = lambda own: sum(len(load_tokenizer(str(tokenizer_dir)).encode(t)) + 2 for t in own)  # noqa: E731
    for repeats in (1, 2):
        out = ["--output", str(tmp_path / "m.bin"), "--max_repeats", str(repeats)]
        data_process.main(["pretrain", *mix, str(tokenizer_dir), *out])
        texts = texts_of(tmp_path / "m.bin", tokenizer_dir)
        first, second = (set(sentences(n, s)) for n, s in ((600, 1), (100, 2)))
        share = count(t for t in texts if t in second) / count(texts)
        assert abs(share - 0.25) < 0.01
        assert max(map(texts.count, second)) == repeats and max(map(texts.count, first)) == 1
        about = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
        assert about["uses"][str(repeats)] >= 100
        for own, source, (name, mixed) in zip((first, second), about["sources"], about["mixed"].items()):
            used = [text for text in texts if text in own]
            assert mixed == {"documents": len(used), "tokens": count(used)}
            assert source["path"] == name and mixed.items() <= source.items()
    assert "texts used 2 times" in capsys.readouterr().out


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    repeats=st.floats(1, 5),
    seed=st.integers(0, 99),
)
def test_no_group_of_a_mixture_is_off_by_more_than_a_document_or_used_too_often(sizes, weights, repeats, seed):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    tokens, chance = rng.integers(1, 100, len(group)), rng.integers(0, 2**63, len(group), dtype=np.uint64)
    weights = weights[: len(sizes)]
    times = uses_in_mixture(group, tokens, chance, weights, repeats)
    totals = np.bincount(group, tokens * times, minlength=len(sizes))
    full = min(repeats * tokens[group == g].sum() / w for g, w in enumerate(weights))
    assert (np.abs(totals - full * np.array(weights)) <= tokens.max()).all()
    assert times.max() <= np.ceil(repeats)
    assert all(np.ptp(times[group == g]) <= 1 for g in range(len(sizes)))


def test_orders_are_what_they_say_and_lose_nothing():
    rng = np.random.default_rng(0)
    times, tokens, quality = rng.integers(0, 4, 500), rng.integers(1, 99, 500), rng.random(500)
    chance = hashed(np.arange(500, dtype=np.uint64), 7)
    orders = {o: arranged(o, times, tokens, quality, chance) for o in ("source", "shuffle", "length", "quality")}
    for order in orders.values():
        assert np.bincount(order, minlength=500).tolist() == times.tolist()
    assert (np.diff(orders["source"]) >= 0).all()
    assert (np.diff(tokens[orders["length"]]) >= 0).all() and (np.diff(quality[orders["quality"]]) >= 0).all()
    together = np.mean(np.diff(orders["shuffle"]) == 0)
    assert together < 0.02 and abs(np.corrcoef(np.arange(len(orders["shuffle"])), orders["shuffle"])[0, 1]) < 0.1
    other = arranged("shuffle", times, tokens, quality, hashed(np.arange(500, dtype=np.uint64), 8))
    assert (other != orders["shuffle"]).mean() > 0.9


def test_the_best_share_is_the_best(tmp_path):
    rng = np.random.default_rng(0)
    documents, tokens, quality = np.arange(200), rng.integers(1, 99, 200), rng.random(200)
    chosen = best_share(documents, tokens, quality, 0.3)
    assert quality[chosen].min() > quality[~chosen].max()
    assert 0 <= 0.3 * tokens.sum() - tokens[chosen].sum() < 99


def test_shards_hold_whole_documents_and_old_ones_go(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", sentences(200))
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "s", "--shard_tokens", 2000, "--val_fraction", 0.1)
    many = sorted((tmp_path / "s").glob("*.bin"))
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "s", "--shard_tokens", 9000, "--val_fraction", 0.1)
    shards = sorted((tmp_path / "s").glob("*.bin"))
    assert len(many) > len(shards) > 1 and len(list((tmp_path / "s").iterdir())) == 2 * len(shards)
    assert all(f.stat().st_size <= 2 * 9000 for f in shards)
    texts = [t for f in shards for t in texts_of(f, tokenizer_dir)]
    assert sorted([*texts, *texts_of(tmp_path / "s_val.bin", tokenizer_dir)]) == sorted(sentences(200))


def test_kinds_that_are_left_out_of_a_mixture_are_not_validated_on_and_the_others_are_shuffled(tmp_path, tokenizer_dir):
    rivers, digits = sentences(300, 11), [f"{i * 7919} {i * 104729}: " + "0123 9876 " * 9 for i in range(300)]
    save(tmp_path / "rivers.jsonl", rivers)
    save(tmp_path / "digits.jsonl", digits)
    kinds = [f"rivers={tmp_path}/rivers.jsonl", f"digits={tmp_path}/digits.jsonl"]
    train(QualitySettings(domains=kinds, output=f"{tmp_path}/d.npz"))
    save(tmp_path / "all.jsonl", [*digits, *rivers])
    for mix, kept in ((["rivers:1"], rivers), (["rivers:1", "digits:1"], [*rivers, *digits])):
        flags = ["--domains", tmp_path / "d.npz", "--val_fraction", 0.2, "--mix_domains", *mix]
        run(tokenizer_dir, tmp_path / "all.jsonl", tmp_path / "p.bin", *flags)
        texts, val = (texts_of(tmp_path / f"{name}.bin", tokenizer_dir) for name in ("p", "p_val"))
        assert set(texts) | set(val) <= set(kept) and val
    where = [text in set(rivers) for text in texts]
    assert sum(a != b for a, b in zip(where, where[1:])) > 20  # not one kind behind the other


@pytest.mark.parametrize("limit", [1, 30, 200])
def test_a_text_longer_than_a_shard_has_one_of_its_own_and_none_is_written_twice(tmp_path, tokenizer_dir, limit):
    texts = sentences(40)
    texts[7], texts[8], texts[30] = ("".join(sentences(60, seed)) for seed in (5, 6, 7))
    save(tmp_path / "a.jsonl", texts)
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "s", "--val_fraction", 0, "--shard_tokens", limit)
    shards = sorted((tmp_path / "s").glob("*.bin"))
    own = [texts_of(f, tokenizer_dir) for f in shards]
    assert [t for texts in own for t in texts] == texts
    for file, inside in zip(shards, own):
        about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        assert about["documents"] == len(inside) and 2 * about["tokens"] == file.stat().st_size
        assert about["tokens"] <= limit or len(inside) == 1


def test_a_second_process_does_not_touch_what_the_first_is_making(tmp_path, tokenizer_dir, monkeypatch):
    save(tmp_path / "a.jsonl", sentences(50))
    real, told = pretrain.select, []

    def meanwhile(*given):
        with pytest.raises(ValueError, match=r"another process is making .*p\.bin at this moment"):
            run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0, "--fresh")
        told.append(True)
        return real(*given)

    monkeypatch.setattr(pretrain, "select", meanwhile)
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0)
    assert told and texts_of(tmp_path / "p.bin", tokenizer_dir) == sentences(50)


def test_a_flag_typed_twice_counts_twice_and_questions_of_an_exam_are_no_text(tmp_path, tokenizer_dir, capsys):
    save(tmp_path / "a.jsonl", sentences(20))
    (tmp_path / "val.csv").write_text("id,question,A,B,C,D,answer\n0,几？,一,二,三,四,B\n", encoding="utf-8")
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--input", tmp_path / "val.csv", "--val_fraction", 0)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == sentences(20)
    assert "1  exam question" in capsys.readouterr().out


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A scorer that prefers texts about rivers to texts of digits."""
    folder = tmp_path_factory.mktemp("scorer")
    good, raw = sentences(150, 11), [f"{i * 7919} {i * 104729}: " + "0123 9876 " * 9 for i in range(150)]
    save(folder / "good.jsonl", good)
    save(folder / "raw.jsonl", raw)
    train(QualitySettings(good=[str(folder / "good.jsonl")], raw=[str(folder / "raw.jsonl")], output=f"{folder}/q.npz"))
    return folder


def test_scores_filter_order_and_put_the_best_aside(tmp_path, tokenizer_dir, scorer):
    mixed_up = [f"{i * 31} {i * 17} 55 " * 5 + sentences(60, 12)[i] * (i % 3) for i in range(60)]
    save(tmp_path / "a.jsonl", mixed_up)
    flags = ["--quality", scorer / "q.npz", "--val_fraction", 0]
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags, "--order", "quality", "--anneal", 0.2)
    rest, best = (texts_of(tmp_path / f"{n}.bin", tokenizer_dir) for n in ("p", "p_anneal"))
    from cleaning.scorer import load_scorer

    score = load_scorer(str(scorer / "q.npz")).scores
    assert sorted([*rest, *best]) == sorted(mixed_up) and score(best).min() >= score(rest).max()
    assert (np.diff(score(rest)) >= 0).all()
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags, "--min_quality", 0.5)
    kept = texts_of(tmp_path / "p.bin", tokenizer_dir)
    assert kept == [t for t in mixed_up if score([t])[0] >= 0.5] and 0 < len(kept) < 60
    assert not (tmp_path / "p_anneal.bin").exists()
    about = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert about["dropped"] == {"quality below 0.5": 60 - len(kept)}
    save(tmp_path / "b.jsonl", sentences(60))
    mix = ["--mix", f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1", "--anneal", "0.3", *map(str, flags)]
    data_process.main(["pretrain", *mix, "--tokenizer", str(tokenizer_dir), "--output", str(tmp_path / "m.bin")])
    about = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    for counted in (about["mixed"].values(), about["sources"]):  # what was put aside is in neither
        assert sum(own["documents"] for own in counted) == about["documents"]
        assert sum(own["tokens"] for own in counted) == about["tokens"]


def test_of_near_duplicates_the_best_stays_else_the_first(tmp_path, tokenizer_dir, scorer, capsys):
    texts = sentences(30, 4)
    long = "".join(sentences(40, 6))
    save(tmp_path / "a.jsonl", ["0123 9876 22 333 " + long, *texts, long])
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0, "--near_duplicates", 0.8)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == ["0123 9876 22 333 " + long, *texts]
    assert "1  near-duplicate" in capsys.readouterr().out
    flags = ["--near_duplicates", 0.8, "--quality", scorer / "q.npz", "--val_fraction", 0]
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == [*texts, long]


def test_lines_that_many_documents_share_are_left_out(tmp_path, tokenizer_dir, capsys):
    footer = "更多精彩内容请关注我们的官方网站，每天都有新的故事等着你"
    save(tmp_path / "a.jsonl", [f"{t}\n{footer}" for t in sentences(10)] + [footer])
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0, "--repeated_lines", 5)
    assert [t.strip() for t in texts_of(tmp_path / "p.bin", tokenizer_dir)] == sentences(10)
    said = capsys.readouterr().out
    assert "11  changed: repeated lines left out" in said and "1  nothing but repeated lines" in said


def test_rules_change_and_drop_what_they_say_and_are_recorded(tmp_path, tokenizer_dir, capsys):
    texts = [*sentences(20), "手机13812345678，请打电话。" + sentences(1, 3)[0], "短", "1 2 3 4 5 " * 30]
    save(tmp_path / "a.jsonl", texts)
    flags = ["--val_fraction", 0, "--rules", "pii", "length", "digits", "--min_characters", 10]
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
    written = texts_of(tmp_path / "p.bin", tokenizer_dir)
    assert written[:20] == texts[:20] and len(written) == 21
    assert "13812345678" not in written[20] and written[20].endswith(sentences(1, 3)[0])
    about = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert sum(about["dropped"].values()) == 2 and about["changed"] == {"pii": 1}
    assert about["settings"]["rules"] == ["pii", "length", "digits"]
    assert about["settings"]["limits"]["min_characters"] == 10
    said = capsys.readouterr().out
    assert "1  changed: pii" in said and "too short: under 10 characters" in said


def test_the_licence_that_a_download_has_noted_is_in_the_description(tmp_path, tokenizer_dir):
    (tmp_path / "set" / "data").mkdir(parents=True)
    save(tmp_path / "set" / "data" / "a.jsonl", sentences(5))
    licence = {"table": "CC BY-SA 4.0", "hub": None}
    note = json.dumps({"format": DOWNLOADED, "licence": licence})
    (tmp_path / "set" / "SOURCE.json").write_text(note, encoding="utf-8")
    save(tmp_path / "b.jsonl", sentences(5, 1))
    run(tokenizer_dir, [tmp_path / "set", tmp_path / "b.jsonl"], tmp_path / "p.bin", "--val_fraction", 0)
    sources = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["sources"]
    assert [s.get("licence") for s in sources] == [licence, None]


def test_a_dry_run_shows_ten_texts_a_rule_and_writes_nothing(tmp_path, tokenizer_dir, small_units, capsys):
    short = [f"短{i}" for i in range(40)]
    save(tmp_path / "a.jsonl", [t for pair in zip([t * 3 for t in sentences(40)], short) for t in pair])
    shown = []
    for workers in (0, 2):
        flags = ["--rules", "length", "pii", "--dry_run", "--num_workers", workers]
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
        shown.append(capsys.readouterr().out)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"] and shown[0] == shown[1]
    assert (
        "80 texts would meet" in shown[0] and "dropped 40 (50.00%)" in shown[0] and "40 texts would be left" in shown[0]
    )
    examples = [line for line in shown[0].splitlines() if "too short: under 50" in line]
    assert len(examples) == 10 and len(set(examples)) == 10


def test_the_description_tells_what_of_each_file_is_trained_on(tmp_path, tokenizer_dir):
    (tmp_path / "raw").mkdir()
    save(tmp_path / "raw" / "a.jsonl", sentences(70))
    save(tmp_path / "raw" / "b.jsonl", sentences(200))  # 70 of them are in the other file
    run(tokenizer_dir, tmp_path / "raw", tmp_path / "p.bin", "--val_fraction", 0.1)
    about = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    for name in ("documents", "tokens"):
        assert about[name] == sum(source[name] for source in about["sources"])
    assert about["sources"][0]["documents"] == sum(
        t in sentences(70) for t in texts_of(tmp_path / "p.bin", tokenizer_dir)
    )


def test_a_validation_part_that_is_half_removed_does_not_stop_the_next_run(tmp_path, tokenizer_dir, monkeypatch):
    save(tmp_path / "a.jsonl", sentences(60))
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0.3)

    def killed(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        remove_bin(tmp_path / "p_val.bin")
    assert (tmp_path / "p_val.bin").exists() and not (tmp_path / "p_val.json").exists()
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0)
    assert {f.name for f in tmp_path.iterdir()} == {"a.jsonl", "p.bin", "p.json"}


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", sentences(30))
    (tmp_path / "file").write_bytes(b"")
    for command, name in (("pretrain", "p.bin"), ("sft", "s.jsonl"), ("stats", "t.json")):
        words = ["--input", str(tmp_path / "a.jsonl"), "--tokenizer", str(tokenizer_dir)]
        with pytest.raises(OSError, match="cannot write to .*file.*; choose another --output"):
            data_process.main([command, *words, "--output", str(tmp_path / "file" / "folder" / name)])


def test_a_validation_part_that_was_not_made_here_is_left_alone(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", sentences(30))
    (tmp_path / "p_val.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"p_val\.bin would be overwritten"):
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin")
    assert (tmp_path / "p_val.bin").read_bytes() == b"mine"


def test_a_folder_in_the_place_of_the_parts_that_holds_something_else_is_left_alone(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", sentences(3))
    (tmp_path / "p.bin.parts").mkdir()
    (tmp_path / "p.bin.parts" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds something else"):
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin")
    assert (tmp_path / "p.bin.parts" / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_a_text_of_which_the_better_scored_copy_is_a_repeat_stays(tmp_path, tokenizer_dir, scorer, monkeypatch):
    long = ["".join(sentences(60, seed)) for seed in range(3)]
    save(tmp_path / "a.jsonl", [*long, *("\u3000" * 8 + t for t in long)])
    length = lambda self, texts: np.array([len(t) for t in texts], np.float32)  # noqa: E731 the copy scores higher
    monkeypatch.setattr("cleaning.scorer.Scorer.scores", length)
    flags = ["--near_duplicates", 0.8, "--quality", scorer / "q.npz", "--val_fraction", 0]
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == long


def test_raw_files_are_never_overwritten_by_shards_or_descriptions(tmp_path, tokenizer_dir, scorer):
    raw = json.dumps([{"text": t} for t in sentences(9)])
    for name, output, flags in (
        ("00000.json", "", ["--shard_tokens", 1000]),
        ("p_anneal.json", "p.bin", ["--quality", scorer / "q.npz", "--anneal", 0.1]),
    ):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(raw, encoding="utf-8")
        with pytest.raises(ValueError, match="holds"):
            run(tokenizer_dir, folder / name, folder / output, *flags)
        assert (folder / name).read_text(encoding="utf-8") == raw


def test_links_to_nothing_or_themselves_and_names_that_are_no_utf_8_cost_nothing_else(tmp_path, tokenizer_dir, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.json").symlink_to("nowhere.json")
    (raw / "l.jsonl").symlink_to("l.jsonl")
    name = Path(os.fsdecode(os.fsencode(raw) + b"/\xd6\xd0.jsonl"))
    save(name, sentences(5))
    run(tokenizer_dir, raw, tmp_path / "p.bin", "--val_fraction", 0)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == sentences(5)
    assert "2  cannot be read" in capsys.readouterr().out
    (source,) = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["sources"]
    assert source["path"] == str(name)


def test_an_output_inside_of_the_input_does_not_read_what_an_unfinished_run_has_left(
    tmp_path, tokenizer_dir, small_units, monkeypatch, capsys
):
    save(tmp_path / "a.jsonl", sentences(200))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cleaning.pretrain.select", stopped)
        run(tokenizer_dir, tmp_path, tmp_path / "p.bin", "--val_fraction", 0)
    run(tokenizer_dir, tmp_path, tmp_path / "p.bin", "--val_fraction", 0)
    assert "going on with the" in capsys.readouterr().out
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == sentences(200)


@pytest.mark.parametrize("flags", [[], ["--order", "shuffle"], ["--near_duplicates", "0.8"]])
def test_files_without_a_record_are_told_whatever_is_asked_for(tmp_path, tokenizer_dir, flags):
    (tmp_path / "a.csv").write_text("text\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no usable text"):
        run(tokenizer_dir, tmp_path / "a.csv", tmp_path / "p.bin", *flags)


def test_a_mixture_names_what_has_no_text(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", sentences(5))
    save(tmp_path / "b.jsonl", [" "])
    mix = ["--mix", f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1", "--tokenizer", str(tokenizer_dir)]
    with pytest.raises(ValueError, match=r"no usable text of .*b\.jsonl; leave it out"):
        data_process.main(["pretrain", *mix, "--output", str(tmp_path / "p.bin")])


def test_a_million_spaces_are_encoded_as_the_tokenizer_does(tokenizer_dir):
    encoder = PieceEncoder(load_tokenizer(str(tokenizer_dir)))
    text = "表" + " " * 1_100_000 + "a"
    assert encoder.encode([text])[0].tolist() == encoder.tokenizer.encode(text)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--min_quality", "nan", "--quality", "x"], "--min_quality nan is not a score"),
        (["--domains", "x"], "no effect without --mix_domains"),
        (["--rules", "webb"], "no rule webb; there are mojibake"),
        (["--min_characters", "5"], "limit of the rule length, which is not asked for"),
        (["--rules", "exam"], "needs the folder of an exam"),
        (["--dry_run"], "name them: --rules web"),
        (["--order", "quality"], "need scores: --quality"),
        (["--anneal", "1.5"], "--anneal 1.5 is not a share"),
        (["--mix", "a.jsonl:0"], "name the raw files"),
        (["--mix_domains", "a:1"], "needs to know the kinds"),
        (["--max_repeats", "2"], "no effect without --mix"),
        (["--shard_tokens", "100"], "it names a folder"),
        (["--near_duplicates", "0.1"], "it must be from 0.2 to 1"),
        (["--repeated_lines", "1"], "at least 2, or 0"),
        (["--num_workers", "-1"], "--num_workers -1"),
        (["--quality", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(tmp_path, tokenizer_dir, flags, words):
    save(tmp_path / "a.jsonl", sentences(3))
    with pytest.raises((ValueError, OSError), match=words):
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
