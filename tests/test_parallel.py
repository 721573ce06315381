"""Several processes: what one of them does alone for long, what fails in one of them, work that is shared."""

import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
import torch

from model.chat import load_tokenizer
from model.dataset import DPODataset
from tests.ranks import on_two_ranks
from tests.stages import ROOT, SCRIPTS, flags_of, make_base, make_data
from tests.test_preference import SHAPE, transformer
from tests.warm import FRESH
from trainer import parallel
from trainer.config import TrainConfig
from trainer.preference import reference_log_probs
from trainer.runtime import Runtime

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def slow_main_rank():
    parallel.PATIENCE = timedelta(seconds=2)  # of what every rank does at the same time
    with parallel.joined(TrainConfig(device="cpu", dtype="float32")) as runtime:
        with parallel.main_first(runtime):
            time.sleep(4 if runtime.is_main else 0)
        assert parallel.summed([1], runtime) == [2]


def test_the_others_wait_for_the_main_rank_however_long_its_work_takes():
    on_two_ranks(slow_main_rank)


class Counted(DPODataset):
    """Notes which rows are asked for."""

    asked = ()

    def __getitem__(self, index):
        self.asked = (*self.asked, index)
        return super().__getitem__(index)


def score(folder, tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    dataset = Counted(folder / "pairs.jsonl", SHAPE["max_seq_len"], tokenizer, folder)
    with parallel.joined(TrainConfig(device="cpu", dtype="float32")) as runtime:
        reference_log_probs(transformer(tokenizer, 1), dataset, runtime, 2, folder / "two")
        assert abs(2 * len(dataset.asked) - len(dataset)) <= 1, f"rank {runtime.rank} scored {dataset.asked}"


def test_ranks_share_the_scoring_of_the_reference(tmp_path, tokenizer_dir):
    make_data(tmp_path)
    from data_process import clean_file

    clean_file("dpo", tmp_path / "dpo.jsonl", tmp_path / "pairs.jsonl")
    tokenizer = load_tokenizer(tokenizer_dir)
    dataset = DPODataset(tmp_path / "pairs.jsonl", SHAPE["max_seq_len"], tokenizer, tmp_path)
    (tmp_path / "two").mkdir()
    on_two_ranks(score, tmp_path, tokenizer_dir)
    alone = reference_log_probs(
        transformer(tokenizer, 1), dataset, Runtime(torch.device("cpu"), torch.float32), 3, tmp_path
    )
    [shared] = (tmp_path / "two").glob("reference_*.npy")
    assert np.abs(np.load(shared) - alone).max() < 1e-4 and np.abs(alone).max() > 1


def test_what_goes_wrong_on_the_main_rank_is_told_once(tmp_path, tokenizer_dir):
    base = make_base(tmp_path, tokenizer_dir)
    make_data(tmp_path)
    flags = flags_of("full_sft", tmp_path, base, tmp_path / "out")
    flags[flags.index("--data_path") + 1] = str(tmp_path / "nowhere.jsonl")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    command = [sys.executable, *map(str, launch), SCRIPTS["full_sft"], *flags]
    done = subprocess.run(command, cwd=ROOT, env=FRESH, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("error: no data at") == 1
    assert "[rank" not in done.stderr  # where a traceback of one of them would be
