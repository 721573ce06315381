"""One optimizer step: it asks the device for nothing, and a bad one leaves everything where it was."""

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from model.batch import collate
from model.LMConfig import LMConfig
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, settings, train
from trainer import loop
from trainer.guard import BadStep
from trainer.losses import language_model_loss
from trainer.run import Data, Run
from trainer.runtime import Runtime
from trainer.step import Told, step

pytestmark = pytest.mark.usefixtures("one_thread")
EXPERTS = {"use_moe": True, "router_bias_rate": 0.01}


def run_of(out_dir, shape=(), loss_fn=language_model_loss, **changes):
    """A run at its beginning and the micro-batches of its first step."""
    torch.manual_seed(3)
    model, rows = Transformer(LMConfig(**{**SHAPE, **dict(shape)})), Rows()
    cfg, data = settings(out_dir, **changes), Data(rows, np.arange(len(rows)))
    run = Run(model, CPU, cfg, "pretrain", ByteVocabulary(), data, loss_fn)
    return run, [collate([rows[i] for i in micro]) for micro in run.order.micro_batches(0)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("shape", "dtype"), [({}, torch.float32), (EXPERTS, torch.bfloat16)], ids=["dense", "experts"])
def test_a_step_reads_no_number_from_the_device(tmp_path, optimizer, shape, dtype):
    loss_fn = partial(language_model_loss, doc_mask=True)
    run, batches = run_of(tmp_path, shape, loss_fn, optimizer=optimizer, ema=0.9)
    run.runtime = Runtime(CPU.device, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):  # its tensors have shapes and no numbers: asking for one raises
        for _ in range(2):
            told = step(run, run.model, batches)
        assert run.progress.step == 2
        with pytest.raises(DataDependentOutputException):
            told.read()


def test_results_are_read_a_step_late_and_all_of_them_where_one_is_told(tmp_path, monkeypatch):
    seen, real_step, real_read = [], loop.step, Told.read

    def given(*of):
        told = real_step(*of)
        seen.append(f"given {told.at}")
        return told

    def read(told):
        seen.append(f"read {told.at}")
        return real_read(told)

    monkeypatch.setattr(loop, "step", given)
    monkeypatch.setattr(Told, "read", read)
    train(tmp_path, max_steps=5, log_interval=4, save_interval=4)
    expected = "given 0, given 1, read 0, given 2, read 1, given 3, read 2, read 3, given 4, read 4"
    assert ", ".join(seen) == expected


def test_reading_waits_for_the_step_and_tells_how_long_the_device_had_nothing_to_do(tmp_path):
    run, batches = run_of(tmp_path)
    before, told = step(run, run.model, batches), step(run, run.model, batches)
    whole, told.values = told.values, torch.full_like(told.values, math.nan)  # has not come yet

    class Event:
        synchronize = lambda self: told.values.copy_(whole)  # noqa: E731
        elapsed_time = lambda self, later: 250.0 if (self, later) == (before.ready, told.begun) else None  # noqa: E731

    before.ready, told.begun, told.ready = Event(), Event(), Event()
    assert told.read().loss > 0
    assert told.idle_since(before) == 0.25  # CUDA's events count milliseconds


def test_waiting_for_data_while_the_device_works_costs_nothing(tmp_path, monkeypatch):
    real = loop.step

    def busy(*given):
        told = real(*given)
        told.begun, told.idle_since = "then", lambda before: 0.0
        return told

    def shares(out_dir):
        train(out_dir, max_steps=6)
        return [json.loads(line)["data_wait"] for line in open(out_dir / "pretrain_32.jsonl", encoding="utf-8")]

    assert all(shares(tmp_path / "a"))
    monkeypatch.setattr(loop, "step", busy)
    first, *others = shares(tmp_path / "b")
    assert first and others == [0.0, 0.0]  # before the first step nothing else was to be done


def everything(run):
    """Weights, their mean, moments, biases and counts of a run, by name."""
    moments = {
        f"{i} {j} {name}": t
        for i, o in enumerate(run.optimizers)
        for j, state in enumerate(o.state.values())
        for name, t in state.items()
    }
    counts = {name: torch.tensor(getattr(run.progress, name)) for name in ("tokens", "skipped", "train_loss")}
    mean = {f"mean of {name}": t for name, t in run.average.mean.items()}
    return copy.deepcopy({**run.model.state_dict(), **mean, **moments, **counts})


@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("what", ["the loss", "a gradient"])
def test_a_step_that_is_no_number_leaves_everything_where_it_was(tmp_path, shape, optimizer, what):
    run, batches = run_of(tmp_path, shape, optimizer=optimizer, weight_decay=0.5, ema=0.5)
    step(run, run.model, batches).read()
    before = everything(run)

    def poisoned(model, batch):
        losses = language_model_loss(model, batch)
        if what == "the loss":
            return losses._replace(loss=losses.loss + math.inf)
        return losses._replace(loss=losses.loss + Poisoned.apply(model.layers[0].attention.wq.weight))

    run.loss_fn = poisoned
    with pytest.raises(BadStep, match="step 2: loss inf" if what == "the loss" else "step 2: loss [0-9.]+, gradient"):
        step(run, run.model, batches).read()
    after = everything(run)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    run.loss_fn = language_model_loss
    step(run, run.model, batches).read()
    again = everything(run)
    assert all(not torch.equal(before[k], again[k]) for k in before if k.endswith("wq.weight"))


class Poisoned(torch.autograd.Function):
    """Value 0; one number of the gradient is none."""

    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        gradient = torch.zeros_like(ctx.saved_tensors[0])
        gradient[1, 2] = math.nan
        return gradient
