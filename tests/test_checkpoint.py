"""Checkpoints: whole or absent, strict, and understandable without a description."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from model.LMConfig import LMConfig
from model.model import Transformer
from trainer import checkpoint
from trainer.checkpoint import (
    checkpoint_path,
    infer_config,
    latest_stage,
    load_file,
    load_model,
    newest,
    resume_path,
    save_weights,
)


class Vocabulary:
    hash, path = "abc", "somewhere"


def save(folder, stage="pretrain", **shape):
    cfg = LMConfig(**{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 300, **shape})
    torch.manual_seed(0)
    model = Transformer(cfg).eval()
    path = checkpoint_path(folder, stage, cfg)
    save_weights(path, model, checkpoint.describe(cfg, stage, Vocabulary, step=3))
    return path, model


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_what_is_saved_is_loaded_with_its_shape(tmp_path, moe):
    path, model = save(tmp_path, use_moe=moe, max_seq_len=77, rope_theta=5e4)
    loaded, about = load_model(path)
    assert path.name == ("pretrain_64_moe.pth" if moe else "pretrain_64.pth")
    assert loaded.cfg == model.cfg and about["stage"] == "pretrain" and about["step"] == 3
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert not loaded.training


def test_the_file_is_a_plain_state_dict_and_stores_the_tied_matrix_once(tmp_path):
    path, model = save(tmp_path)
    state = torch.load(path, weights_only=True)
    assert set(state) == set(model.state_dict()) and all(t.dtype == torch.float32 for t in state.values())
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    assert path.stat().st_size < model.n_params() * 4 * 1.1


@pytest.mark.parametrize(
    "shape",
    [
        {"dim": 512, "n_heads": 16, "n_kv_heads": 8, "n_layers": 1},
        {"dim": 512, "n_heads": 16, "n_kv_heads": 8, "n_layers": 1, "use_moe": True, "n_routed_experts": 3},
        {"dim": 768, "n_heads": 16, "n_kv_heads": 8, "n_layers": 2, "use_moe": True, "n_shared_experts": False},
    ],
)
def test_a_v1_file_without_description_tells_its_shape(tmp_path, shape):
    path, model = save(tmp_path, **shape)
    path.with_suffix(".json").unlink()
    loaded, _ = load_model(path)
    assert dataclasses.replace(loaded.cfg) == model.cfg


def test_prefixes_of_ddp_and_compile_are_taken_off(tmp_path):
    path, model = save(tmp_path)
    torch.save({f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}, path)
    assert load_model(path)[0].cfg == model.cfg


def test_a_file_that_is_no_minimind_checkpoint_is_named(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"no MiniMind checkpoint.*tok_embeddings.*conv\.weight"):
        load_model(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {"tok_embeddings.weight": 3}, {3: torch.zeros(3)}]
)
def test_a_file_that_is_no_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no weights by name"):
        load_model(tmp_path / "x.pth")


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_truncated_checkpoint_is_refused_with_the_next_step(tmp_path, keep):
    path, _ = save(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep >= 0 else len(whole) + keep])
    with pytest.raises(ValueError, match="not a whole checkpoint.*delete it and run its stage again"):
        load_model(path)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"tok_embeddings.weight": Evil()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_file(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_another_shape_names_the_first_differing_tensor(tmp_path):
    path, _ = save(tmp_path)
    with pytest.raises(ValueError, match=r"another shape.*layers\.2\.attention\.wq\.weight: not in the file"):
        load_model(path, n_layers=3)
    with pytest.raises(ValueError, match=r"tok_embeddings.weight: \(300, 64\) in the file, \(301, 64\) in the model"):
        load_model(path, vocab_size=301)


def test_a_missing_checkpoint_lists_what_is_there_and_how_to_make_it(tmp_path):
    save(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_model(tmp_path / "full_sft_512.pth")
    assert "there: pretrain_64.pth" in str(error.value) and "python 3-full_sft.py" in str(error.value)


def test_the_newest_checkpoint_is_found_and_resume_files_are_not(tmp_path):
    first, _ = save(tmp_path)
    second, _ = save(tmp_path, stage="full_sft")
    torch.save({}, resume_path(second))
    os.utime(first, ns=(1, 1))
    assert newest(tmp_path) == second and newest(tmp_path, ["pretrain"]) == first
    with pytest.raises(FileNotFoundError, match="there: none"):
        newest(tmp_path / "empty")
    second.unlink()  # a run that was killed between its two files
    assert latest_stage(tmp_path, ["full_sft", "pretrain"]) == first


@pytest.mark.parametrize("name", ["tokenizer.json", "notes.txt"])
def test_what_was_never_a_checkpoint_is_not_advised_to_be_deleted(tmp_path, name):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} is not a checkpoint.*give a .pth file") as told:
        load_file(tmp_path / name)
    assert "delete" not in str(told.value)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rubbish(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old", encoding="utf-8")

    def fails(file):
        file.write(b"half of the ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*last save is kept.*Make room"):
        checkpoint.write_atomically(target, fails)
    assert target.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_second_ctrl_c_during_a_save_leaves_no_rubbish(tmp_path):
    def interrupted(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(tmp_path / "x.pth", interrupted)
    assert os.listdir(tmp_path) == []


def test_a_tokenizer_on_another_drive_is_recorded_by_its_whole_path(tmp_path, monkeypatch):
    def on_windows(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr("os.path.relpath", on_windows)
    path, _ = save(tmp_path)
    recorded = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["tokenizer"]
    assert recorded == os.path.abspath(Vocabulary.path)


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounting a tmpfs needs root")
def test_a_full_disk_keeps_the_old_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        checkpoint.write_atomically(disk / "a.pth", lambda f: torch.save({"x": torch.zeros(1000)}, f))
        with pytest.raises(OSError, match=r"could not write.*MB free.*last save is kept"):
            checkpoint.write_atomically(disk / "a.pth", lambda f: torch.save({"x": torch.zeros(10_000_000)}, f))
        assert load_file(disk / "a.pth")["x"].shape == (1000,) and os.listdir(disk) == ["a.pth"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_out_dir_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OSError, match="cannot write to out_dir .*--out_dir"):
        checkpoint.prepare_out_dir(tmp_path / "file" / "out")


def test_infer_config_reads_expert_counts():
    state = Transformer(LMConfig(dim=512, n_layers=1, use_moe=True, n_routed_experts=12)).state_dict()
    assert infer_config(state).n_routed_experts == 12


def test_the_description_is_valid_json_with_versions(tmp_path):
    path, _ = save(tmp_path)
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["versions"]["torch"] == torch.__version__ and about["config"]["dim"] == 64


def test_a_checkpoint_is_opened_with_its_own_tokenizer_and_no_other(tmp_path, tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    cfg = LMConfig(dim=64, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=tokenizer.vocab_size)
    path = checkpoint_path(tmp_path, "pretrain", cfg)
    save_weights(path, Transformer(cfg), checkpoint.describe(cfg, "pretrain", tokenizer))
    model, opened, about = checkpoint.open_checkpoint(path)
    assert opened.hash == tokenizer.hash == about["tokenizer_hash"] and model.cfg == cfg
    with pytest.raises(ValueError, match="made with another tokenizer.*--tokenizer"):
        checkpoint.open_checkpoint(path, tokenizer_dir=DEFAULT_TOKENIZER)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    path, _ = save(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="has 6400 ids.*only 300"):
        checkpoint.open_checkpoint(path)
