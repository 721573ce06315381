"""Recorded curves: which runs they are compared with, and what is said of them."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import make_reference
from model.chat import load_tokenizer
from model.LMConfig import PRESETS, LMConfig, config_for
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, settings
from trainer import reference
from trainer.loop import fit
from trainer.metrics import reference_line, training_line, validation_line
from trainer.reference import BAND, TRACKS, judged, like_steps, loss_at, reference_for
from trainer.run import Data

CURVE = {
    "tokens_per_step": 1000,
    "file": "a.json",
    "data": "text",
    "tokens": [1000, 2000, 4000],
    "val_loss": [8.0, 7.0, 6.0],
}
RECORD = {"step": 3, "total": 9, "loss": 7.7, "val_loss": 7.7, "lr": 1e-3, "norm": 1.0, "tokens_per_second": 1.0}
RECORD |= {"mfu": 0.1, "seconds_left": 1.0}


def test_between_its_points_a_curve_is_straight_and_outside_it_says_nothing():
    assert [loss_at(CURVE, n) for n in (1000, 1500, 2000, 3000, 4000)] == pytest.approx([8.0, 7.5, 7.0, 6.5, 6.0])
    assert [loss_at(CURVE, n) for n in (999, 4001)] == [None, None]
    assert judged(CURVE, 5000, 3.0) == {} == judged(None, 1500, 3.0)


@pytest.mark.parametrize(
    ("loss", "words"), [(7.5, TRACKS), (7.5 * (1 + BAND) - 0.01, TRACKS), (9.0, "20% above it"), (6.0, "20% below it")]
)
def test_a_loss_far_from_the_curve_is_told_on_the_lines_of_the_run(loss, words):
    told = judged(CURVE, 1500, loss)
    assert told == {"reference_loss": pytest.approx(7.5), "tracks": words}
    assert f"reference 7.50: {words}" in validation_line(RECORD | told)
    assert (f"reference 7.50: {words}" in training_line(RECORD | told)) == (words != TRACKS)


@pytest.mark.parametrize(("tokens", "compared"), [(499, False), (500, True), (2000, True), (2001, False)])
def test_a_run_with_steps_of_another_size_is_not_compared(tokens, compared):
    assert like_steps(CURVE, tokens) == compared
    line = reference_line(CURVE, tokens)
    assert ("a loss within 8% of it is normal" in line) == compared
    assert (f"not compared, its steps are of 1,000 tokens and these of {tokens:,}" in line) != compared


def test_only_a_run_of_the_same_shape_stage_and_tokenizer_is_compared(tmp_path, monkeypatch):
    cfg = config_for("tiny")
    shape = {name: getattr(cfg, name) for name in reference.SHAPE}
    for name, tokens in (("a", 1000), ("b", 50_000)):
        curve = {**CURVE, "shape": shape, "tokenizer_hash": "x", "tokens_per_step": tokens}
        (tmp_path / f"{name}.json").write_text(json.dumps(curve), encoding="utf-8")
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    found = [reference_for(cfg, "pretrain", "x", tokens)["file"] for tokens in (1, 7000, 7100, 10**9)]
    assert found == ["a.json", "a.json", "b.json", "b.json"]  # sqrt(1,000 x 50,000) = 7,071
    others = [(cfg, "full_sft", "x"), (cfg, "pretrain", "y"), (config_for("small"), "pretrain", "x")]
    assert not any(reference_for(*other, 1000) for other in others)


def test_a_run_becomes_a_curve_that_its_own_repetition_tracks(tmp_path, monkeypatch, capsys):
    def run(out_dir, **changed):
        torch.manual_seed(3)
        rows = Rows()
        data = Data(rows, np.arange(90), rows, np.arange(90, 103))
        fit(
            Transformer(LMConfig(**SHAPE)),
            CPU,
            settings(out_dir, eval_interval=2, **changed),
            "pretrain",
            ByteVocabulary(),
            data,
        )

    run(tmp_path / "first")
    flags = ["--model", str(tmp_path / "first" / "pretrain_32.pth"), "--data", "noise", "--name", "toy"]
    with monkeypatch.context() as patch:
        patch.setattr(reference, "FOLDER", tmp_path / "curves")
        patch.setattr(make_reference, "FOLDER", tmp_path / "curves")
        make_reference.main(flags)
        capsys.readouterr()
        run(tmp_path / "second")
    said = capsys.readouterr().out
    assert "reference toy.json: noise" in said and said.count(f": {TRACKS}") == 5
    with monkeypatch.context() as patch:
        patch.setattr(reference, "FOLDER", tmp_path / "curves")
        run(tmp_path / "third", batch_size=2, accumulation_steps=1)
    said = capsys.readouterr().out
    assert "not compared, its steps are of" in said and TRACKS not in said
    lines = [json.loads(line) for line in open(tmp_path / "second" / "pretrain_32.jsonl", encoding="utf-8")]
    for r in lines:
        if "val_loss" in r:
            assert r["reference_loss"] == pytest.approx(r["val_loss"])


def test_the_recorded_curves_are_of_presets_and_the_projects_own_tokenizer():
    files = sorted(reference.FOLDER.glob("*.json"))
    assert files
    for file in files:
        curve = json.loads(file.read_text(encoding="utf-8"))
        preset = file.stem.partition("_")[0]  # behind it, what is special
        cfg = config_for(preset)
        assert preset in PRESETS and curve["shape"] == {n: getattr(cfg, n) for n in reference.SHAPE}
        assert curve["tokenizer_hash"] == load_tokenizer().hash
        assert curve["tokens_per_step"] <= curve["tokens"][0]
        assert curve["val_loss"][0] < math.log(6400) and sorted(curve["tokens"]) == curve["tokens"]
