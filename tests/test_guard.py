"""A run left alone: bad steps are got past, damaged states passed over, signals obeyed, weights averaged and kept."""

import json
import math
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from model.batch import collate
from model.LMConfig import LMConfig
from model.lora import add_lora
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, difference, settings, train
from trainer import history, loop
from trainer.checkpoint import load_file, load_model
from trainer.config import LoRAConfig
from trainer.guard import LASTING, MOST_RETURNS, BadStep, LeapDetector
from trainer.losses import language_model_loss
from trainer.run import Data, Run

pytestmark = pytest.mark.usefixtures("one_thread")


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def weights_without(step_left_out, out_dir, steps=10):
    """What ten steps leave behind if one of them (0-based) is never taken: a loop of its own over loop.step."""
    rows = Rows()
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE))
    data = Data(rows, np.arange(len(rows)))
    run = Run(model, CPU, settings(out_dir), "pretrain", ByteVocabulary(), data, language_model_loss)
    for number in range(steps):
        if number == step_left_out:
            run.progress.step += 1
        else:
            loop.step(run, model, [collate([rows[i] for i in m]) for m in run.order.micro_batches(number)])
    return model.state_dict()


def events(out_dir):
    lines = [json.loads(line) for line in open(out_dir / "pretrain_32.jsonl", encoding="utf-8")]
    return [r for r in lines if "bad_step" in r], [r["step"] for r in lines if "loss" in r]


# ---- bad steps -------------------------------------------------------------------------------------------------------
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
    assert leaps.began(7, 7) == 7  # nothing was high: the step itself
    leaps.note(9.0), leaps.note(9.0)  # steps 46 and 47
    assert leaps.began(48, 48) == 45  # step 48 was not taken; the update of 45 made 46 high
    leaps.note(9.0), leaps.note(9.0), leaps.note(9.0)
    assert leaps.began(50, 51) == 45


def test_after_a_loss_that_is_no_number_the_loss_scaler_goes_on(tmp_path):
    rows = Rows()
    model = Transformer(LMConfig(**SHAPE))
    data = Data(rows, np.arange(103))
    run = Run(model, CPU, settings(tmp_path), "pretrain", ByteVocabulary(), data, language_model_loss)
    scaler = lambda: torch.amp.GradScaler("cpu", init_scale=64.0, enabled=True)  # noqa: E731
    run.scaler, run._make_scaler = scaler(), scaler
    batches = [collate([rows[i] for i in micro]) for micro in run.order.micro_batches(0)]
    run.loss_fn = lambda m, b: language_model_loss(m, b)._replace(loss=(m.norm.weight * math.nan).sum())
    with pytest.raises(BadStep):
        loop.step(run, model, batches)
    run.loss_fn = language_model_loss
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loop.step(run, model, batches)
    assert run.scaler.get_scale() == 64.0 and difference(before, model.state_dict()) > 0


# ---- saved states ----------------------------------------------------------------------------------------------------
def test_a_damaged_newest_state_is_passed_over_for_the_one_before_and_said_aloud(tmp_path, capsys):
    steady = {"schedule": "constant", "warmup_iters": 0}
    whole = train(tmp_path / "a", **steady)
    train(tmp_path / "b", max_steps=8, **steady)
    newest = tmp_path / "b" / "pretrain_32_resume.pth"
    newest.write_bytes(newest.read_bytes()[:-2000])
    again = train(tmp_path / "b", **steady)
    said = capsys.readouterr().out
    assert f"damaged   {newest} is not a whole checkpoint" in said and "pretrain_32_resume_1.pth from step 4" in said
    assert load_file(newest)["progress"]["step"] == 10 and (tmp_path / "b/kept/pretrain_32_resume_1.pth").is_file()
    assert equal(whole, again)


def test_a_save_that_fails_after_a_damaged_state_was_passed_over_leaves_the_good_one(tmp_path, monkeypatch):
    train(tmp_path, max_steps=8)
    newest = tmp_path / "pretrain_32_resume.pth"
    newest.write_bytes(b"damaged")

    def full_disk(state, file):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="file write failed"):
        patch.setattr(torch, "save", full_disk)
        train(tmp_path, max_steps=8)
    assert {load_file(f)["progress"]["step"] for f in history.states(tmp_path / "pretrain_32.pth").values()} == {4}


def test_a_state_that_is_saved_twice_does_not_push_out_the_one_before(tmp_path):
    rows = Rows()
    data = Data(rows, np.arange(90), rows, np.arange(90, 103))  # validation: the end is saved once more with its loss
    loop.fit(Transformer(LMConfig(**SHAPE)), CPU, settings(tmp_path), "pretrain", ByteVocabulary(), data)
    files = history.states(tmp_path / "pretrain_32.pth").values()
    assert [load_file(f)["progress"]["step"] for f in files] == [10, 8]


def test_a_state_from_before_a_setting_existed_is_continued_with_its_default_only(tmp_path):
    train(tmp_path, max_steps=4)
    file = tmp_path / "pretrain_32_resume.pth"
    state = load_file(file)
    del state["settings"]["ema"], state["config"]["router_z_alpha"], state["progress"]["skip"]
    torch.save(state, file)
    for changes, words in (({"ema": 0.5}, "ema 0.0 there"), ({"shape": {"router_z_alpha": 0.1}}, "router_z_alpha 0.0")):
        with pytest.raises(ValueError, match=words):
            train(tmp_path, max_steps=6, **changes)
    train(tmp_path, max_steps=6)


@pytest.mark.parametrize(("keep", "steps"), [(1, {10}), (2, {8, 10}), (3, {4, 8, 10}), (9, {4, 8, 10})])
def test_as_many_states_are_kept_as_were_asked_for(tmp_path, keep, steps):
    train(tmp_path, keep_last=keep)
    files = [tmp_path / "pretrain_32_resume.pth", *tmp_path.glob("kept/*_resume_*.pth")]
    assert {load_file(f)["progress"]["step"] for f in files} == steps and len(files) == len(steps)
    assert load_file(files[0])["progress"]["step"] == 10


def test_fewer_states_are_kept_once_fewer_are_asked_for(tmp_path):
    train(tmp_path, keep_last=3, max_steps=8)
    train(tmp_path, keep_last=1, max_steps=10)
    assert not list(tmp_path.glob("kept/*_resume_*.pth"))


def test_weights_are_kept_for_good_every_so_many_steps(tmp_path):
    whole = train(tmp_path / "a", keep_every=5)
    kept = {p.name for p in (tmp_path / "a" / "kept").iterdir() if "step" in p.name}
    assert kept == {f"pretrain_32_step{n}{s}" for n in (5, 10) for s in (".pth", ".json")}
    model, about = load_model(tmp_path / "a" / "kept" / "pretrain_32_step5.pth")
    assert about["step"] == 5 and difference(whole, model.state_dict()) > 0
    assert equal(whole, load_model(tmp_path / "a" / "kept" / "pretrain_32_step10.pth")[0].state_dict())


def test_a_fresh_run_forgets_all_states_of_the_one_before(tmp_path, monkeypatch):
    train(tmp_path, keep_last=3)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", killed)
        train(tmp_path, fresh=True)
    assert not list(tmp_path.rglob("*_resume*.pth"))


# ---- signals ---------------------------------------------------------------------------------------------------------
def test_sigusr1_saves_at_once_and_training_goes_on_bit_equal(tmp_path, capsys):
    whole = train(tmp_path / "a", save_interval=100)
    seen = []

    def signalled(model, batch):
        seen.append(1)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        if len(seen) == 6:
            assert load_file(tmp_path / "b" / "pretrain_32_resume.pth")["progress"]["step"] == 2
        return language_model_loss(model, batch)

    assert equal(whole, train(tmp_path / "b", loss_fn=signalled, save_interval=100))
    assert "pretrain_32.pth at step 2, as SIGUSR1 asked; training goes on" in capsys.readouterr().out


def test_a_step_of_many_micro_batches_does_not_delay_leaving(tmp_path):
    seen = []

    def signalled(model, batch):
        seen.append(1)
        if len(seen) == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return language_model_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", loss_fn=signalled, batch_size=1, accumulation_steps=32)
    assert len(seen) == 40 and load_file(tmp_path / "b" / "pretrain_32_resume.pth")["progress"]["step"] == 1
    again = train(tmp_path / "b", batch_size=1, accumulation_steps=32)
    assert equal(train(tmp_path / "a", batch_size=1, accumulation_steps=32), again)


def test_stopped_before_its_first_step_a_fresh_run_leaves_the_one_before_alone(tmp_path, capsys):
    train(tmp_path, max_steps=4)
    before = (tmp_path / "pretrain_32_resume.pth").read_bytes()

    def signalled(model, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return language_model_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss_fn=signalled, fresh=True)
    assert "nothing to save yet" in capsys.readouterr().out
    assert (tmp_path / "pretrain_32_resume.pth").read_bytes() == before


# ---- the mean of the weights -----------------------------------------------------------------------------------------
def test_the_saved_weights_are_the_running_mean_by_its_formula(tmp_path):
    path, snapshots = tmp_path / "run", []

    def noting(model, batch):
        if model.training:
            snapshots.append({n: p.detach().double().clone() for n, p in model.named_parameters()})
        return language_model_loss(model, batch)

    train(path, ema=0.4, accumulation_steps=1, max_steps=6, loss_fn=noting)
    last = load_file(path / "pretrain_32_resume.pth")["model"]
    mean = snapshots[0]
    for step, weights in enumerate([*snapshots[1:], {n: last[n].double() for n in mean}], 1):
        decay = min(0.4, (1 + step) / (10 + step))
        mean = {n: decay * mean[n] + (1 - decay) * weights[n] for n in mean}
    saved = load_model(path / "pretrain_32.pth")[0]
    assert max((mean[n] - p).abs().max().item() for n, p in saved.named_parameters()) < 1e-6
    assert difference(last, saved.state_dict()) > 1e-4


def test_a_run_with_a_mean_that_is_stopped_ends_bit_equal(tmp_path):
    seen = []

    def dies_in_step_7(model, batch):
        seen.append(1)
        if len(seen) == 14:
            raise OSError("power cut")
        return language_model_loss(model, batch)

    train(tmp_path / "a", ema=0.9)
    with pytest.raises(OSError, match="power cut"):
        train(tmp_path / "b", ema=0.9, loss_fn=dies_in_step_7)
    train(tmp_path / "b", ema=0.9)
    a, b = (load_model(tmp_path / x / "pretrain_32.pth")[0].state_dict() for x in "ab")
    assert equal(a, b)
    with pytest.raises(ValueError, match=r"ema 0\.9 there, 0\.0 now"):
        train(tmp_path / "a", max_steps=12)


# ---- knowing ---------------------------------------------------------------------------------------------------------
def test_a_profile_names_the_ten_dearest_operations_and_leaves_a_trace(tmp_path, capsys):
    whole = train(tmp_path / "a")
    assert equal(whole, train(tmp_path / "b", profile=2))
    said = capsys.readouterr().out
    assert "Self CPU %" in said and "aten::mm" in said and "pretrain_32_trace.json.gz" in said
    assert (tmp_path / "b" / "pretrain_32_trace.json.gz").stat().st_size > 1000


def test_the_log_tells_memory_and_waiting(tmp_path):
    train(tmp_path)
    (first, *_) = [json.loads(x) for x in open(tmp_path / "pretrain_32.jsonl", encoding="utf-8")]
    assert 0 <= first["data_wait"] <= 1 and first["peak_memory"] > 1e8


def test_a_clock_that_is_set_back_changes_neither_weights_nor_speeds(tmp_path, monkeypatch):
    whole, calls = train(tmp_path / "a"), []

    def set_back():
        calls.append(1)
        return 2e9 - 3600.0 * len(calls)

    monkeypatch.setattr(time, "time", set_back)
    assert equal(whole, train(tmp_path / "b"))
    lines = [json.loads(x) for x in open(tmp_path / "b" / "pretrain_32.jsonl", encoding="utf-8")]
    assert all(r["tokens_per_second"] > 0 and r["seconds_left"] >= 0 for r in lines)


def test_a_mean_of_adapters_is_merged_and_saved(tmp_path):
    """4-lora_sft.py --ema: what is saved beside and inside the checkpoint is the mean, the base stays as it was."""
    torch.manual_seed(0)
    model = add_lora(Transformer(LMConfig(**SHAPE)), LoRAConfig(rank=2))
    base = {k: v.clone() for k, v in model.state_dict().items() if "lora" not in k}
    rows = Rows()
    cfg = settings(tmp_path, ema=0.5, learning_rate=1e-2)
    saved = {}

    def noting(path, model, description):
        saved.update({k: v.clone() for k, v in model.state_dict().items()})

    loop.fit(model, CPU, cfg, "lora_x", ByteVocabulary(), Data(rows, np.arange(103)), save_weights=noting)
    now = model.state_dict()
    assert equal(base, {k: saved[k] for k in base})
    moved = [k for k in now if "lora" in k]
    assert moved and all((saved[k] - now[k]).abs().max() > 0 for k in moved if "lora_B" in k)
