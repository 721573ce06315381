"""The saved states of a run: a damaged one is passed over, some are kept, none is lost."""

import numpy as np
import pytest
import torch

from model.LMConfig import LMConfig
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, difference, equal, settings, train
from trainer import history, loop
from trainer.checkpoint import load_file, load_model
from trainer.run import Data, Run

pytestmark = pytest.mark.usefixtures("one_thread")


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
