"""A run killed with SIGKILL at random moments and started again ends bit-equal to one never stopped."""

import itertools
import multiprocessing
import os
import random
import select
import signal
import time

import numpy as np
import pytest
import torch

from model.LMConfig import LMConfig
from model.model import Transformer
from tests.stages import SCRIPTS, make_base, make_data, run_stage
from tests.test_training import CPU, ByteVocabulary, Rows, settings
from tests.warm import begin, context
from trainer.checkpoint import load_file
from trainer.loop import fit
from trainer.run import Data
from trainer.runtime import begin_worker

STEPS, KILLS = 24, 5


def run(out_dir, moe, optimizer, workers):
    """One start of a training run; called in a process of its own, which may not live to its end."""
    begin()
    torch.manual_seed(3)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320, "max_seq_len": 24}
    model = Transformer(LMConfig(**shape, use_moe=moe, dropout=0.1))
    cfg = settings(out_dir, max_steps=STEPS, save_interval=2, log_interval=1, optimizer=optimizer, num_workers=workers)
    rows = Rows()
    fit(model, CPU, cfg, "pretrain", ByteVocabulary(), Data(rows, np.arange(len(rows)), rows, np.arange(8)))


def run_chat(out_dir, stage, folder):
    """One start of a later stage's script, with dropout, on the data and base model in `folder`."""
    begin()
    flags = ("--max_steps", STEPS, "--save_interval", 2, "--batch_size", 4, "--accumulation_steps", 2)
    run_stage(stage, folder, folder / "pretrain_32.pth", out_dir, *flags)


def wait_for_a_step(process, log):
    """Returns the time when the log has its first line; fails if the process ends before."""
    while not log.exists() or not log.stat().st_size:
        assert process.exitcode is None, "the process ended before it trained"
        time.sleep(0.01)
    return time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moe", "optimizer", "workers"),
    [(False, "adamw", 0), (False, "muon", 2), (True, "adamw", 2), (True, "muon", 0)],
)
def test_killed_at_random_moments_it_ends_bit_equal(tmp_path, moe, optimizer, workers):
    kill_and_compare(tmp_path, run, (moe, optimizer, workers), "pretrain_32_moe" if moe else "pretrain_32")


@pytest.mark.slow
@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_later_stage_that_is_killed_ends_bit_equal(tmp_path, tokenizer_dir, stage):
    folder = tmp_path / "data"
    folder.mkdir()
    make_data(folder)
    make_base(folder, tokenizer_dir)
    kill_and_compare(tmp_path, run_chat, (stage, folder), f"{stage}_32")


def kill_and_compare(tmp_path, target, arguments, name):
    """Runs `target` once undisturbed and once killed KILLS times; both must leave the same files.

    Args:
        target: called as target(out_dir, *arguments) in a process of its own.
        name: of the checkpoint that it writes, without .pth.
    """
    whole = context.Process(target=target, args=(tmp_path / "whole", *arguments))
    whole.start()
    training = wait_for_a_step(whole, tmp_path / "whole" / f"{name}.jsonl")
    whole.join()
    assert whole.exitcode == 0
    step_time = (time.monotonic() - training) / STEPS

    victim, chance, reached = tmp_path / "killed", random.Random(str(arguments[0])), [0]
    log = victim / f"{name}.jsonl"
    for attempt in itertools.count():
        if attempt >= KILLS and max(reached) > 0:  # at least so many kills, and at least one of them after a save
            break
        log.unlink(missing_ok=True)
        process = context.Process(target=target, args=(victim, *arguments))
        process.start()
        wait_for_a_step(process, log)
        time.sleep(chance.uniform(0, 8) * step_time)
        process.kill()  # SIGKILL; nothing if it has just ended
        process.join()
        file = victim / f"{name}_resume.pth"
        reached.append(load_file(file)["progress"]["step"] if file.exists() else 0)
        if reached[-1] > STEPS - 8:  # nearly through: begin a new victim; the kills so far count
            for file in victim.glob(f"{name}*.*"):
                file.unlink()
            reached.append(0)
    last = context.Process(target=target, args=(tmp_path / "killed", *arguments))
    last.start()
    last.join()
    assert last.exitcode == 0 and max(reached) > 0, reached

    states = [load_file(tmp_path / which / f"{name}_resume.pth") for which in ("whole", "killed")]
    assert all(torch.equal(states[0]["model"][k], states[1]["model"][k]) for k in states[0]["model"])
    tensors = [
        [t for o in s["optimizers"] for p in o["state"].values() for t in p.values() if torch.is_tensor(t)]
        for s in states
    ]
    assert len(tensors[0]) == len(tensors[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*tensors))
    weights = [load_file(tmp_path / which / f"{name}.pth") for which in ("whole", "killed")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def work_for_ever(told):
    begin_worker(0)
    told.send(os.getpid())
    signal.pause()


def have_two_workers(told):
    begin()
    for _ in range(2):  # the first one's end of the pipe to its parent is inherited by the second
        multiprocessing.Process(target=work_for_ever, args=(told,)).start()
    signal.pause()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the end of another's process is seen on Linux only")
def test_loader_workers_end_with_a_process_that_is_killed():
    mine, theirs = context.Pipe()
    process = context.Process(target=have_two_workers, args=(theirs,))
    process.start()
    ends = [os.pidfd_open(mine.recv()) for _ in range(2)]
    process.kill()
    for end in ends:
        assert select.select([end], [], [], 60)[0], "a worker lives on"
        os.close(end)
