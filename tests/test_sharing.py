"""One run on several devices, whole on each or shared out: the same weights, however many there are."""

import os
import pickle
import shutil
import signal

import numpy as np
import pytest
import torch

from model.LMConfig import LMConfig
from model.model import Transformer
from tests.ranks import on_ranks
from tests.test_training import MUON_ROUNDS, SHAPE, ByteVocabulary, Rows, difference, share_of_the_way
from tests.warm import meeting_place
from trainer import loop, parallel, sharded
from trainer.checkpoint import load_file, load_model
from trainer.config import TrainConfig
from trainer.run import Data

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
ROWS_EACH = {1: (12, 1), 2: (3, 2), 3: (4, 1)}  # world: rows in a forward pass, passes in a step; 12 rows a step


def train(out_dir, shape, changes):
    """One start of a run; in every rank, or in a lone process."""
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE, **shape))
    fixed = {"device": "cpu", "dtype": "float32", "compile": "off", "num_workers": 0, "schedule": "constant"}
    fixed |= {"eval_interval": 3, "log_interval": 2, "max_steps": 6}
    cfg = TrainConfig(out_dir=str(out_dir), **{**fixed, **changes})
    rows = Rows()
    with parallel.joined(cfg) as runtime:
        cfg.batch_size, cfg.accumulation_steps = ROWS_EACH[runtime.world]
        loop.fit(model, runtime, cfg, "pretrain", ByteVocabulary(), Data(rows, np.arange(40), rows, np.arange(90, 103)))


def all_runs(folder, ports):
    """Every run of two ranks that the tests look at, one after the other: starting a process costs seconds."""
    step, loss_fn = loop.step, loop.fit.__defaults__
    for (name, shape, changes, prepare), port in zip(RUNS, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        prepare(changes)
        train(folder / name, shape, changes)
        loop.step, loop.fit.__defaults__ = step, loss_fn


def nothing(changes):
    """Leaves a run as it is."""


def strike_one_rank(changes):
    """Makes the weights of rank 1 NaN before the fifth step."""
    real, seen = loop.step, []

    def striking(run, *given):
        seen.append(1)
        if len(seen) == 5:
            for p in run.model.parameters():
                own = p._local_tensor if changes["parallel"] == "fsdp" else p
                own.data.mul_(float("nan") if run.runtime.rank == 1 else 1.0)
        return real(run, *given)

    loop.step = striking


def ask_for_a_save(changes):
    """Sends SIGUSR1 in the first of the two micro-batches of the second step."""
    real, seen = loop.language_model_loss, []

    def signalling(model, batch):
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(model, batch)

    loop.fit.__defaults__ = (signalling, *loop.fit.__defaults__[1:])


def odd_loss(on_ranks):
    """What makes the loss of the third step infinite on some ranks, and no gradient anywhere."""

    def prepare(changes):
        real, seen = loop.language_model_loss, []

        def odd(model, batch):
            seen.append(1)
            losses = real(model, batch)
            infinite = len(seen) == 5 and int(os.environ["RANK"]) in on_ranks
            return losses._replace(loss=losses.loss + float("inf")) if infinite else losses

        loop.fit.__defaults__ = (odd, *loop.fit.__defaults__[1:])

    return prepare


SHARDED = {"parallel": "fsdp", "sharded_state": True}
EXPERTS = {"use_moe": True, "router_bias_rate": 0.01}
RUNS = [  # name, shape, settings, what happens to it
    ("experts", EXPERTS, {"parallel": "fsdp", "ema": 0.5}, nothing),
    ("muon", {}, {"parallel": "fsdp", "optimizer": "muon"}, nothing),
    ("moving", {}, {"parallel": "fsdp", "ema": 0.5, "max_steps": 3}, nothing),
    ("sharded", EXPERTS, {**SHARDED, "ema": 0.5, "max_steps": 3, "save_interval": 2}, nothing),
    ("muon_sharded", {}, {**SHARDED, "optimizer": "muon", "max_steps": 3, "keep_last": 1}, nothing),
    ("struck_sharded", {}, {**SHARDED, "save_interval": 2}, strike_one_rank),
    ("struck_fsdp", {}, {"parallel": "fsdp", "save_interval": 2}, strike_one_rank),
    ("struck_ddp", {}, {"parallel": "ddp", "save_interval": 2}, strike_one_rank),
    ("odd_on_one", {}, {"parallel": "ddp"}, odd_loss({1})),
    ("odd_on_all", {}, {"parallel": "ddp"}, odd_loss({0, 1})),
    ("asked", {}, {"parallel": "fsdp"}, ask_for_a_save),
    ("not_asked", {}, {"parallel": "fsdp"}, nothing),
]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what two ranks left behind of each run."""
    folder = tmp_path_factory.mktemp("two")
    stores = [meeting_place() for _ in RUNS]
    on_ranks(2, all_runs, folder, [store.port for store in stores])
    return folder


def left_in(folder, shape=()):
    """Weights and description of a run's checkpoint."""
    model, about = load_model(folder / ("pretrain_32_moe.pth" if shape else "pretrain_32.pth"))
    return model.state_dict(), about


def alone(folder, shape=(), **changes):
    """The same of a run in this process."""
    train(folder, dict(shape), changes)
    return left_in(folder, shape)


def test_weights_shared_out_over_ranks_are_those_of_one_device(two_ranks, tmp_path):
    one, about = alone(tmp_path, EXPERTS, ema=0.5)
    two, also = left_in(two_ranks / "experts", EXPERTS)
    assert difference(one, two) < 1e-5 and also["world_size"] == 2
    assert about["val_loss"] == pytest.approx(also["val_loss"], abs=1e-4)


def test_muon_moves_shared_out_matrices_as_whole_ones(two_ranks, tmp_path):
    one, two = alone(tmp_path, optimizer="muon")[0], left_in(two_ranks / "muon")[0]
    torch.manual_seed(3)
    assert share_of_the_way(one, two, Transformer(LMConfig(**SHAPE)).state_dict()) < MUON_ROUNDS


def test_a_run_goes_on_with_other_ranks_and_another_way_to_share_the_model(two_ranks, tmp_path):
    whole, _ = alone(tmp_path / "one", max_steps=8, ema=0.5)
    moving = two_ranks / "moving"
    on_ranks(3, train, moving, {}, {"parallel": "fsdp", "max_steps": 5, "ema": 0.5})
    assert (left_in(moving)[1]["step"], left_in(moving)[1]["world_size"]) == (5, 3)
    moved, about = alone(moving, max_steps=8, ema=0.5)
    assert (about["step"], about["world_size"]) == (8, 1)
    assert difference(whole, moved) < 1e-5
    files = [load_file(folder / "pretrain_32_resume.pth")["optimizers"][0] for folder in (tmp_path / "one", moving)]
    a, b = ([t for p in f["state"].values() for t in p.values()] for f in files)
    assert len(a) == len(b) and all((x - y).abs().max() < 1e-5 for x, y in zip(a, b))


def kept_in(folder):
    """The names of the folders of tensors that a run left behind; one of a step that was saved twice ends with _."""
    return sorted(f.name.rstrip("_") for f in (folder / "kept").iterdir() if f.is_dir())


def test_a_state_in_parts_is_continued_by_any_number_of_ranks(two_ranks, tmp_path):
    whole, _ = alone(tmp_path / "one", EXPERTS, max_steps=8, ema=0.5)
    moving = two_ranks / "sharded"
    small = load_file(moving / "pretrain_32_moe_resume.pth")
    assert not {"model", "average"} & small.keys() and all(o["state"] == {} for o in small["optimizers"])
    assert kept_in(moving) == [f"pretrain_32_moe_resume_step{step}" for step in (2, 3)]  # --keep_last 2
    on_ranks(3, train, moving, EXPERTS, {**SHARDED, "max_steps": 5, "ema": 0.5})
    assert (left_in(moving, EXPERTS)[1]["step"], left_in(moving, EXPERTS)[1]["world_size"]) == (5, 3)
    moved, about = alone(moving, EXPERTS, max_steps=8, ema=0.5)
    assert (about["step"], about["world_size"]) == (8, 1) and difference(whole, moved) < 1e-5
    a, b = (load_file(folder / "pretrain_32_moe_resume.pth")["optimizers"][0] for folder in (tmp_path / "one", moving))
    assert a["state"].keys() == b["state"].keys() and a["param_groups"] == b["param_groups"]
    for number, own in a["state"].items():
        assert all((own[k] - b["state"][number][k]).abs().max() < 1e-5 for k in own)
    assert kept_in(moving) == ["pretrain_32_moe_resume_step5"]  # of the state before, which has a file of its own


def cut_short(newest):
    part = next(newest.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-100])


def with_a_broken_index(newest):
    (newest / ".metadata").write_bytes(bytes((newest / ".metadata").stat().st_size))


def with_a_file_of_the_system(newest):
    (newest / ".DS_Store").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "step"), [(cut_short, 4), (with_a_broken_index, 4), (shutil.rmtree, 4), (with_a_file_of_the_system, 6)]
)
def test_damaged_parts_are_passed_over_for_the_state_before(two_ranks, tmp_path, capsys, harm, step):
    folder = shutil.copytree(two_ranks / "struck_sharded", tmp_path / "copy")
    harm(folder / "kept" / load_file(folder / "pretrain_32_resume.pth")["shards"]["folder"])
    left = folder / "kept" / "pretrain_32_resume_step7"  # by a save that was killed
    left.mkdir()
    run, about = alone(folder, max_steps=8)
    out = capsys.readouterr().out
    assert f"from step {step} of 8" in out and ("damaged   " in out) == (step == 4)
    assert about["step"] == 8 and all(w.isfinite().all() for w in run.values()) and not left.exists()


def fill_the_disk(folder):
    """Trains until the second save finds no room for the part of one rank, which ends all of them."""
    import resource

    real = sharded.dcp.save

    def full(tensors, checkpoint_id):
        if checkpoint_id.endswith("step4") and os.environ["RANK"] == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        real(tensors, checkpoint_id=checkpoint_id)

    sharded.dcp.save = full
    with pytest.raises(OSError, match="could not write .*step4: .*; the states before it are kept"):
        train(folder, {}, {**SHARDED, "save_interval": 2})


def test_a_full_disk_leaves_the_state_before_and_no_parts(tmp_path):
    on_ranks(2, fill_the_disk, tmp_path)
    assert kept_in(tmp_path) == ["pretrain_32_resume_step2"]
    assert load_file(tmp_path / "pretrain_32_resume.pth")["progress"]["step"] == 2


def test_parts_need_a_model_that_is_shared_out(tmp_path):
    with pytest.raises(ValueError, match="without --parallel fsdp"):
        TrainConfig(out_dir=str(tmp_path), sharded_state=True)


def test_an_index_that_could_run_code_is_refused(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="builtins.print has no place in it"):
        sharded.Reader(tmp_path).read_metadata()
    sharded.dcp.save({"model.weight": {"no": "tensor"}}, checkpoint_id=str(tmp_path), no_dist=True)
    with pytest.raises(ValueError, match="BytesStorageMetadata has no place"):  # which DCP reads as a pickle
        sharded.Reader(tmp_path).read_metadata()


def save_apart(folder):
    """Saves where ranks do not see each other's files."""
    with parallel.joined(TrainConfig(device="cpu", dtype="float32", parallel="fsdp")) as runtime:
        model = parallel.share_out(Transformer(LMConfig(**SHAPE)), runtime)
        with pytest.raises(OSError, match="--out_dir must be one folder that all machines share"):
            sharded.save(folder / str(runtime.rank) / "parts", model, [], {}, runtime)


def test_machines_that_do_not_share_a_folder_are_told_at_the_first_save(tmp_path):
    on_ranks(2, save_apart, tmp_path)


def test_muon_goes_on_from_parts(two_ranks):
    whole = left_in(two_ranks / "muon")[0]
    assert kept_in(two_ranks / "muon_sharded") == ["pretrain_32_resume_step3"]
    moved, about = alone(two_ranks / "muon_sharded", optimizer="muon")
    torch.manual_seed(3)
    start = Transformer(LMConfig(**SHAPE)).state_dict()
    assert about["step"] == 6 and share_of_the_way(whole, moved, start) < MUON_ROUNDS


@pytest.mark.parametrize("how", ["fsdp", "ddp", "sharded"])
def test_weights_harmed_on_one_rank_send_all_of_them_back(two_ranks, how):
    struck, about = left_in(two_ranks / f"struck_{how}")
    assert about["skip"] == [4] and about["returns"] == 1 and all(w.isfinite().all() for w in struck.values())


def test_a_loss_that_is_no_number_on_one_rank_moves_no_rank(two_ranks):
    (one, about), (every, _) = left_in(two_ranks / "odd_on_one"), left_in(two_ranks / "odd_on_all")
    assert about["skip"] == [2] and about["returns"] == 1
    assert all(torch.equal(one[k], every[k]) for k in one)


def test_a_save_in_the_middle_of_a_shared_out_step_changes_no_weight(two_ranks):
    asked, not_asked = left_in(two_ranks / "asked")[0], left_in(two_ranks / "not_asked")[0]
    assert all(torch.equal(asked[k], not_asked[k]) for k in asked)
