"""Which texts of a corpus are used, how often and in what order: mixtures, scores, repeats, shards."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_process
from cleaning.quality import QualitySettings, train
from cleaning.selection import arranged, best_share, hashed, uses_in_mixture
from model.chat import load_tokenizer
from tests.corpora import sentences
from tests.test_data_process import run, save, texts_of


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


def test_a_text_of_which_the_better_scored_copy_is_a_repeat_stays(tmp_path, tokenizer_dir, scorer, monkeypatch):
    long = ["".join(sentences(60, seed)) for seed in range(3)]
    save(tmp_path / "a.jsonl", [*long, *("\u3000" * 8 + t for t in long)])
    length = lambda self, texts: np.array([len(t) for t in texts], np.float32)  # noqa: E731 the copy scores higher
    monkeypatch.setattr("cleaning.scorer.Scorer.scores", length)
    flags = ["--near_duplicates", 0.8, "--quality", scorer / "q.npz", "--val_fraction", 0]
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == long


def test_a_mixture_names_what_has_no_text(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", sentences(5))
    save(tmp_path / "b.jsonl", [" "])
    mix = ["--mix", f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1", "--tokenizer", str(tokenizer_dir)]
    with pytest.raises(ValueError, match=r"no usable text of .*b\.jsonl; leave it out"):
        data_process.main(["pretrain", *mix, "--output", str(tmp_path / "p.bin")])
