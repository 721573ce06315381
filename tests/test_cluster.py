"""Data work beyond one machine: whoever starts the tasks, they write what one machine writes."""

import dataclasses
import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("datatrove", reason="pip install -r requirements-cluster.txt")

from cleaning.minhash import NearDuplicates
from cleaning.pretrain_settings import PretrainSettings
from cleaning.scorer import Scorer, save_scorer
from cleaning.shingles import jaccard, shingle_set
from cluster import near, pretrain, steps
from tests.corpora import sentences
from tests.test_data_process import run as run_here
from tests.test_data_process import save, texts_of

ROOT = Path(__file__).parent.parent
FOOTER = "本站所有内容版权归原作者所有，未经许可不得以任何方式转载或摘编。"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Four files of 300 texts: some stand twice, some nearly, some have a footer, and some records are of no use."""
    folder, rng, texts = tmp_path_factory.mktemp("raw"), random.Random(0), sentences(230, 5)
    for i in range(30):
        texts.append(texts[7 * i] + ("\n" if i % 3 == 0 else ""))  # the space around a text makes no other text of it
    for i in range(30):
        long = "".join(sentences(230, 5)[5 * i : 5 * i + 3])
        texts += [long + "完", long.replace("鸟", "雀", i % 4)]  # from the same to less than similar
    texts += [f"{text}\n{FOOTER}" for text in sentences(10, 6)]
    rng.shuffle(texts)
    for number in range(3):
        save(folder / f"{number}.jsonl", texts[number * 80 : number * 80 + 80])
    (folder / "3.txt").write_text("\n\n".join(text.strip() for text in texts[240:]), encoding="utf-8")
    with open(folder / "1.jsonl", "ab") as file:
        file.write(b'oops\n{"no": 1}\n{"text": " "}\n')
    (folder / "4.jsonl").touch()
    return folder


def run(raw, output, tokenizer_dir, *more):
    """The command, in this process."""
    pretrain.main(["--input", str(raw), "--output", str(output), "--tokenizer", str(tokenizer_dir), *map(str, more)])


def written(output):
    """(ids of all shards end to end, ids of the validation part), as bytes."""
    shards, val = sorted(output.glob("*.bin")), output.with_name(output.name + "_val.bin")
    return b"".join(shard.read_bytes() for shard in shards), val.read_bytes() if val.is_file() else b""


def one_machine(raw, tmp_path, tokenizer_dir, *flags):
    """The same of what data_process.py pretrain writes."""
    run_here(tokenizer_dir, raw, tmp_path / "one.bin", *flags)
    return tuple((tmp_path / name).read_bytes() for name in ("one.bin", "one_val.bin"))


def dropped(path):
    return json.loads(path.read_text(encoding="utf-8"))["dropped"]


@pytest.mark.parametrize(
    "flags",
    [["--val_fraction", 0.1], ["--near_duplicates", 0.8, "--val_fraction", 0.05], ["--repeated_lines", 5, "--seed", 3]],
    ids=["exact", "near", "lines"],
)
def test_many_tasks_write_the_ids_of_one_machine_in_the_same_order(tmp_path, raw, tokenizer_dir, flags):
    run(raw, tmp_path / "many", tokenizer_dir, "--tasks", 3, "--workers", 1, *flags)
    assert written(tmp_path / "many") == one_machine(raw, tmp_path, tokenizer_dir, *flags)
    assert dropped(tmp_path / "many_val.json") == dropped(tmp_path / "one_val.json")
    about = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((tmp_path / "many").glob("*.json"))]
    assert len(about) == 3 and sum(own["dropped"]["duplicate"] for own in about) == 30
    assert sum(own["documents"] for own in about) == len(texts_of(tmp_path / "one.bin", tokenizer_dir))
    assert {p.name for p in (tmp_path / "many.parts").iterdir()} >= {"logs", "job.json"}
    assert not (tmp_path / "many.parts" / "parts").exists() and not (tmp_path / "many.parts" / "bin").exists()


def test_of_near_duplicates_the_best_stays_as_on_one_machine(tmp_path, raw, tokenizer_dir):
    about = {"kind": "quality", "labels": ["raw", "good"], "settings": {"bits": 10, "longest": 3, "characters": 200}}
    rng, scorer = np.random.default_rng(0), str(tmp_path / "quality.npz")
    save_scorer(scorer, Scorer(rng.normal(size=(1 << 10, 1)).astype(np.float32), np.zeros(1), about))
    flags = ["--near_duplicates", 0.7, "--quality", scorer, "--min_quality", 0.33, "--val_fraction", 0.05]
    run(raw, tmp_path / "many", tokenizer_dir, "--tasks", 2, "--workers", 1, *flags)
    assert written(tmp_path / "many") == one_machine(raw, tmp_path, tokenizer_dir, *flags)
    left_out = dropped(tmp_path / "many_val.json")
    assert left_out["near-duplicate"] > 9 and left_out["quality below 0.33"] > 5


def test_of_a_chain_of_near_duplicates_one_stays_where_one_machine_keeps_its_ends(tmp_path, tokenizer_dir):
    # 200 different characters: b is like a, c is like b, and c is not like a
    a = "".join(chr(0x4E00 + 7 * i) for i in range(200))
    b, c = "天" + a[18:], "天地" + a[36:]
    likeness = [jaccard(shingle_set(x, 5), shingle_set(y, 5)) for x, y in ((a, b), (b, c), (a, c))]
    assert min(likeness[:2]) > 0.85 and likeness[2] < 0.85
    save(tmp_path / "raw.jsonl", [a, b, c, "别的一段话，和它们都不一样。"])
    flags = ["--near_duplicates", 0.85, "--val_fraction", 0]
    run(tmp_path / "raw.jsonl", tmp_path / "many", tokenizer_dir, *flags)
    run_here(tokenizer_dir, tmp_path / "raw.jsonl", tmp_path / "one.bin", *flags)
    assert [t[0] for t in texts_of(tmp_path / "many" / "00000.bin", tokenizer_dir)] == [a[0], "别"]
    assert [t[:2] for t in texts_of(tmp_path / "one.bin", tokenizer_dir)] == [a[:2], "天地", "别的"]


def test_a_signature_is_below_the_highest_that_datatrove_reads(tmp_path):
    texts = [*sentences(50, 1), "……", "中"]
    step = near.BandSignature(str(tmp_path), NearDuplicates(0.8))
    made = [step.get_shingles(keys.text) for keys in step.with_keys(steps.Document(t, "") for t in texts)]
    assert [len(keys) for keys in made] == [23] * 50 + [0, 23]
    assert all(0 <= key < 2**61 - 1 for keys in made for (key,) in step.get_signature(keys))


@given(sizes=st.lists(st.integers(0, 10**12), min_size=1, max_size=50), tasks=st.integers(1, 60))
def test_files_are_shared_out_in_order_and_evenly(sizes, tasks):
    shares = pretrain.share_out(sizes, tasks)
    assert shares == sorted(shares) and all(0 <= share < tasks for share in shares)
    for task in range(tasks):
        own = sum(size for size, share in zip(sizes, shares) if share == task)
        assert own <= sum(sizes) / tasks + max(sizes)


def test_a_run_that_stopped_goes_on_and_another_does_not_take_its_folder(tmp_path, raw, tokenizer_dir, monkeypatch):
    arguments = (raw, tmp_path / "many", tokenizer_dir, "--tasks", 3, "--workers", 1)
    work, cleaned = steps.FindRepeats.run, []

    def fail(self, data=None, rank=0, world_size=1):
        if rank == 1:
            raise OSError("the disk is gone")
        work(self, data, rank, world_size)

    monkeypatch.setattr(steps.FindRepeats, "run", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run(*arguments)
    assert not (tmp_path / "many").exists()
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        run(*arguments, "--seed", 1)
    monkeypatch.setattr(steps.FindRepeats, "run", work)
    monkeypatch.setattr(steps.Clean, "run", lambda *_: cleaned.append(1))
    run(*arguments)
    assert not cleaned
    assert written(tmp_path / "many") == one_machine(raw, tmp_path, tokenizer_dir)
    monkeypatch.undo()
    run(raw, tmp_path / "many", tokenizer_dir, "--tasks", 1, "--val_fraction", 0)  # and the old shards go
    assert [p.name for p in sorted((tmp_path / "many").iterdir())] == ["00000.bin", "00000.json"]
    assert not (tmp_path / "many_val.bin").exists()


def test_nothing_left_to_train_on_is_said_and_nothing_written(tmp_path, tokenizer_dir):
    save(tmp_path / "a.jsonl", ["", " "])
    with pytest.raises(ValueError, match="no text is left.*'empty text': 2"):
        run(tmp_path / "a.jsonl", tmp_path / "many", tokenizer_dir)
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "0"], "--tasks 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--memory", "0"], "--memory 0"),
        (["--executor", "slurm"], "needs --partition"),
        (["--sbatch", "account"], "account is not NAME=VALUE"),
        (["--near_duplicates", "2"], "similarity is 2"),
    ],
)
def test_a_misused_flag_is_named(tmp_path, raw, tokenizer_dir, flags, message):
    with pytest.raises(ValueError, match=message):
        run(raw, tmp_path / "many", tokenizer_dir, *flags)


def test_a_machine_without_slurm_is_told_where_to_start(tmp_path, raw, tokenizer_dir, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no sbatch on PATH"):
        run(raw, tmp_path / "many", tokenizer_dir, "--executor", "slurm", "--partition", "cpu")


def test_every_flag_of_one_machine_is_a_flag_here_or_named_as_none():
    flags = vars(pretrain.parse(["--input", "a", "--output", "b"]))
    fields = {f.name for f in dataclasses.fields(PretrainSettings)}
    assert set(pretrain.NOT_HERE) < fields and fields - set(pretrain.NOT_HERE) == fields & set(flags)


def test_a_missing_datatrove_is_said_with_the_file_that_brings_it(tmp_path, raw, tokenizer_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(ImportError, match=r"requirements-cluster\.txt"):
        run(raw, tmp_path / "many", tokenizer_dir)


# --- other executors --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:placement_group:DeprecationWarning")  # datatrove's own
def test_two_ray_workers_write_the_same(tmp_path, raw, tokenizer_dir, monkeypatch):
    ray = pytest.importorskip("ray", reason="pip install -r requirements-cluster.txt")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # workers that are started before they are needed have it too
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, _memory=4 << 30)
    try:
        run(raw, tmp_path / "many", tokenizer_dir, "--executor", "ray", "--tasks", 2, "--memory", 1)
    finally:
        ray.shutdown()
    assert written(tmp_path / "many") == one_machine(raw, tmp_path, tokenizer_dir)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands on PATH: sbatch keeps its arguments and the script as job 1, 2, …; srun runs."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {
        "sbatch": f"""n=$(( $(ls {folder}/jobs | wc -l) / 2 + 1 )); echo "$@" > {folder}/jobs/$n.args
            cp "${{@: -1}}" {folder}/jobs/$n.sh; echo "Submitted batch job $n" """,
        "srun": """while [[ $1 == -* ]]; do if [[ $1 == -n ]]; then shift; fi; shift; done; exec "$@" """,
        "scontrol": "echo localhost",
    }
    (folder / "jobs").mkdir()
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    return folder / "jobs"


def test_slurm_jobs_wait_for_each_other_and_write_the_same(tmp_path, raw, tokenizer_dir, slurm, monkeypatch):
    from datatrove.tools import launch_pickled_pipeline

    flags = ["--executor", "slurm", "--partition", "cpu", "--sbatch", "account=lab", "--tasks", 2, "--workers", 1]
    run(raw, tmp_path / "many", tokenizer_dir, *flags)
    logs, handler = tmp_path / "many.parts" / "logs", signal.getsignal(signal.SIGUSR1)
    jobs = {}  # stage → number of its job; between them are datatrove's own, which sum up statistics
    for number in range(1, 1 + len(list(slurm.glob("*.sh")))):
        script = (slurm / f"{number}.sh").read_text(encoding="utf-8")
        if "launch_pickled_pipeline" in script:
            stage = script.split("--job-name=pretrain_")[1].split("\n")[0]
            waits = f"--dependency=afterok:{list(jobs.values())[-1]} " if jobs else ""
            assert (slurm / f"{number}.args").read_text().startswith(f"--export=ALL,RUN_OFFSET=0 {waits}/")
            assert {"#SBATCH --partition=cpu", "#SBATCH --account=lab"} < set(script.splitlines())
            assert f"#SBATCH --array=0-{0 if stage == 'finish' else 1}%1\n" in script
            assert script.rstrip().endswith(f"launch_pickled_pipeline {logs / stage / 'executor.pik'}")
            jobs[stage] = number
    assert list(jobs) == ["clean", "repeats", "write", "finish"]

    # the first task as Slurm would start it, from another folder; the others in this process, for time
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    subprocess.run(["bash", str(slurm / f"{jobs['clean']}.sh")], check=True, env=environment, cwd=tmp_path)
    assert (logs / "clean" / "completions" / "00000").is_file()
    try:
        for stage, task in [("clean", 1), *((s, t) for s in ("repeats", "write") for t in (0, 1)), ("finish", 0)]:
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            monkeypatch.setattr(sys, "argv", ["launch_pickled_pipeline", str(logs / stage / "executor.pik")])
            launch_pickled_pipeline.main()
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert written(tmp_path / "many") == one_machine(raw, tmp_path, tokenizer_dir)
