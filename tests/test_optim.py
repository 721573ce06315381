"""Muon, and the running mean of the weights."""

import copy

import numpy as np
import pytest
import torch

from model.LMConfig import LMConfig
from model.lora import add_lora
from model.model import Transformer
from tests.test_training import CPU, SHAPE, ByteVocabulary, Rows, difference, dying_in, equal, settings, train
from trainer import loop, muon
from trainer.checkpoint import load_file, load_model
from trainer.config import LoRAConfig
from trainer.losses import language_model_loss
from trainer.run import Data

pytestmark = pytest.mark.usefixtures("one_thread")


def matrices(*shapes, seed=0):
    """Parameters with gradients."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=random)
    return made


def test_singular_values_go_through_the_polynomial_and_singular_vectors_stay():
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    x = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for given in (x, x.mT):
        u, s, vh = torch.linalg.svd(given / given.norm(dim=(1, 2), keepdim=True), full_matrices=False)
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        wanted = u @ torch.diag_embed(s) @ vh
        assert (muon.orthogonalised(given, coefficients, 5, 1e-7) - wanted).abs().max() < 1e-12
        assert s.min() > 0.6 and s.max() < 1.3


@pytest.mark.parametrize(("bf16", "together"), [(True, 1 << 24), (True, 1), (False, 1 << 24)])
def test_many_matrices_at_once_move_as_those_of_torch_one_after_the_other(monkeypatch, bf16, together):
    monkeypatch.setattr(muon, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(muon, "TOGETHER", together)
    shapes = [(16, 16), (40, 16), (16, 16), (16, 40), (16, 16)]
    ours, theirs, start = matrices(*shapes), matrices(*shapes), matrices(*shapes)
    own = muon.Muon(ours, 4e-3, 0.1)
    other = torch.optim.Muon(theirs, lr=4e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for p, q, r in zip(ours, theirs, matrices(*shapes, seed=step + 1)):
            p.grad = q.grad = r.grad
        own.step()
        other.step()
        if step == 1:  # either goes on where the other was
            other.load_state_dict(copy.deepcopy(own.state_dict()))
    for p, q, before in zip(ours, theirs, start):
        assert (p - q).norm() < (0.005 if bf16 else 0.02) * (p - before).norm()  # torch rounds to bf16
        assert torch.equal(own.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


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
    train(tmp_path / "a", ema=0.9)
    with pytest.raises(OSError, match="power cut"):
        train(tmp_path / "b", ema=0.9, loss_fn=dying_in(14))
    train(tmp_path / "b", ema=0.9)
    a, b = (load_model(tmp_path / x / "pretrain_32.pth")[0].state_dict() for x in "ab")
    assert equal(a, b)
    with pytest.raises(ValueError, match=r"ema 0\.9 there, 0\.0 now"):
        train(tmp_path / "a", max_steps=12)


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
