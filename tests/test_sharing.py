"""One run on several devices, whole on each or shared out: the same weights, however many there are."""

import os
import signal

import numpy as np
import pytest
import torch

from model.LMConfig import LMConfig
from model.model import Transformer
from tests.ranks import on_ranks
from tests.test_training import MUON_ROUNDS, SHAPE, ByteVocabulary, Rows, difference, share_of_the_way
from trainer import loop, parallel
from trainer.checkpoint import load_file, load_model
from trainer.config import TrainConfig
from trainer.run import Data

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
ROWS_EACH = {1: (12, 1), 2: (3, 2), 3: (4, 1)}  # world: rows in a forward pass, passes in a step; 12 rows a step


def train(out_dir, shape, changes):
    """One start of a run; in every rank, or in a lone process."""
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE, **shape))
    fixed = {"device": "cpu", "dtype": "float32", "compile": "off", "num_workers": 0, "schedule": "constant"}
    fixed |= {"eval_interval": 3, "log_interval": 2, "max_steps": 6}
    cfg = TrainConfig(out_dir=str(out_dir), **{**fixed, **changes})
    rows = Rows()
    with parallel.joined(cfg) as runtime:
        cfg.batch_size, cfg.accumulation_steps = ROWS_EACH[runtime.world]
        loop.fit(model, runtime, cfg, "pretrain", ByteVocabulary(), Data(rows, np.arange(40), rows, np.arange(90, 103)))


def start(world, out_dir, shape=(), **changes):
    on_ranks(world, train, out_dir, dict(shape), changes) if world > 1 else train(out_dir, dict(shape), changes)
    path = out_dir / ("pretrain_32_moe.pth" if shape else "pretrain_32.pth")
    model, about = load_model(path)
    return model.state_dict(), about


def test_weights_shared_out_over_ranks_are_those_of_one_device(tmp_path):
    shape, changes = {"use_moe": True, "router_bias_rate": 0.01}, {"ema": 0.5}
    one, about = start(1, tmp_path / "one", shape, **changes)
    two, also = start(2, tmp_path / "two", shape, parallel="fsdp", **changes)
    assert difference(one, two) < 1e-5 and also["world_size"] == 2
    assert about["val_loss"] == pytest.approx(also["val_loss"], abs=1e-4)


def test_muon_moves_shared_out_matrices_as_whole_ones(tmp_path):
    one, _ = start(1, tmp_path / "one", optimizer="muon")
    two, _ = start(2, tmp_path / "two", parallel="fsdp", optimizer="muon")
    torch.manual_seed(3)
    assert share_of_the_way(one, two, Transformer(LMConfig(**SHAPE)).state_dict()) < MUON_ROUNDS


def test_a_run_goes_on_with_other_ranks_and_another_way_to_share_the_model(tmp_path):
    whole, _ = start(1, tmp_path / "one", max_steps=8, ema=0.5)
    for world, how, steps in ((2, "fsdp", 3), (3, "fsdp", 5), (1, "none", 8)):
        moved, about = start(world, tmp_path / "moving", parallel=how, max_steps=steps, ema=0.5)
        assert (about["step"], about["world_size"]) == (steps, world)
    assert difference(whole, moved) < 1e-5
    files = [load_file(tmp_path / w / "pretrain_32_resume.pth")["optimizers"][0] for w in ("one", "moving")]
    a, b = ([t for p in f["state"].values() for t in p.values()] for f in files)
    assert len(a) == len(b) and all((x - y).abs().max() < 1e-5 for x, y in zip(a, b))


def test_shared_out_weights_that_are_no_numbers_are_replaced_on_every_rank(tmp_path):
    on_ranks(2, train_struck, tmp_path / "struck", "fsdp")
    struck, about = load_model(tmp_path / "struck" / "pretrain_32.pth")
    assert about["skip"] == [4] and about["returns"] == 1 and all(p.isfinite().all() for p in struck.parameters())


def train_struck(out_dir, how):
    real, seen = loop.step, []

    def striking(run, *given):
        seen.append(1)
        if len(seen) == 5:
            for p in run.model.parameters():
                own = p._local_tensor if how == "fsdp" else p
                own.data.mul_(float("nan") if run.runtime.rank == 1 else 1.0)
        return real(run, *given)

    loop.step = striking  # in this rank's own process
    train(out_dir, {}, {"parallel": how, "save_interval": 2})


def test_weights_harmed_on_one_rank_send_all_of_them_back(tmp_path):
    on_ranks(2, train_struck, tmp_path / "struck", "ddp")
    model, about = load_model(tmp_path / "struck" / "pretrain_32.pth")
    assert about["skip"] == [4] and about["returns"] == 1 and all(p.isfinite().all() for p in model.parameters())


def test_a_save_in_the_middle_of_a_shared_out_step_changes_no_weight(tmp_path):
    on_ranks(2, train_signalled, tmp_path / "signalled")
    signalled = load_model(tmp_path / "signalled" / "pretrain_32.pth")[0].state_dict()
    whole, _ = start(2, tmp_path / "whole", parallel="fsdp")
    assert all(torch.equal(whole[k], signalled[k]) for k in whole)


def train_signalled(out_dir):
    real, seen = loop.language_model_loss, []

    def signalling(model, batch):
        seen.append(1)
        if len(seen) == 3:  # in the first of two micro-batches of the second step
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(model, batch)

    loop.fit.__defaults__ = (signalling, *loop.fit.__defaults__[1:])
    train(out_dir, {}, {"parallel": "fsdp"})
