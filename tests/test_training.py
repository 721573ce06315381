"""The loop: the same weights however a step is split, wherever a run was stopped; loud when something is wrong."""

import dataclasses
import json
import math
import os
import pickle
import signal

import numpy as np
import pytest
import torch

from model.batch import Sample, collate
from model.chat import load_tokenizer
from model.dataset import PretrainDataset
from model.LMConfig import LMConfig
from model.model import Transformer
from trainer import checkpoint, loop, parallel
from trainer.checkpoint import load_file, load_model
from trainer.config import TrainConfig
from trainer.loop import fit
from trainer.losses import language_model_loss
from trainer.optim import make_optimizers
from trainer.run import Data, Run
from trainer.runtime import Runtime, Stopped
from trainer.step import step

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320, "max_seq_len": 24}
CPU = Runtime(torch.device("cpu"), torch.float32)


class Rows:
    """Random rows of uneven length: a data set without files."""

    T, fingerprint, fill = 24, "rows-0", 0.8

    def __init__(self, n=103, seed=0):
        rng = np.random.default_rng(seed)
        self.ids = rng.integers(3, 320, (n, self.T + 1))
        self.lengths = rng.integers(2, self.T + 2, n)  # uneven: some rows score 1 token, some 24

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        docs = np.full(self.T + 1, -1)
        if i >= 0:
            docs[: self.lengths[i]] = 0
        return Sample(i, self.ids[i], docs, self.ids[i])


class ByteVocabulary:
    """As much of a tokenizer as the loop asks for: every id stands for two bytes."""

    hash, path, token_bytes = "abc", "somewhere", np.full(320, 2)


def settings(out_dir, **changes):
    base = {"batch_size": 8, "accumulation_steps": 2, "max_steps": 10, "log_interval": 2, "save_interval": 4}
    base |= {"num_workers": 0, "device": "cpu", "dtype": "float32", "compile": "off", "eval_interval": 0}
    return TrainConfig(out_dir=str(out_dir), **{**base, **changes})


def train(out_dir, shape=(), data=None, loss_fn=language_model_loss, model_seed=3, **changes):
    """Runs fit and returns the trained weights."""
    torch.manual_seed(model_seed)
    model = Transformer(LMConfig(**{**SHAPE, **dict(shape)}))
    rows = data or Rows()
    fit(
        model,
        CPU,
        settings(out_dir, **changes),
        "pretrain",
        ByteVocabulary(),
        Data(rows, np.arange(len(rows))),
        loss_fn,
    )
    return {k: v.clone() for k, v in model.state_dict().items()}


def difference(a, b):
    return max((a[k] - b[k]).abs().max().item() for k in a)


MUON_ROUNDS = 0.05  # torch.optim.Muon orthogonalises in bf16, whose last bit makes 1e-7 in a gradient visible


def share_of_the_way(a, b, start):
    """How far two sets of weights lie apart, as a share of how far they moved."""
    far = lambda x, y: math.sqrt(sum((x[k] - y[k]).square().sum().item() for k in x))  # noqa: E731
    return far(a, b) / far(a, start)


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def dying_in(number):
    """A loss that raises in its forward pass of that number, from 1."""
    seen = []

    def loss(model, batch):
        seen.append(1)
        if len(seen) == number:
            raise OSError("power cut")
        return language_model_loss(model, batch)

    return loss


def optimizer_tensors(out_dir, name="pretrain_32"):
    states = load_file(out_dir / f"{name}_resume.pth")["optimizers"]
    return [t for s in states for p in s["state"].values() for t in p.values() if torch.is_tensor(t)]


# ---- the gradient --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_accumulation_does_not_change_the_weights(tmp_path, optimizer, moe):
    # 103 rows in steps of 32: the fourth step of an epoch is a partial window of 7 rows
    shape = {"use_moe": moe}
    changes = {"max_steps": 5, "optimizer": optimizer}
    whole = train(tmp_path / "a", shape, batch_size=32, accumulation_steps=1, **changes)
    split = train(tmp_path / "b", shape, batch_size=4, accumulation_steps=8, **changes)
    torch.manual_seed(3)
    start = Transformer(LMConfig(**{**SHAPE, **shape})).state_dict()
    if optimizer == "adamw":
        assert difference(whole, split) < 1e-5
    assert share_of_the_way(whole, split, start) < MUON_ROUNDS
    assert difference(whole, start) > 1e-3  # they did move


def test_the_gradient_is_the_mean_over_all_scored_tokens_of_the_step(tmp_path):
    rows, cfg = Rows(), settings(tmp_path, batch_size=4, accumulation_steps=3, grad_clip=0)
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE))
    run = Run(model, CPU, cfg, "pretrain", ByteVocabulary(), Data(rows, np.arange(len(rows))), language_model_loss)
    batches = [collate([rows[i] for i in micro]) for micro in run.order.micro_batches(0)]
    picked = [i for b in batches for i in b.rows]
    logits = model(torch.from_numpy(rows.ids[picked, :-1])).logits
    scored = torch.arange(24)[None] < torch.from_numpy(rows.lengths[picked] - 1)[:, None]
    expected = torch.nn.functional.cross_entropy(logits[scored], torch.from_numpy(rows.ids[picked, 1:])[scored])
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    norm_expected = torch.stack([g.norm() for g in gradients]).norm().item()
    loss, norm, _, _ = step(run, model, batches).read()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert norm == pytest.approx(norm_expected, rel=1e-4)


def test_balance_loss_is_in_the_objective(tmp_path):
    with_balance = train(tmp_path / "a", {"use_moe": True, "aux_loss_alpha": 1.0}, max_steps=3)
    without = train(tmp_path / "b", {"use_moe": True, "aux_loss_alpha": 0.0}, max_steps=3)
    assert difference(with_balance, without) > 1e-4
    records = [json.loads(line) for line in open(tmp_path / "a" / "pretrain_32_moe.jsonl", encoding="utf-8")]
    assert sum(records[-1]["expert_share"]) == pytest.approx(1.0)


def test_gradients_are_clipped_before_the_optimizer(tmp_path):
    tight, loose = (train(tmp_path / str(c), max_steps=1, grad_clip=c, optimizer="adamw") for c in (1e-9, 0))
    fresh = Transformer(LMConfig(**SHAPE))
    assert difference(tight, loose) > 0 and difference(tight, fresh.state_dict()) > 0
    # AdamW's first step does not depend on the gradient's size unless it is near its epsilon of 1e-8
    records = [json.loads((tmp_path / str(c) / "pretrain_32.jsonl").read_text().splitlines()[0]) for c in (1e-9, 0)]
    assert records[0]["norm"] == pytest.approx(records[1]["norm"]) and records[0]["norm"] > 0.1


def test_norm_weights_do_not_decay_and_matrices_do(tmp_path):
    model = Transformer(LMConfig(**SHAPE))
    groups = make_optimizers(model, settings(tmp_path))[0].param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert all((decay[id(p)] == 0) == (p.dim() < 2) for p in model.parameters())


def test_muon_gets_the_matrices_and_adamw_the_rest(tmp_path):
    model = Transformer(LMConfig(**{**SHAPE, "use_moe": True}))
    adamw, muon = make_optimizers(model, settings(tmp_path, optimizer="muon"))
    names = {id(p): n for n, p in model.named_parameters()}
    in_muon = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    in_adamw = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert in_muon | in_adamw == set(names.values()) and not in_muon & in_adamw
    assert {n.split(".")[-2] for n in in_muon} == {"wq", "wk", "wv", "wo", "w1", "w2", "w3"}


# ---- stopping and going on -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_a_stopped_and_continued_run_ends_bit_equal(tmp_path, optimizer, moe):
    shape, name = {"use_moe": moe, "dropout": 0.1}, "pretrain_32_moe" if moe else "pretrain_32"
    whole = train(tmp_path / "a", shape, optimizer=optimizer)

    with pytest.raises(OSError, match="power cut"):
        train(tmp_path / "b", shape, optimizer=optimizer, loss_fn=dying_in(14))
    assert load_file(tmp_path / "b" / f"{name}_resume.pth")["progress"]["step"] == 4
    resumed = train(tmp_path / "b", shape, optimizer=optimizer)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    pairs = zip(optimizer_tensors(tmp_path / "a", name), optimizer_tensors(tmp_path / "b", name), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    steps = [json.loads(line)["step"] for line in open(tmp_path / "b" / f"{name}.jsonl", encoding="utf-8")]
    assert steps == [2, 4, 6, 8, 10]  # each once, although 5 and 6 were taken twice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on_bit_equal(tmp_path, capsys, number):
    whole, before = train(tmp_path / "a"), signal.getsignal(number)
    seen = []

    def signalled(model, batch):
        seen.append(1)
        if len(seen) == 5:
            os.kill(os.getpid(), number)  # in the first micro-batch of step 3, whose second one is not waited for
        return language_model_loss(model, batch)

    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "b", loss_fn=signalled)
    assert stopped.value.args[0] == 128 + number
    assert "stopped at step 2" in capsys.readouterr().out
    assert signal.getsignal(number) == before  # which a shell's background jobs inherit as ignored
    resumed = train(tmp_path / "b")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_finished_run_is_not_run_again_and_can_be_made_longer(tmp_path, capsys):
    train(tmp_path, max_steps=4, schedule="constant")
    before = (tmp_path / "pretrain_32.pth").read_bytes()
    train(tmp_path, max_steps=4, schedule="constant")
    assert "is finished: 4 of 4 steps" in capsys.readouterr().out
    assert (tmp_path / "pretrain_32.pth").read_bytes() == before
    train(tmp_path, max_steps=6, schedule="constant")
    assert load_file(tmp_path / "pretrain_32_resume.pth")["progress"]["step"] == 6


def test_fresh_starts_over(tmp_path, capsys):
    first = train(tmp_path, max_steps=4)
    again = train(tmp_path, max_steps=4, fresh=True)
    assert "continuing" not in capsys.readouterr().out
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_a_fresh_run_that_is_killed_before_it_saves_is_not_continued_as_the_old_one(tmp_path, monkeypatch):
    train(tmp_path, max_steps=4)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "step", killed)  # before its first step the old run is whole
        train(tmp_path, max_steps=4, fresh=True)
    assert load_file(tmp_path / "pretrain_32_resume.pth")["progress"]["step"] == 4
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", killed)
        train(tmp_path, max_steps=4, fresh=True)
    assert not (tmp_path / "pretrain_32_resume.pth").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 3e-3}, "learning_rate 0.001 there, 0.003 now"),
        ({"seed": 1}, "seed 1337 there, 1 now"),
        ({"batch_size": 16}, "rows_per_step 16 there, 32 now"),
        ({"shape": {"n_layers": 1}}, "n_layers 2 there, 1 now"),
        ({"data": Rows(50, seed=1)}, "data rows-0 there, rows-1 now"),
    ],
)
def test_a_run_with_other_settings_is_not_continued_silently(tmp_path, changes, words):
    train(tmp_path, max_steps=4)
    if "data" in changes:
        changes["data"].fingerprint = "rows-1"
    with pytest.raises(ValueError, match=words):
        train(tmp_path, **{"max_steps": 8, **changes})


def test_the_same_step_split_otherwise_may_be_continued(tmp_path):
    train(tmp_path, max_steps=4, batch_size=8, accumulation_steps=2)
    train(tmp_path, max_steps=6, batch_size=4, accumulation_steps=4)
    assert load_file(tmp_path / "pretrain_32_resume.pth")["progress"]["step"] == 6


# ---- what goes wrong -----------------------------------------------------------------------------------------------
def test_a_non_finite_loss_stops_before_the_weights_move_and_names_the_rows(tmp_path):
    seen = []

    def poisoned(model, batch):
        seen.append(batch.rows)
        losses = language_model_loss(model, batch)
        return losses._replace(loss=losses.loss * math.nan) if len(seen) == 12 else losses

    with pytest.raises(FloatingPointError) as error:
        train(tmp_path, loss_fn=poisoned, on_bad_step="stop")
    assert "step 6" in str(error.value) and str(seen[11][0]) in str(error.value) and "is kept" in str(error.value)
    kept, about = load_model(tmp_path / "pretrain_32.pth")
    assert about["step"] == 4 and all(p.isfinite().all() for p in kept.parameters())


def test_a_non_finite_gradient_stops_too(tmp_path):
    def poisoned(model, batch):
        losses = language_model_loss(model, batch)
        return losses._replace(loss=losses.loss + (model.norm.weight * 0).sum().sqrt())  # value 0, gradient 0 * inf

    with pytest.raises(FloatingPointError, match="step 1: loss [0-9.]+, gradient norm nan"):
        train(tmp_path, loss_fn=poisoned, on_bad_step="stop")
    assert not (tmp_path / "pretrain_32.pth").exists()


def test_a_step_without_scored_tokens_is_an_error(tmp_path):
    rows = Rows()
    rows.lengths[:] = 1
    with pytest.raises(ValueError, match="step 1 has no scored token"):
        train(tmp_path, data=rows)


def test_a_failed_save_keeps_the_one_before(tmp_path, monkeypatch):
    saves = []
    real = torch.save

    def full_disk(state, file):
        saves.append(1)
        if len(saves) == 3:  # the resume file of the second save
            file.write(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        real(state, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="last save is kept"):
        train(tmp_path)
    monkeypatch.undo()
    assert load_file(tmp_path / "pretrain_32_resume.pth")["progress"]["step"] == 4
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


# ---- data and log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "ahead"), [(0, None), (1, 16), (3, 6)])
def test_the_batches_of_two_steps_are_made_ahead(tmp_path, monkeypatch, workers, ahead):
    asked, rows = [], Rows(20)
    monkeypatch.setattr(loop, "DataLoader", lambda *_, **given: asked.append(given["prefetch_factor"]) or [])
    cfg = settings(tmp_path, num_workers=workers, accumulation_steps=8)
    run = Run(Transformer(LMConfig(**SHAPE)), CPU, cfg, "pretrain", ByteVocabulary(), Data(rows, np.arange(20)), None)
    list(loop.windows_of(run))
    assert asked == [ahead]


def test_the_log_has_a_line_per_interval_with_the_same_numbers_as_the_screen(tmp_path, capsys):
    train(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    records = [json.loads(line) for line in open(tmp_path / "pretrain_32.jsonl", encoding="utf-8")]
    assert [r["step"] for r in records] == [2, 4, 6, 8, 10] and len(lines) == 5
    for line, r in zip(lines, records):
        assert line.startswith(f"step {r['step']}/10  loss {r['loss']:.3f}  lr {r['lr']:.1e}  norm {r['norm']:.2f}  ")
    assert records[0]["loss"] > records[-1]["loss"]


def test_the_description_says_what_the_checkpoint_is(tmp_path):
    train(tmp_path)
    about = json.loads((tmp_path / "pretrain_32.json").read_text(encoding="utf-8"))
    assert about["stage"] == "pretrain" and about["step"] == 10 and about["tokenizer_hash"] == "abc"
    assert about["config"] == dataclasses.asdict(LMConfig(**SHAPE))
    assert about["settings"]["learning_rate"] == 1e-3 and about["versions"]["torch"] == torch.__version__
    assert about["tokens"] == sum(
        json.loads(line)["tokens"] for line in list(open(tmp_path / "pretrain_32.jsonl"))[-1:]
    )


def test_a_worker_changes_nothing(tmp_path):
    a, b = train(tmp_path / "a", num_workers=0), train(tmp_path / "b", num_workers=2)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_lone_process_needs_no_process_group():
    with parallel.joined(settings("out")) as runtime:
        assert (runtime.rank, runtime.world, runtime.dtype) == (0, 1, torch.float32)
        assert parallel.summed([1, 2.5], runtime) == [1, 2.5]


def test_bit_exact_weights_do_not_depend_on_when_they_are_saved(tmp_path):
    often, rarely = train(tmp_path / "a", save_interval=1), train(tmp_path / "b", save_interval=100)
    assert all(torch.equal(often[k], rarely[k]) for k in often)
    assert checkpoint.newest(tmp_path / "a").name == "pretrain_32.pth"


def test_an_fp16_overflow_skips_every_optimizer_and_is_counted(tmp_path):
    class Scaled(Runtime):
        """fp16 in all but the arithmetic, which a CPU lacks."""

        def autocast(self):
            return torch.autocast("cpu", enabled=False)

    rows, cfg = Rows(), settings(tmp_path, optimizer="muon", weight_decay=0.5)
    torch.manual_seed(3)
    model = Transformer(LMConfig(**SHAPE))
    run = Run(
        model,
        Scaled(CPU.device, torch.float16),
        cfg,
        "pretrain",
        ByteVocabulary(),
        Data(rows, np.arange(103)),
        overflowing,
    )
    assert run.scaler.is_enabled() and len(run.optimizers) == 2
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [collate([rows[i] for i in micro]) for micro in run.order.micro_batches(0)]
    step(run, model, batches).read()
    assert run.progress.skipped == 1 and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    moments = [t for o in run.optimizers for state in o.state.values() for t in state.values()]
    assert not any(t.any() for t in moments)  # as if they had never been asked
    run.loss_fn = language_model_loss
    step(run, model, batches).read()
    assert run.progress.skipped == 1 and difference(before, model.state_dict()) > 0


def overflowing(model, batch):
    """A finite loss whose gradient is infinite in one matrix only."""
    losses = language_model_loss(model, batch)
    return losses._replace(loss=losses.loss + Exploding.apply(model.layers[0].attention.wq.weight))


class Exploding(torch.autograd.Function):
    """Value 0, gradient infinite."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return torch.full(ctx.shape, float("inf"))


def test_another_starting_checkpoint_is_another_run(tmp_path):
    train(tmp_path, max_steps=4, init_from="base.pth")  # fit is given the model; the setting says that it was loaded
    with pytest.raises(ValueError, match="init_from [0-9a-f]+ there, [0-9a-f]+ now"):
        train(tmp_path, max_steps=8, init_from="base.pth", model_seed=4)


def test_loader_workers_that_are_not_forked_reopen_the_files(tmp_path):
    path = tmp_path / "d.bin"
    np.array([1, *range(3, 200), 2] * 500, dtype=np.uint16).tofile(path)
    data = PretrainDataset(path, 31, load_tokenizer(), tmp_path / "cache")
    pickled = pickle.dumps(data)
    assert len(pickled) < 20_000 < path.stat().st_size
    again = pickle.loads(pickled)
    assert all((a == b).all() for a, b in zip(data[7][1:], again[7][1:]))


def test_a_failing_save_raises_on_every_rank(tmp_path, monkeypatch):
    rows = Rows()
    run = Run(
        Transformer(LMConfig(**SHAPE)),
        Runtime(CPU.device, torch.float32, rank=1, world=2),
        settings(tmp_path),
        "pretrain",
        ByteVocabulary(),
        Data(rows, np.arange(103)),
        language_model_loss,
    )
    monkeypatch.setattr(parallel, "summed", lambda values, runtime: [values[0] + 1])  # the main rank says: failed
    with pytest.raises(OSError, match="main rank could not save"):
        run.save()


def test_the_falling_tail_reads_the_annealing_rows_alone_and_a_stopped_run_ends_bit_equal(tmp_path):
    rows = Rows()

    def run(out_dir, loss_fn, **changes):
        torch.manual_seed(3)
        model = Transformer(LMConfig(**SHAPE))
        data = Data(rows, np.arange(80), tail_rows=np.arange(80, len(rows)))
        cfg = settings(out_dir, schedule="wsd", anneal_fraction=0.3, max_steps=10, **changes)
        fit(model, CPU, cfg, "pretrain", ByteVocabulary(), data, loss_fn)
        return {k: v.clone() for k, v in model.state_dict().items()}

    whole = run(tmp_path / "a", language_model_loss)
    poisoned = Rows()
    poisoned.ids[80:] = 5  # seen in the last three steps, and in no other
    rows, before = poisoned, load_file(tmp_path / "a" / "pretrain_32_resume.pth")["progress"]["train_loss"]
    other = run(tmp_path / "b", language_model_loss)
    lines = [[json.loads(x) for x in open(tmp_path / d / "pretrain_32.jsonl", encoding="utf-8")] for d in "ab"]
    losses = [{r["step"]: r["loss"] for r in own if "loss" in r} for own in lines]
    assert losses[0][2] == losses[1][2] and losses[0][4] == losses[1][4] and losses[0][6] == losses[1][6]
    assert losses[1][10] < before and not equal(whole, other)
    with pytest.raises(OSError, match="power cut"):
        run(tmp_path / "c", dying_in(18))
    assert equal(other, run(tmp_path / "c", language_model_loss))
