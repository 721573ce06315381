"""A corpus from raw files to a .bin: the same bytes whatever happens, and nothing lost that was there."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_process
from cleaning import formats, pretrain, units
from cleaning.binfile import remove_bin
from cleaning.files import DOWNLOADED
from cleaning.pieces import PieceEncoder
from cleaning.readers import Drops, read_records
from model.chat import load_tokenizer
from tests.corpora import files, sentences
from tests.test_data_process import run, save, texts_of

ROOT = Path(__file__).parent.parent


@pytest.fixture
def small_units(monkeypatch):
    """Units of a few kilobytes, so that little data make many parts."""
    monkeypatch.setattr(units, "UNIT", 4000)


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


# --- what is refused, and what is left alone --------------------------------------------------------------------------


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


def test_a_dry_run_shows_what_was_looked_for_and_found(tmp_path, tokenizer_dir, capsys):
    (tmp_path / "exam/val").mkdir(parents=True)
    question = "0,四大发明是指南针、造纸术、火药和印刷术,甲,乙,丙,丁,A\n"
    (tmp_path / "exam/val/a_val.csv").write_text(f"id,question,A,B,C,D,answer\n{question}", encoding="utf-8")
    (tmp_path / "words").write_text("赌场\ncasino\n甲乙\n丙丁\n", encoding="utf-8")
    texts = [
        "古人说，四大发明是：指南针、造纸术、火药和纸币",
        "去赌场，Casino，又去赌场",
        "甲乙丙丁，赌场 casino",
        "春" * 50 + "Casino" + "秋" * 40,
    ]
    save(tmp_path / "a.jsonl", texts)
    flags = ["--rules", "exam", "blocklist", "--exams", tmp_path / "exam", "--blocklist", tmp_path / "words"]
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags, "--dry_run")
    said = capsys.readouterr().out
    assert f"a.jsonl:1: contains an exam question (四大发明是指南针造纸术火药和): {texts[0]}" in said
    assert f"a.jsonl:4: blocked words (casino): …{'春' * 30}Casino{'秋' * 30}\n" in said
    assert f"a.jsonl:2: blocked words (赌场, casino): {texts[1]}" in said
    assert f"a.jsonl:3: blocked words (甲乙, 丙丁, 赌场, 1 more): {texts[2]}" in said


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


def test_a_million_spaces_are_encoded_as_the_tokenizer_does(tokenizer_dir):
    encoder = PieceEncoder(load_tokenizer(str(tokenizer_dir)))
    text = "表" + " " * 1_100_000 + "a"
    assert encoder.encode([text])[0].tolist() == encoder.tokenizer.encode(text)


def test_what_another_run_or_nobody_here_wrote_is_not_replaced(tmp_path, tokenizer_dir, capsys):
    save(tmp_path / "a.jsonl", sentences(60))
    (tmp_path / "own.bin").write_bytes(b"mine")
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0.3)
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "s", "--val_fraction", 0.3, "--shard_tokens", 1000)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.bin")}
    for output, flags, words in (
        ("own.bin", [], "own.bin would be overwritten and was not made here"),
        ("p", ["--shard_tokens", 1000], "p_val.bin would belong to .*p.bin too"),
        ("s.bin", [], "s_val.bin would belong to .*s too"),
        ("p_val.bin", [], "is the name of a part of .*p.bin"),
        ("s_anneal.bin", [], "is the name of a part of .*s.bin"),
    ):
        with pytest.raises(ValueError, match=words):
            run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / output, *flags)
    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*.bin")}
    capsys.readouterr()
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0)
    assert f"removed {tmp_path / 'p_val.bin'}, a part of what this run replaces" in capsys.readouterr().err


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
        (["--quality", "nowhere.npz", "--near_duplicates", "0.8"], "nowhere.npz"),
        (["--quality", "nowhere.npz"], "--quality has no effect without"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(tmp_path, tokenizer_dir, flags, words):
    save(tmp_path / "a.jsonl", sentences(3))
    with pytest.raises((ValueError, OSError), match=words):
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", *flags)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
