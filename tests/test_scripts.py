"""Each script end to end, as a person runs it: real processes, exit codes, files, and what bad use is told."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.multiple_choice import SCORINGS
from model.chat import ChatTokenizer
from tests.conftest import SENTENCES
from tests.warm import FRESH, ROOT, python
from trainer.checkpoint import load_file

SHAPE = "--dim 32 --n_layers 2 --n_heads 4 --n_kv_heads 2 --max_seq_len 32".split()
QUICK = "--device cpu --dtype float32 --compile off --num_workers 0 --log_interval 1 --save_interval 5".split()


def call(*words, code=0, world=1):
    """Runs `python words…` in warm processes and returns their output; fails on another exit code or a traceback."""
    return "".join(fine(said, ended_with, code) for ended_with, said in python(*words, world=world))


def call_fresh(*words, code=0):
    """The same in an interpreter of its own, as a person starts it."""
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, cwd=ROOT, env=FRESH, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return fine(done.stdout + done.stderr, done.returncode, code)


def fine(said, ended_with, code):
    assert ended_with == code, said
    assert "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer_dir):
    """A folder with t.bin and t_val.bin, made by data_process.py from numbered sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"{s}（{n}）" for n in range(60) for s in SENTENCES]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = folder / "t.bin"
    call("data_process.py", "pretrain", "--input", folder / "t.jsonl", "--output", out, "--tokenizer", tokenizer_dir)
    return folder


def pretrain(corpus, out_dir, *flags, code=0):
    return call(
        "1-pretrain.py", "--data_path", corpus / "t.bin", "--out_dir", out_dir, *SHAPE, *QUICK, *flags, code=code
    )


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """An out folder with a finished pretrain_32.pth."""
    out = tmp_path_factory.mktemp("out")
    pretrain(corpus, out, "--max_steps", 12, "--batch_size", 8, "--accumulation_steps", 2)
    return out


def weights(folder, name="pretrain_32.pth"):
    return torch.load(folder / name, weights_only=True)


def largest_difference(a, b):
    return max((a[k] - b[k]).abs().max().item() for k in a)


# ---- the chain -------------------------------------------------------------------------------------------------------
def test_raw_text_becomes_a_model_that_continues_text(trained, tmp_path):
    about = json.loads((trained / "pretrain_32.json").read_text(encoding="utf-8"))
    assert about["stage"] == "pretrain" and about["step"] == 12 and about["val_loss"] > 0
    (tmp_path / "prompts.txt").write_text("春天来了\n北京到上海", encoding="utf-8")
    arguments = ["--model", trained / "pretrain_32.pth", "--prompts", tmp_path / "prompts.txt", "--temperature", 0]
    first = call("2-eval.py", *arguments, "--out", tmp_path / "a.jsonl", "--max_new_tokens", 8)
    assert "春天来了" in first and "saved 2 answers" in first
    call("2-eval.py", "--out_dir", trained, *arguments[2:], "--out", tmp_path / "b.jsonl", "--max-new-tokens", 8)
    a, b = (Path(tmp_path, f).read_text(encoding="utf-8") for f in ("a.jsonl", "b.jsonl"))
    assert a == b and [json.loads(line)["prompt"] for line in a.splitlines()] == ["春天来了", "北京到上海"]


def test_raw_text_can_be_trained_on_directly(corpus, trained, tokenizer_dir, tmp_path):
    flags = ["--tokenizer", tokenizer_dir, "--max_steps", 2, "--batch_size", 4, "--accumulation_steps", 1]
    command = ["1-pretrain.py", "--data_path", corpus / "t.jsonl", "--out_dir", tmp_path, *SHAPE, *QUICK, *flags]
    assert "2/2" in call(*command)


def test_the_same_command_says_it_is_finished(corpus, trained):
    flags = ["--batch_size", 8, "--accumulation_steps", 2]
    assert "is finished: 12 of 12 steps" in pretrain(corpus, trained, "--max_steps", 12, *flags)


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    """A folder with nine questions to ask and two solved ones."""
    folder = tmp_path_factory.mktemp("exam")
    for split, count in (("val", 9), ("dev", 2)):
        (folder / split).mkdir()
        rows = "".join(f'{i},"第{i}题，\n选",一,二二,"三,三",4,{"ABCD"[i % 4]}\n' for i in range(count))
        (folder / split / f"sums_{split}.csv").write_text("id,question,A,B,C,D,answer\n" + rows, encoding="utf-8")
    return folder


def test_an_exam_is_taken_from_a_checkpoint(trained, exam, tmp_path):
    arguments = ["--data_dir", exam, "--scoring", "both", "--model", trained / "pretrain_32.pth"]
    said = call("ceval_eval.py", *arguments, "--results_dir", tmp_path / "r")
    summary = json.loads((tmp_path / "r" / "summary.json").read_text(encoding="utf-8"))
    assert summary["questions"] == 9 and list(summary["scorings"]) == list(SCORINGS)
    assert all(s["answered"] == 9 for s in summary["scorings"].values())
    assert len((tmp_path / "r" / "sums.csv").read_text(encoding="utf-8").splitlines()) == 10
    assert "95 % interval (Wilson)" in said and "guessing (p =" in said


def test_models_are_compared_with_what_they_write(trained, exam, tmp_path):
    models = [trained / "pretrain_32.pth", tmp_path / "pretrain_again.pth"]
    for suffix in (".pth", ".json"):
        shutil.copyfile(models[0].with_suffix(suffix), models[1].with_suffix(suffix))
    arguments = ["--data_dir", exam, "--scoring", "letter", "--shots", 1, "--compare", *models]
    said = call("ceval_eval.py", *arguments, "--results_dir", tmp_path / "r")
    found = json.loads((tmp_path / "r" / "comparison.json").read_text(encoding="utf-8"))
    assert [p["p_value"] for p in found["pairs"]] == [1.0, 1.0] and found["flipped"] == []
    first, second = found["samples"].values()
    assert first == second and "中国的首都是" in first and "no difference" in said
    assert "| prompt |" in (tmp_path / "r" / "samples.md").read_text(encoding="utf-8")
    assert {p.name for p in (tmp_path / "r").iterdir() if p.is_dir()} == {"pretrain_32", "pretrain_again"}


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--split", "test"], "it has dev, val"),
        (["--shots", -1], "--shots -1 must be 0 or more"),
        (["--rotations", 5], "1 to 4"),
        (["--compare", "one.pth"], "at least two models"),
        (["--scoring", "cloze", "--submit", "letter"], "--submit letter is not among"),
        (["--model", "absent.pth"], "no checkpoint at absent.pth"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_an_exam_that_cannot_be_taken_is_told_why(trained, exam, tmp_path, flags, said):
    command = ["ceval_eval.py", "--data_dir", exam, "--out_dir", trained, "--results_dir", tmp_path, *flags]
    assert said in call(*command, code=1)


# ---- several processes -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("moe", [[], ["--use_moe", "--router_bias_rate", 0.01]], ids=["dense", "moe"])
def test_two_ranks_end_where_one_process_ends(corpus, tmp_path, moe):
    # 42 rows in steps of 32 rows: the second step of each epoch is a partial window
    flags = ["--max_steps", 5, *moe]
    pretrain(corpus, tmp_path / "one", "--batch_size", 32, "--accumulation_steps", 1, *flags)
    command = ["1-pretrain.py", "--data_path", corpus / "t.bin", "--out_dir", tmp_path / "two", *SHAPE, *QUICK]
    command += ["--batch_size", 8, "--accumulation_steps", 2, *flags]
    if moe:
        call(*command, world=2)
    else:  # once as torchrun starts them
        call_fresh("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *command)
    name = "pretrain_32_moe.pth" if moe else "pretrain_32.pth"
    assert largest_difference(weights(tmp_path / "one", name), weights(tmp_path / "two", name)) < 1e-5
    logs = [tmp_path / w / name.replace(".pth", ".jsonl") for w in ("one", "two")]
    losses = [[json.loads(line).get("loss") for line in open(log, encoding="utf-8")] for log in logs]
    assert [x for x in losses[0] if x] == pytest.approx([x for x in losses[1] if x], abs=1e-5)


@pytest.mark.slow
def test_one_failing_rank_ends_all(corpus, tmp_path):
    np.array([1, 5, 400, 2] * 50, dtype=np.uint16).tofile(tmp_path / "bad.bin")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "1-pretrain.py"]
    tokenizer = json.loads((corpus / "t.json").read_text(encoding="utf-8"))["tokenizer"]
    command += ["--data_path", tmp_path / "bad.bin", "--tokenizer", tokenizer, "--out_dir", tmp_path, *SHAPE, *QUICK]
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=FRESH, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "holds id 400" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a launcher's processes are found in /proc")
def test_a_rank_that_is_killed_ends_all_within_a_minute_and_the_same_command_continues(corpus, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "1-pretrain.py"]
    command += ["--data_path", corpus / "t.bin", "--out_dir", tmp_path, *SHAPE, *QUICK, "--batch_size", 4]
    command += ["--accumulation_steps", 1, "--save_interval", 2, "--eval_interval", 0]
    words = [str(c) for c in (sys.executable, *command, "--max_steps", 100_000)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, cwd=ROOT, env=FRESH, **pipe)
    for line in process.stdout:
        if line.startswith("step 3/"):
            ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
            os.kill(int(ranks[-1]), signal.SIGKILL)
            break
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "SIGKILL" in said
    stopped = load_file(tmp_path / "pretrain_32_resume.pth")["progress"]["step"]
    assert stopped >= 2
    more = call(*command, "--max_steps", stopped + 2)
    assert f"from step {stopped}" in more


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_continues(corpus, tmp_path, number, code):
    command = [sys.executable, "1-pretrain.py", "--data_path", corpus / "t.bin", "--out_dir", tmp_path, *SHAPE, *QUICK]
    command += ["--max_steps", 100_000, "--save_interval", 100_000, "--batch_size", 8, "--accumulation_steps", 1]
    process = subprocess.Popen([str(c) for c in command], cwd=ROOT, env=FRESH, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.send_signal(number)
            break
    said = process.stdout.read()
    assert process.wait(timeout=30) == code
    stopped = int(re.search(r"stopped at step (\d+)", said)[1])
    more = pretrain(corpus, tmp_path, "--max_steps", stopped + 2, "--batch_size", 8, "--accumulation_steps", 1)
    assert f"from step {stopped}" in more and f"step {stopped + 1}/{stopped + 2}" in more


# ---- bad use: one clear line, exit code not 0, nothing lost ----------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dim", 100, "--n_heads", 16], "dim 100 is not a multiple of n_heads 16"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--device", "cuda:77"], "cuda"),
        (["--data_path", "nowhere.bin"], "no data at nowhere.bin"),
        (["--out_dir", "README.md/out"], "cannot write to out_dir README.md/out"),
        (["--tokenizer", "tests"], "no tokenizer.json in tests"),
        (["--tokenizer", "model/minimind_tokenizer"], "made with another tokenizer"),
        (["--init_from", "nowhere.pth"], "no checkpoint at nowhere.pth"),
        (["--dtype", "float16"], "float16 needs a CUDA device"),
        (["--vocab_size", 10], "only 10"),
    ],
)
def test_bad_use_of_pretraining_is_told_in_one_line(corpus, tmp_path, flags, words):
    said = pretrain(corpus, tmp_path, *flags, code=1)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]


def test_unknown_flags_are_told_with_code_2(corpus, tmp_path):
    assert "--epoch_count" in pretrain(corpus, tmp_path, "--epoch_count", 3, code=2)


def test_an_id_outside_the_vocabulary_and_an_empty_file_are_told(corpus, tmp_path, tokenizer_dir):
    np.array([1, 5, 400, 2] * 50, dtype=np.uint16).tofile(tmp_path / "bad.bin")
    (tmp_path / "empty.bin").touch()
    assert ChatTokenizer(tokenizer_dir).vocab_size == 320
    for name, words in (("bad", "holds id 400 at position 2"), ("empty", "is empty")):
        flags = ["--data_path", tmp_path / f"{name}.bin", "--tokenizer", tokenizer_dir]
        assert words in pretrain(corpus, tmp_path, *flags, code=1)


def test_a_truncated_or_foreign_checkpoint_is_told(trained, tmp_path):
    whole = (trained / "pretrain_32.pth").read_bytes()
    (tmp_path / "pretrain_32.pth").write_bytes(whole[: len(whole) // 2])
    assert "not a whole checkpoint" in call("2-eval.py", "--out_dir", tmp_path, code=1)
    assert "no checkpoint at" in call("2-eval.py", "--model", tmp_path / "x.pth", code=1)
    said = call("2-eval.py", "--model", trained / "pretrain_32.pth", "--temperature", -1, code=1)
    assert "--temperature is -1" in said


def test_a_truncated_resume_file_is_told_and_the_weights_are_kept(corpus, tmp_path):
    flags = ["--max_steps", 2, "--batch_size", 8, "--accumulation_steps", 1]
    pretrain(corpus, tmp_path, *flags)
    resume = tmp_path / "pretrain_32_resume.pth"
    resume.write_bytes(resume.read_bytes()[:1000])
    before = (tmp_path / "pretrain_32.pth").read_bytes()
    assert "pretrain_32_resume.pth is not a whole checkpoint" in pretrain(corpus, tmp_path, *flags, code=1)
    assert (tmp_path / "pretrain_32.pth").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounting a tmpfs needs root")
def test_a_disk_that_fills_up_during_a_save_keeps_the_one_before(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        flags = ["--max_steps", 6, "--batch_size", 8, "--accumulation_steps", 1, "--save_interval", 3]
        pretrain(corpus, disk, "--max_steps", 3, *flags[2:])
        before = {f.name: f.read_bytes() for f in disk.glob("*.pth")}
        room = int(
            subprocess.run(["df", "--output=avail", "-B1", str(disk)], capture_output=True, text=True).stdout.split()[1]
        )
        (disk / "ballast").write_bytes(b"x" * (room - 20_000))
        said = pretrain(corpus, disk, *flags, code=1)
        assert "No space left" in said or "MB free" in said
        assert {f.name: f.read_bytes() for f in disk.glob("*.pth")} == before
        (disk / "ballast").unlink()
        assert "continuing" in pretrain(corpus, disk, *flags)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_help_teaches():
    for script in ("1-pretrain.py", "2-eval.py", "data_process.py", "ceval_eval.py", "train_tokenizer.py"):
        assert "reads" in call_fresh(script, "--help")


def test_wandb_offline_writes_a_run(corpus, tmp_path):
    pretrain(corpus, tmp_path, "--max_steps", 2, "--batch_size", 8, "--accumulation_steps", 1, "--use_wandb")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
