"""What a run tells about itself: a profile, memory, waiting, speeds that no clock can spoil."""

import json
import time

import pytest

from tests.test_training import equal, train
from trainer import metrics, run

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_peak_that_was_measured_too_low_is_measured_again(tmp_path, monkeypatch):
    for module, peak in ((run, 1.0), (metrics, 1e15)):
        monkeypatch.setattr(module, "peak_flops", lambda device, dtype, peak=peak: peak)
    train(tmp_path)
    lines = [json.loads(x) for x in open(tmp_path / "pretrain_32.jsonl", encoding="utf-8")]
    assert lines and all(0 < r["mfu"] < 1 for r in lines if "mfu" in r)


def test_a_clock_that_is_set_back_changes_neither_weights_nor_speeds(tmp_path, monkeypatch):
    whole, calls = train(tmp_path / "a"), []

    def set_back():
        calls.append(1)
        return 2e9 - 3600.0 * len(calls)

    monkeypatch.setattr(time, "time", set_back)
    assert equal(whole, train(tmp_path / "b"))
    lines = [json.loads(x) for x in open(tmp_path / "b" / "pretrain_32.jsonl", encoding="utf-8")]
    assert all(r["tokens_per_second"] > 0 and r["seconds_left"] >= 0 for r in lines)
