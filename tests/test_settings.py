"""Settings, schedules, devices, number formats, FLOPs and log lines."""

import dataclasses
import json
import math
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.LMConfig import LMConfig
from model.model import Transformer
from trainer import runtime
from trainer.config import FREE, PreferenceConfig, PretrainConfig, SFTConfig, TrainConfig, changed_settings
from trainer.flops import flops_per_token, peak_flops
from trainer.metrics import Log, duration, start_wandb, training_line
from trainer.runtime import Runtime, choose_compile, choose_device, choose_dtype, seed_step
from trainer.schedule import lr_factor, tail_steps, with_tail

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


# ---- settings ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("weight_decay", math.nan),
        ("learning_rate", math.inf),
        ("seed", 10**20),
        ("schedule", "steps"),
        ("batch_size", 0),
        ("max_steps", 0),
        ("learning_rate", 0.0),
        ("val_fraction", 1.5),
        ("grad_clip", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"--{field} is {value}"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "--label_smoothing 0.1 has no effect with --loss ipo"),
        ({"loss": "simpo", "length_normalised": True}, "--length_normalised True has no effect with --loss simpo"),
        ({"loss": "sigmoid", "gamma": 0.5}, "--gamma 0.5 has no effect with --loss sigmoid"),
        ({"rank": 16}, "--rank 16 has no effect without --use_lora"),
        ({"targets": "wq", "rslora": True}, "--targets wq, --rslora True has no effect without --use_lora"),
    ],
    ids=str,
)
def test_a_flag_of_another_loss_or_mode_is_refused_and_not_ignored(settings, words):
    with pytest.raises(ValueError, match=words):
        PreferenceConfig(**settings)


def test_flags_of_their_own_loss_and_mode_are_taken():
    PreferenceConfig(loss="simpo", gamma=0.5, beta=3.0)
    PreferenceConfig(use_lora=True, rank=16, label_smoothing=0.1, length_normalised=True)
    SFTConfig(replay=0.1, replay_path="x.bin")
    with pytest.raises(ValueError, match="--replay_path x.bin has no effect without --replay"):
        SFTConfig(replay_path="x.bin")


def test_what_is_free_to_change_is_a_setting_and_the_rest_is_compared():
    names = {f.name for cls in (SFTConfig, PretrainConfig) for f in dataclasses.fields(cls)}
    assert names >= FREE and {"learning_rate", "seed", "optimizer", "schedule", "val_fraction"} <= names - FREE
    a = dataclasses.asdict(TrainConfig())
    assert changed_settings(a, {**a, "seed": 2, "epochs": 9}) == {"seed": (1337, 2)}


# ---- schedule ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_the_rate_rises_straight_in_warmup_and_never_leaves_0_to_1(kind):
    factors = [lr_factor(s, 200, kind, 20) for s in range(200)]
    assert factors[:20] == pytest.approx([(s + 1) / 21 for s in range(20)])
    assert factors[20] == pytest.approx(1.0) and all(0 < f <= 1 for f in factors)
    assert all(a >= b - 1e-12 for a, b in zip(factors[20:], factors[21:]))


def test_each_schedule_ends_where_it_says():
    end = {k: lr_factor(999, 1000, k, 10, floor=0.1, anneal_fraction=0.2) for k in ("cosine", "linear", "constant")}
    assert end == pytest.approx({"cosine": 0.1, "linear": 0.1, "constant": 1.0})
    assert lr_factor(504, 1000, "linear", 10) == pytest.approx(1 - 0.9 * 494 / 989)
    assert lr_factor(504, 1000, "cosine", 10) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 494 / 989)))


def test_wsd_is_flat_and_then_falls_straight_towards_0():
    factors = [lr_factor(s, 1000, "wsd", 10, anneal_fraction=0.2) for s in range(1000)]
    assert set(factors[10:800]) == {1.0}
    steps = [a - b for a, b in zip(factors[800:], factors[801:])]
    assert steps == pytest.approx([1 / 201] * 199) and factors[-1] == pytest.approx(1 / 201)


def test_a_short_run_is_not_all_warmup_and_an_unknown_schedule_is_refused():
    assert lr_factor(1, 10, "constant", 500) == 1.0 and lr_factor(0, 1, "cosine", 20) == 1.0
    with pytest.raises(ValueError, match="'step'.*cosine, linear, constant, wsd"):
        lr_factor(5, 10, "step", 0)


@pytest.mark.parametrize("steps", [1, 7, 80, 999])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_a_tail_comes_behind_all_steps_that_were_asked_for(steps, share):
    total = with_tail(steps, share)
    assert total - tail_steps(total, share) == steps and total - steps == max(1, round(total * share))


# ---- devices and formats -------------------------------------------------------------------------------------------
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is asked for is glibc's")
def test_on_a_cpu_freed_memory_is_kept_for_the_next_step():
    resident = lambda: int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # noqa: E731
    choose_device("cpu")
    tensor = torch.ones(64 << 20)  # 256 MiB, each page touched
    held = resident()
    del tensor
    assert resident() > held - 50


def test_cuda_asked_for_and_absent_is_an_error_with_the_next_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ValueError, match=r"--device cuda.*sees no CUDA device.*--device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "xpu", "meta"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ValueError, match=f"--device {name}"):
        choose_device(name)


@pytest.mark.parametrize(
    ("device", "bf16", "chosen"),
    [(CPU, True, "bfloat16"), (CPU, False, "float32"), (CUDA, True, "bfloat16"), (CUDA, False, "float16")],
)
def test_auto_takes_the_best_format_that_the_hardware_has(monkeypatch, device, bf16, chosen):
    monkeypatch.setattr(runtime, "has_bf16", lambda d: bf16)
    assert choose_dtype("auto", device)[0] == getattr(torch, chosen)


def test_a_format_that_the_hardware_lacks_is_refused_and_never_replaced(monkeypatch):
    monkeypatch.setattr(runtime, "has_bf16", lambda d: False)
    with pytest.raises(ValueError, match="bfloat16.*no bf16 units.*float32"):
        choose_dtype("bfloat16", CPU)
    with pytest.raises(ValueError, match="float16 needs a CUDA device"):
        choose_dtype("float16", CPU)
    with pytest.raises(ValueError, match="--dtype int8 is unknown"):
        choose_dtype("int8", CPU)
    monkeypatch.setattr(runtime, "has_bf16", lambda d: True)
    assert choose_dtype("bf16", CPU)[0] == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_format_asked_for_is_the_one_that_runs(dtype):
    with Runtime(CPU, dtype).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_compiling_pays_in_long_runs_only_and_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: "/usr/bin/g++")
    assert choose_compile("auto", CPU, 5000)[0] and not choose_compile("auto", CPU, 20)[0]
    assert choose_compile("on", CPU, 20)[0] and not choose_compile("off", CPU, 5000)[0]
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    assert not choose_compile("auto", CPU, 5000)[0]
    with pytest.raises(ValueError, match="compiling needs a compiler"):
        choose_compile("on", CPU, 20)


def test_every_step_and_rank_has_its_own_random_numbers():
    def first(*where):
        seed_step(*where)
        return torch.rand(1).item()

    draws = [first(1, step, rank) for step in range(20) for rank in range(4)]
    assert len(set(draws)) == 80 and first(1, 7, 2) == draws[7 * 4 + 2]


# ---- arithmetic ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("moe", [False, True])
def test_flops_equal_six_per_working_weight_and_attention(moe):
    cfg = LMConfig(use_moe=moe)
    with torch.device("meta"):
        model = Transformer(cfg)
    working = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and ".experts." not in n)
    working += sum(p.numel() for n, p in model.named_parameters() if ".experts.0." in n or ".experts.1." in n)
    assert flops_per_token(cfg, 512) == 6 * working + 12 * 8 * 512 * 512


def test_peak_of_a_known_gpu_is_the_makers_figure_and_else_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: "NVIDIA H200")
    assert peak_flops(CUDA, torch.bfloat16) == 989e12
    assert 1e9 < peak_flops(CPU, torch.float32) < 1e14


# ---- lines, files, wandb -------------------------------------------------------------------------------------------
RECORD = {
    **{"step": 1200, "total": 40000, "loss": 3.4119, "lr": 4.9e-4, "norm": 0.81, "tokens_per_second": 412310.4},
    **{"mfu": 0.3821, "seconds_left": 6720.0},
}


def test_the_training_line_is_the_designs():
    line = "step 1200/40000  loss 3.412  lr 4.9e-04  norm 0.81  412,310 tok/s  mfu 38.2%  left 1h52m"
    assert training_line(RECORD) == line
    assert (
        training_line({**RECORD, "expert_share": [0.2, 0.3], "skipped_steps": 2})
        == line + "  experts 20%-30%  skipped 2"
    )


@pytest.mark.parametrize(("seconds", "text"), [(9, "9s"), (75, "1m15s"), (4125, "1h08m"), (59.7, "1m00s")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_log_is_cut_back_to_where_the_run_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (2, 4, 6)) + '{"step": 8, "lo', encoding="utf-8")
    Log(Runtime(CPU, torch.float32), path, first_step=4).record("line", {"step": 6, "again": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2},
        {"step": 4},
        {"step": 6, "again": 1},
    ]


def test_only_the_main_rank_writes(tmp_path, capsys):
    Log(Runtime(CPU, torch.float32, rank=1, world=2), tmp_path / "a.jsonl").record("line", {"step": 1})
    assert not (tmp_path / "a.jsonl").exists() and capsys.readouterr().out == ""


def test_wandb_offline_writes_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = TrainConfig(use_wandb=True, out_dir=str(tmp_path))
    here = Runtime(CPU, torch.float32)
    log = Log(here, tmp_path / "a.jsonl", wandb_run=start_wandb(cfg, here, {"settings": {}}))
    log.record("line", {"step": 1, "loss": 2.0})
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_wandb_without_login_says_what_to_do_and_training_goes_on(tmp_path, monkeypatch, capsys):
    import wandb

    def no_login(**kwargs):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", no_login)
    assert start_wandb(TrainConfig(use_wandb=True), Runtime(CPU, torch.float32), {}) is None
    said = capsys.readouterr().out
    assert re.search("wandb did not start.*wandb login.*WANDB_MODE=offline.*goes on", said)


def test_wandb_is_off_unless_asked_for_and_on_one_rank():
    assert start_wandb(TrainConfig(), Runtime(CPU, torch.float32), {}) is None
    assert start_wandb(SimpleNamespace(use_wandb=True), Runtime(CPU, torch.float32, rank=1, world=2), {}) is None


def test_the_rate_of_pretraining_is_the_optimizers_unless_it_is_typed():
    assert [TrainConfig(optimizer=name).learning_rate for name in ("adamw", "muon")] == [1e-3, 4e-3]
    assert TrainConfig(optimizer="muon", learning_rate=2e-3).learning_rate == 2e-3
