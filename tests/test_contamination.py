"""Exam questions in training data: what counts as found, that nothing else does, and what the command says."""

import gzip
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_process
from cleaning import grams
from cleaning.grams import codes_of, finders, normalised, rolling_hashes, runs_of
from evaluation import contamination
from evaluation.contamination import search
from evaluation.texts import Text
from model.chat import load_tokenizer
from tests.test_scripts import call
from trainer import args

QUESTION = "中国古代的四大发明分别是指南针、造纸术、火药和印刷术，它们影响了世界。"


def plain(text):
    """What is compared, character by character; a second writing of the rule."""
    kept = (
        c
        for c in unicodedata.normalize("NFKC", text).lower()
        if not c.isspace()
        and unicodedata.category(c) not in ("Cc", "Cf")
        and not unicodedata.category(c).startswith("P")
    )
    return "".join(kept)


def found_in(texts, wanted):
    """{run: number of the document} of the wanted runs in texts."""
    hits = {}
    search([Text(t, len(t.encode()), 1) for t in texts], finders(set(wanted)), "x", hits)
    return {run: hit.document for run, hit in hits.items()}


# ---- what is compared ------------------------------------------------------------------------------------------------
@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Z", "Cc", "Cf"]), max_size=40))
@settings(max_examples=500, deadline=None)
def test_normalised_text_is_the_rule_applied_character_by_character(text):
    marks = {"Mn", "Mc", "Me"}  # a mark behind punctuation may join the letter before it: the one difference
    if not any(unicodedata.category(c) in marks for c in unicodedata.normalize("NFKD", text)):
        assert normalised(text) == plain(text)


def test_width_case_space_and_punctuation_do_not_matter():
    assert normalised("Ｐｙｔｈｏｎ 3．１４：\n《ＡＢＣ》——「x」… \u3000\u200b") == "python314abcx"
    assert normalised("x＋y＝１ ①") == "x+y=11"  # signs of sums are no punctuation
    assert normalised("⑴㈠") == "1一"  # in NFKC they have brackets


@given(st.text("ab春天秋", max_size=60), st.integers(1, 20))
def test_equal_runs_and_no_others_have_equal_hashes(text, n):
    hashes = rolling_hashes(codes_of(text), n).tolist()
    runs = [text[i : i + n] for i in range(len(text) - n + 1)]
    assert len(hashes) == len(runs)
    powers = [pow(grams.BASE, n - i, 2**64) for i in range(n)]
    assert hashes == [sum(ord(c) * p for c, p in zip(run, powers)) % 2**64 for run in runs]


# ---- what is found ---------------------------------------------------------------------------------------------------
@given(st.lists(st.text("ab春", max_size=30), max_size=8), st.lists(st.text("ab春", max_size=9)), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_runs_are_found_where_python_finds_them(texts, questions, n):
    wanted = {run for q in questions for run in runs_of(q, n)}
    expected = {run: next(i for i, t in enumerate(texts) if run in t) for run in wanted if any(run in t for t in texts)}
    assert found_in(texts, wanted) == expected


def test_hashes_that_agree_by_chance_are_no_hits(monkeypatch):
    monkeypatch.setattr(grams, "rolling_hashes", lambda codes, n: np.zeros(max(0, len(codes) - n + 1), np.uint64))
    assert found_in(["春夏秋冬春"], ["夏秋", "冬夏"]) == {"夏秋": 0}


def test_thirteen_characters_are_found_and_twelve_are_not():
    runs = runs_of(normalised(QUESTION), 13)
    assert runs[0] == "中国古代的四大发明分别是指" and len(runs) == 19
    assert found_in([f"前文{runs[4]}后文"], runs) == {runs[4]: 0}
    assert found_in([f"前文{runs[4][:12]}后文{runs[4][1:]}后文"], runs) == {}
    assert found_in([runs[4][:6], runs[4][6:]], runs) == {}  # two documents are not one


def test_the_document_is_named_across_the_batches_that_are_searched_together(monkeypatch):
    monkeypatch.setattr(contamination, "BATCH", 100)
    texts = [f"第{i}篇文章里什么也没有" for i in range(50)]
    texts[37] += QUESTION
    assert set(found_in(texts, runs_of(normalised(QUESTION), 13)).values()) == {37}


# ---- the command -----------------------------------------------------------------------------------------------------
def write_exam(folder, questions):
    """An exam with one file per subject: {subject: [question]}."""
    (folder / "val").mkdir(parents=True)
    for subject, texts in questions.items():
        rows = "".join('{},"{}",甲,乙,丙,丁,A\n'.format(i, t.replace('"', '""')) for i, t in enumerate(texts))
        (folder / "val" / f"{subject}_val.csv").write_text("id,question,A,B,C,D,answer\n" + rows, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    questions = {
        "history": [QUESTION, "唐朝的都城长安在今天的哪一座城市？请选择正确的一项。"],
        "sums": ["3加5等于____。", "——？！", "一个数的平方等于它自己，这样的数一共有几个？"],
    }
    return write_exam(tmp_path_factory.mktemp("exam"), questions)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer_dir):
    """t.jsonl of 40 texts, and t.bin made of it; 12 holds a variant of the first question, 30 the short one."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"第{i}篇：春天来了，小河边的柳树发了芽。" for i in range(40)]
    texts[12] += "指南针 、造纸术\n、火药，和「印刷术」；它们影响了世界"
    texts[30] += "小明说３加 ５等于8"
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--output", str(folder / "t.bin"), "--tokenizer", str(tokenizer_dir), "--val_fraction", "0"]
    data_process.main(["pretrain", "--input", str(folder / "t.jsonl"), *flags])
    (folder / "t.txt.gz").write_bytes(gzip.compress("\n\n".join(texts).encode()))
    return folder


@pytest.mark.parametrize("name", ["t.jsonl", "t.bin", "t.txt.gz"])
def test_every_kind_of_training_data_gives_the_same_table(exam, corpus, tmp_path, capsys, name):
    contamination.main(["--exam", str(exam), "--data", str(corpus / name), "--output", str(tmp_path / "c.json")])
    said, c = capsys.readouterr().out, json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert (c["questions"], c["found"], c["share"]) == (4, 2, 0.5)
    assert (c["compared_whole"], c["without_a_character"]) == (1, 1)
    assert {s: (v["questions"], v["found"]) for s, v in c["subjects"].items()} == {"history": (2, 1), "sums": (2, 1)}
    assert c["interval_95"] == pytest.approx([0.1500, 0.8500], abs=1e-4)  # Wilson for 2 of 4
    assert [(h["subject"], h["id"], h["document"]) for h in c["hits"]] == [("history", "0", 12), ("sums", "0", 30)]
    assert c["hits"][0]["run"] == "指南针造纸术火药和印刷术它" and c["hits"][1]["run"] == "3加5等于"
    assert c["hits"][0]["found"] == 7 and c["hits"][0]["runs"] == 19
    assert c["data"][str(corpus / name)]["documents"] == 40
    assert "指南针造纸术火药和印刷术它" in said and "document 12" in said and "1 have none and are not counted" in said


def test_a_question_that_begins_inside_a_token_is_found_in_a_bin(exam, tokenizer_dir, tmp_path):
    assert len(load_tokenizer(tokenizer_dir).encode("而不")) == 1
    run = "不思则罔中国古代的四大发明"
    folder = write_exam(tmp_path / "e", {"x": [run]})
    (tmp_path / "t.txt").write_text(f"学而{run}", encoding="utf-8")
    flags = ["--output", str(tmp_path / "t.bin"), "--tokenizer", str(tokenizer_dir), "--val_fraction", "0"]
    data_process.main(["pretrain", "--input", str(tmp_path / "t.txt"), *flags])
    contamination.main(["--exam", str(folder), "--data", str(tmp_path / "t.bin"), "--output", str(tmp_path / "c.json")])
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["found"] == 1


def test_ten_hits_are_shown_and_all_are_written(tmp_path, capsys):
    questions = [f"{QUESTION}第{i}问" for i in range(15)]
    folder = write_exam(tmp_path / "e", {"x": questions})
    (tmp_path / "t.txt").write_text("\n\n".join(questions), encoding="utf-8")
    contamination.main(["--exam", str(folder), "--data", str(tmp_path / "t.txt"), "--output", str(tmp_path / "c.json")])
    assert capsys.readouterr().out.count("runs) in document 0 of") == 10
    assert len(json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["hits"]) == 15


def test_the_command_runs_as_the_readme_says(exam, corpus):
    said = call(
        "-m", "evaluation.contamination", "--exam", exam, "--data", corpus / "t.bin", corpus / "t.jsonl", "--n", 6
    )
    assert "total" in said and "50.0%" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere.bin"], "no data at nowhere.bin"),
        (["--data", "empty.txt"], "holds no text"),
        (["--data", "empty.bin"], "is empty"),
        (["--exam", "nowhere"], "no val/*.csv in nowhere"),
        (["--tokenizer", "model/minimind_tokenizer"], "made with another tokenizer"),
        (["--n", "0"], "--n 0"),
    ],
)
def test_wrong_use_is_told_in_one_line(exam, corpus, tmp_path, capsys, flags, words):
    for name in ("empty.txt", "empty.bin"):
        (tmp_path / name).touch()
    flags = [str(tmp_path / f) if f.startswith("empty") else f for f in flags]
    with pytest.raises(SystemExit) as stop:
        args.run(contamination.main, ["--exam", str(exam), "--data", str(corpus / "t.bin"), *flags])
    errors = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and len(errors) == 1 and words in errors[0]
