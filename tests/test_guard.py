"""What gets a run past bad steps: data left out, a way back, an end where the settings are at fault."""

import json
import math
import random

import numpy as np
import pytest
import torch

from model.batch import collate
from model.LMConfig import LMConfig
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, difference, equal, settings, train
from trainer.checkpoint import load_model
from trainer.guard import LASTING, MOST_RETURNS, BadStep, LeapDetector
from trainer.losses import language_model_loss
from trainer.run import Data, Run
from trainer.step import step

pytestmark = pytest.mark.usefixtures("one_thread")


def weights_without(step_left_out, out_dir, steps=10):
    """What ten steps leave behind if one of them (0-based) is never taken: a loop of its own over steps."""
    rows = Rows()
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE))
    data = Data(rows, np.arange(len(rows)))
    run = Run(model, CPU, settings(out_dir), "pretrain", ByteVocabulary(), data, language_model_loss)
    for number in range(steps):
        if number == step_left_out:
            run.progress.step += 1
        else:
            step(run, model, [collate([rows[i] for i in m]) for m in run.order.micro_batches(number)])
    return model.state_dict()


def events(out_dir):
    lines = [json.loads(line) for line in open(out_dir / "pretrain_32.jsonl", encoding="utf-8")]
    return [r for r in lines if "bad_step" in r], [r["step"] for r in lines if "loss" in r]


@pytest.mark.parametrize("at", [6, 10], ids=["in the middle", "the last step"])
def test_data_with_a_loss_that_is_no_number_is_left_out_and_nothing_else(tmp_path, at):
    poison = sorted(next(iter(order_of_rows(tmp_path).micro_batches(at - 1))))

    def poisoned(model, batch):
        losses = language_model_loss(model, batch)
        return losses._replace(loss=losses.loss * math.nan) if sorted(batch.rows) == poison else losses

    ended = train(tmp_path / "run", loss_fn=poisoned)
    assert equal(ended, weights_without(at - 1, tmp_path / "oracle"))
    (bad,), steps = events(tmp_path / "run")
    assert f"step {at}: loss nan" in bad["bad_step"] and str(poison[0]) in bad["bad_step"]
    assert steps == [2, 4, 6, 8, 10]
    about = load_model(tmp_path / "run" / "pretrain_32.pth")[1]
    assert (about["step"], about["skip"], about["returns"]) == (10, [at - 1], 1)


def order_of_rows(tmp_path):
    rows = Rows()
    data = Data(rows, np.arange(len(rows)))
    model = Transformer(LMConfig(**SHAPE))
    return Run(model, CPU, settings(tmp_path), "pretrain", ByteVocabulary(), data, language_model_loss).order


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_that_are_no_numbers_are_replaced_by_the_last_saved_ones(tmp_path, capsys, workers):
    seen = []

    def struck(model, batch):
        seen.append(1)
        if len(seen) == 13:  # the first micro-batch of step 7; the last save was at step 4
            model.layers[0].attention.wq.weight.data[0, 0] = math.nan
        return language_model_loss(model, batch)

    ended = train(tmp_path / "run", loss_fn=struck, num_workers=workers)
    assert "back to the state of step 4 without the data of step 7" in capsys.readouterr().out
    assert equal(ended, weights_without(6, tmp_path / "oracle"))
    assert events(tmp_path / "run")[1] == [2, 4, 6, 8, 10]  # each once, although 5 and 6 were taken twice


def test_a_state_saved_with_weights_that_are_no_numbers_is_not_returned_to(tmp_path, monkeypatch):
    real, saves = Run.save, []

    def struck(run):
        saves.append(run.progress.step)
        if len(saves) == 2:
            run.model.norm.weight.data[0] = math.inf
        real(run)

    monkeypatch.setattr(Run, "save", struck)
    ended = train(tmp_path / "run")
    assert saves[:2] == [4, 8] and all(w.isfinite().all() for w in ended.values())
    assert "loss nan" in events(tmp_path / "run")[0][0]["bad_step"]


def test_a_loss_that_leaps_up_and_stays_there_sends_the_run_back(tmp_path, capsys):
    seen = []

    def struck(model, batch):
        seen.append(1)
        if len(seen) == 90:  # in step 45
            for p in model.parameters():
                p.data *= 4
        return language_model_loss(model, batch)

    train(tmp_path / "run", loss_fn=struck, max_steps=60, save_interval=10)
    said = capsys.readouterr().out
    assert f"leapt up {LASTING} steps ago" in said and "back to the state of step 40" in said
    losses = [json.loads(x).get("loss") for x in open(tmp_path / "run" / "pretrain_32.jsonl", encoding="utf-8")]
    assert max(x for x in losses if x) < 6.5  # what was seen in between is no part of the run


def test_a_loss_that_leaps_up_before_anything_was_saved_does_not_end_the_run(tmp_path, capsys):
    seen = []

    def struck(model, batch):
        seen.append(1)
        if len(seen) == 30 - LASTING:
            for p in model.parameters():
                p.data *= 4
        return language_model_loss(model, batch)

    train(tmp_path, loss_fn=struck, max_steps=29, accumulation_steps=1, save_interval=100, eval_interval=0)
    assert "going on, no state from before it was saved (1 of at most" in capsys.readouterr().out
    assert load_model(tmp_path / "pretrain_32.pth")[1]["step"] == 29  # found out in the last step, which is saved


def test_a_leap_is_five_high_losses_in_a_row_and_neither_noise_nor_one_odd_batch():
    rng, leaps = random.Random(0), LeapDetector()
    assert not any(leaps.note(8 - 5 * i / 400 + rng.gauss(0, 0.3)) for i in range(400))
    assert not leaps.note(30.0) and leaps.high == 1
    assert [leaps.note(3.0), leaps.high] == [0, 0]
    found = [LeapDetector(leaps.state()).note(9.0)] + [leaps.note(9.0) for _ in range(LASTING)]
    assert found == [0] * LASTING + [LASTING]


def test_leaps_are_not_judged_before_there_is_something_to_judge_by():
    leaps = LeapDetector()
    assert not any(leaps.note(x) for x in [1.0] * 10 + [50.0] * 30)


def test_a_run_that_never_recovers_stops_and_keeps_its_last_save(tmp_path):
    seen = []

    def poisoned(model, batch):
        seen.append(1)
        losses = language_model_loss(model, batch)
        return losses._replace(loss=losses.loss * math.nan) if len(seen) > 10 else losses

    with pytest.raises(FloatingPointError, match=f"bad step {MOST_RETURNS + 1} of the run, so its settings"):
        train(tmp_path, loss_fn=poisoned, max_steps=100)
    model, about = load_model(tmp_path / "pretrain_32.pth")
    assert about["step"] == 12 and all(p.isfinite().all() for p in model.parameters())  # skipped steps count


def test_without_a_saved_state_weights_that_are_no_numbers_end_the_run(tmp_path):
    def struck(model, batch):
        model.norm.weight.data[0] = math.nan
        return language_model_loss(model, batch)

    with pytest.raises(FloatingPointError, match="There is no saved state from before"):
        train(tmp_path, loss_fn=struck)


def test_an_odd_high_loss_and_bad_data_before_the_first_save_cost_one_step(tmp_path, capsys):
    seen = []

    def odd(model, batch):
        seen.append(1)
        losses = language_model_loss(model, batch)
        factor = {28: 3.0, 30: math.nan}.get(len(seen), 1.0)
        return losses._replace(loss=losses.loss + losses.loss.detach() * (factor - 1))

    train(tmp_path, loss_fn=odd, max_steps=40, accumulation_steps=1, save_interval=100)
    assert load_model(tmp_path / "pretrain_32.pth")[1]["skip"] == [29]
    assert "going on without the data of step 30" in capsys.readouterr().out


def test_a_bad_step_after_high_losses_leaves_out_the_data_that_began_them(tmp_path):
    leaps = LeapDetector({"usual": [3.0] * 30, "high": 0})
    assert leaps.began(7, False) == 7  # nothing was high: the step itself
    leaps.note(9.0), leaps.note(9.0)  # steps 46 and 47
    assert leaps.began(48, False) == 45  # step 48 was not taken; the update of 45 made 46 high
    leaps.note(9.0), leaps.note(9.0), leaps.note(9.0)
    assert leaps.began(50, True) == 45


def test_after_a_loss_that_is_no_number_the_loss_scaler_goes_on(tmp_path):
    rows = Rows()
    model = Transformer(LMConfig(**SHAPE))
    data = Data(rows, np.arange(103))
    run = Run(model, CPU, settings(tmp_path), "pretrain", ByteVocabulary(), data, language_model_loss)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=True)
    batches = [collate([rows[i] for i in micro]) for micro in run.order.micro_batches(0)]
    run.loss_fn = lambda m, b: language_model_loss(m, b)._replace(loss=(m.norm.weight * math.nan).sum())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BadStep):
        step(run, model, batches).read()
    assert equal(before, model.state_dict())
    run.loss_fn = language_model_loss
    step(run, model, batches).read()
    assert run.scaler.get_scale() == 32.0 and difference(before, model.state_dict()) > 0
