"""The script that checks a GPU, on a CPU: what it compares holds there, and what fails is told."""

import json
import warnings

import pytest
import torch

from benchmarks import gpu_check, gpu_parts

pytestmark = pytest.mark.usefixtures("one_thread")
FLAGS = ["--data_path", "none.bin", "--device", "cpu", "--preset", "tiny"]


@pytest.mark.parametrize("part", ["chunks", "masks", "experts"])
def test_what_is_compared_is_equal_on_a_cpu_and_another_model_is_not(part, capsys, monkeypatch):
    gpu_parts.PARTS[part](gpu_check.parse(FLAGS))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines and all(line["holds"] and line["figure"] < 1e-4 for line in lines[:2])
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x: x * torch.rand_like(x))  # no two passes are the same
    gpu_parts.PARTS[part](gpu_check.parse(FLAGS))
    assert not any(json.loads(line)["holds"] for line in capsys.readouterr().out.splitlines())


def test_steps_of_runs_are_taken_where_waits_are_counted(capsys):
    gpu_parts.waits(gpu_check.parse([*FLAGS, "--batch_size", "4"]))
    whats = [json.loads(line)["what"] for line in capsys.readouterr().out.splitlines()]
    assert whats == [f"waits in a step, {how}" for how in ("adamw", "muon", "muon, experts")]


def test_what_makes_the_host_wait_is_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work():
        assert modes == ["warn"]
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)  # as PyTorch does in this mode
        warnings.warn("something else", stacklevel=1)

    assert gpu_parts.waits_in(work, torch.device("cuda")) == 1
    assert modes == ["warn", "default"]


def test_distance_is_relative_and_of_all_tensors_together():
    a, b = [torch.tensor([3.0]), torch.tensor([4.0, 0.0])], [torch.tensor([3.0]), torch.tensor([4.0, 5.0])]
    assert gpu_parts.apart(a, b) == pytest.approx(5 / 50**0.5)


def test_a_part_that_does_not_end_is_told_and_ends_the_script_with_an_error(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main([*FLAGS, "--parts", "masks", "--patience", "0"])
    assert "masks did not end well:\nnot ended after 0 s" in capsys.readouterr().out
