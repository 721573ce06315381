"""Less memory in training: layers computed again, batches that fit."""

import numpy as np
import pytest
import torch

from model.LMConfig import Auto, LMConfig
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, difference, settings, train
from trainer import batch_fit, loop
from trainer.batch_fit import bytes_kept, fit_batch, memory_of
from trainer.checkpoint import load_file
from trainer.losses import language_model_loss
from trainer.run import Data

pytestmark = pytest.mark.usefixtures("one_thread")


def data_of(rows):
    return Data(rows, np.arange(len(rows)))


@pytest.mark.parametrize("shape", [{}, {"use_moe": True}], ids=["dense", "moe"])
def test_computing_layers_again_changes_no_bit_of_the_weights(tmp_path, shape):
    shape = {**shape, "dropout": 0.1}
    kept, again = train(tmp_path / "a", shape), train(tmp_path / "b", shape, recompute=True)
    assert all(torch.equal(kept[k], again[k]) for k in kept)


def test_computing_layers_again_keeps_little_more_than_their_inputs():
    torch.manual_seed(0)
    model = Transformer(LMConfig(**{**SHAPE, "n_layers": 12}))
    batch = batch_fit.batch_of(data_of(Rows()), 8)
    whole = bytes_kept(model, CPU, batch, language_model_loss)
    model.recompute = True
    less = bytes_kept(model, CPU, batch, language_model_loss)
    beside_layers = bytes_kept(Transformer(LMConfig(**{**SHAPE, "n_layers": 1})), CPU, batch, language_model_loss)
    inputs = 12 * 8 * 24 * 32 * 4
    assert inputs <= less < inputs + beside_layers and whole > 5 * less


def limited(rows_that_fit, asked):
    def loss(model, batch):
        asked.append(len(batch.rows))
        if len(batch.rows) > rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return language_model_loss(model, batch)

    return loss


@pytest.mark.parametrize(("fit", "batch", "passes"), [(64, 48, 1), (16, 16, 3), (11, 8, 6), (1, 1, 48)])
def test_the_largest_batch_that_fits_is_taken_and_a_step_keeps_its_rows(tmp_path, capsys, fit, batch, passes):
    cfg, asked = settings(tmp_path, batch_size=Auto(12), accumulation_steps=4), []
    model = Transformer(LMConfig(**SHAPE))
    fit_batch(model, CPU, cfg, data_of(Rows()), limited(fit, asked))
    assert (cfg.batch_size, cfg.accumulation_steps) == (batch, passes)
    assert f"{batch} rows in a pass, {passes} passes a step" in capsys.readouterr().out
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_that_cannot_fit_is_not_even_tried(tmp_path, monkeypatch):
    model, rows = Transformer(LMConfig(**SHAPE)), Rows()
    one, two = (bytes_kept(model, CPU, batch_fit.batch_of(data_of(rows), n), language_model_loss) for n in (1, 2))
    per_row = batch_fit.AGAIN * (two - one)
    weights = model.n_params() * 16
    monkeypatch.setattr(batch_fit, "memory_of", lambda device: (weights + 7 * per_row) / batch_fit.SHARE)
    cfg, asked = settings(tmp_path, batch_size=Auto(32), accumulation_steps=1), []
    fit_batch(model, CPU, cfg, data_of(rows), limited(100, asked))
    assert cfg.batch_size == 4 and asked == [1, 2, 4]


def test_a_loaded_model_is_measured_as_it_trains(tmp_path, capsys):
    model, sizes = Transformer(LMConfig(**{**SHAPE, "n_layers": 12})).eval(), []
    model.recompute = True
    cfg = settings(tmp_path, batch_size=Auto(8))
    fit_batch(model, CPU, cfg, data_of(Rows()), lambda m, b: (sizes.append(m.training), language_model_loss(m, b))[1])
    assert all(sizes) and model.training


def test_what_one_row_keeps_grows_with_the_rows():
    model, data = Transformer(LMConfig(**SHAPE)), data_of(Rows())
    one, eight = (bytes_kept(model, CPU, batch_fit.batch_of(data, n), language_model_loss) for n in (1, 8))
    assert 6 * one < eight < 8.5 * one


def test_auto_trains_to_the_weights_of_the_same_step_split_by_hand(tmp_path):
    auto = train(tmp_path / "a", batch_size=Auto(8), accumulation_steps=2)
    by_hand = train(tmp_path / "b", batch_size=16, accumulation_steps=1)
    assert difference(auto, by_hand) == 0
    assert load_file(tmp_path / "a" / "pretrain_32_resume.pth")["rows_per_step"] == 16


def test_auto_and_fsdp_exclude_each_other(tmp_path):
    cfg = settings(tmp_path, batch_size=Auto(8), parallel="fsdp")
    with pytest.raises(ValueError, match="--batch_size auto cannot look ahead"):
        loop.fit(Transformer(LMConfig(**SHAPE)), CPU, cfg, "pretrain", ByteVocabulary(), data_of(Rows()))


def test_the_machine_has_some_memory():
    assert 1 << 28 < memory_of(torch.device("cpu")) < 1 << 50
