"""The loss on held-out rows: what is measured, when, and what a signal or too little memory does to it."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from model.LMConfig import LMConfig
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, settings
from trainer import checkpoint, loop
from trainer.loop import fit
from trainer.losses import language_model_loss
from trainer.run import Data, Run
from trainer.runtime import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_gpu_that_is_too_small_for_a_validation_is_told_with_the_flag_that_helps(tmp_path):
    def full(model, batch):
        if not model.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return language_model_loss(model, batch)

    rows = Rows()
    data = Data(rows, np.arange(40), rows, np.arange(40, 60))
    with pytest.raises(MemoryError, match="cpu is too small for --batch_size 8"):
        fit(Transformer(LMConfig(**SHAPE)), CPU, settings(tmp_path), "pretrain", ByteVocabulary(), data, full)
    assert (tmp_path / "pretrain_32.pth").is_file()  # saved before


def test_validation_is_nats_per_scored_token_and_bits_per_byte(tmp_path):
    rows = Rows(20)
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE))
    data = Data(rows, np.arange(20), rows, np.arange(12, 20))
    run = Run(model, CPU, settings(tmp_path), "pretrain", ByteVocabulary(), data, language_model_loss)
    measured = loop.validate(run)
    scored = torch.arange(24)[None] < torch.from_numpy(rows.lengths[12:] - 1)[:, None]
    logits = model(torch.from_numpy(rows.ids[12:, :-1])).logits
    nats = torch.nn.functional.cross_entropy(logits[scored], torch.from_numpy(rows.ids[12:, 1:])[scored]).item()
    assert measured["val_loss"] == pytest.approx(nats, rel=1e-5)
    assert measured["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / 2, rel=1e-5)
    assert model.training


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_validation_is_heeded_before_its_end(tmp_path, capsys, number):
    seen = []

    def loss_fn(model, batch):
        if not model.training:
            seen.append(1)
            if len(seen) == 2:
                os.kill(os.getpid(), number)
        return language_model_loss(model, batch)

    def run(out_dir):
        torch.manual_seed(3)
        rows, cfg = Rows(), settings(out_dir, eval_interval=4, batch_size=4, save_interval=1000)
        data = Data(rows, np.arange(90), rows, np.arange(90, 103))
        return fit(Transformer(LMConfig(**SHAPE)), CPU, cfg, "pretrain", ByteVocabulary(), data, loss_fn)

    if number == signal.SIGTERM:
        with pytest.raises(Stopped):
            run(tmp_path)
        assert len(seen) == 2 and "stopped at step 4, saved" in capsys.readouterr().out
    progress = run(tmp_path)
    lines = [json.loads(x) for x in open(tmp_path / "pretrain_32.jsonl", encoding="utf-8")]
    validated = [r["step"] for r in lines if "val_loss" in r]
    if number == signal.SIGUSR1:
        assert "at step 4, as SIGUSR1 asked; training goes on" in capsys.readouterr().out
        assert validated == [4, 8, 10] and len(seen) == 2 + 3 * 4  # the first was begun again
    assert progress.val_step == 10 and validated[-2:] == [8, 10]


def test_an_interim_description_says_when_its_validation_loss_was_measured(tmp_path):
    seen = []

    def noting(path, model, description):
        seen.append({k: description.get(k) for k in ("step", "val_loss", "val_step")})
        checkpoint.save_weights(path, model, description)

    rows = Rows()
    data = Data(rows, np.arange(40), rows, np.arange(40, 60))
    cfg = settings(tmp_path, max_steps=6, save_interval=2, eval_interval=4)
    fit(Transformer(LMConfig(**SHAPE)), CPU, cfg, "pretrain", ByteVocabulary(), data, save_weights=noting)
    assert [(s["step"], s["val_step"]) for s in seen] == [(2, None), (4, None), (6, 4), (6, 6)]
    assert seen[0]["val_loss"] is None and seen[2]["val_loss"] != seen[3]["val_loss"]


def test_a_run_killed_behind_its_last_save_validates_when_started_again(tmp_path, monkeypatch):
    rows = Rows()

    def run(out_dir):
        torch.manual_seed(3)
        data = Data(rows, np.arange(90), rows, np.arange(90, 103))
        fit(Transformer(LMConfig(**SHAPE)), CPU, settings(out_dir, eval_interval=4), "pretrain", ByteVocabulary(), data)
        return json.loads((out_dir / "pretrain_32.json").read_text(encoding="utf-8"))

    whole = run(tmp_path / "a")
    validate = loop.validate

    def power_cut(run, stop):
        if run.progress.step == 10:
            raise OSError("power cut")
        return validate(run, stop)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(loop, "validate", power_cut)
        run(tmp_path / "b")
    again = run(tmp_path / "b")
    assert (again["val_step"], again["val_loss"]) == (10, whole["val_loss"]) and whole["val_step"] == 10
    lines = [json.loads(x) for x in open(tmp_path / "b" / "pretrain_32.jsonl", encoding="utf-8")]
    assert [r["step"] for r in lines if "val_loss" in r] == [4, 8, 10]
