"""The loss in chunks, as a GPU takes it, against the formula on all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model import cross_entropy
from model.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum
from model.labels import IGNORE
from model.LMConfig import LMConfig
from model.model import Transformer

SHAPE = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 50, "max_seq_len": 64}


@pytest.fixture
def chunked(monkeypatch):
    """As on a GPU, 7 positions at once."""
    monkeypatch.setattr(cross_entropy, "in_chunks", lambda states: torch.is_grad_enabled())
    monkeypatch.setattr(cross_entropy, "CHUNK", 7)


class Largest(TorchDispatchMode):
    """Notes the most numbers that any result has."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if torch.is_tensor(found):
            self.size = max(self.size, found.numel())
        return found


def example(scored=0.7):
    torch.manual_seed(0)
    states, weight = torch.randn(3, 11, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (3, 11)).masked_fill(torch.rand(3, 11) > scored, IGNORE)
    return states, weight, labels


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scored", [0.7, 1.0, 0.0])
def test_loss_and_gradients_are_those_of_all_logits_at_once(chunked, dtype, tolerance, scored):
    states, weight, labels = example(scored)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        found = linear_cross_entropy_sum(states, weight, labels)
    expected = cross_entropy_sum(states @ weight.T, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=tolerance / 4, atol=1e-6)
    for own, wanted in zip(
        torch.autograd.grad(found * 0.3, (states, weight)), torch.autograd.grad(expected * 0.3, (states, weight))
    ):
        assert own.dtype == wanted.dtype and (own - wanted).norm() <= tolerance * wanted.norm()


def test_a_frozen_matrix_or_states_that_need_none_get_no_gradient(chunked):
    states, weight, labels = example()
    wanted = torch.autograd.grad(cross_entropy_sum(states @ weight.T, labels), (states, weight))
    (d_states,) = torch.autograd.grad(linear_cross_entropy_sum(states, weight.detach(), labels), (states,))
    (d_weight,) = torch.autograd.grad(linear_cross_entropy_sum(states.detach(), weight, labels), (weight,))
    torch.testing.assert_close(d_states, wanted[0])
    torch.testing.assert_close(d_weight, wanted[1])


def test_the_logits_of_all_positions_are_never_there_together(chunked):
    states, weight, labels = example()
    with Largest() as most:
        linear_cross_entropy_sum(states, weight, labels).backward()
    assert most.size == 50 * 16 > 7 * 50  # the matrix itself
    with Largest() as most:
        cross_entropy_sum(F.linear(states, weight), labels).backward()
    assert most.size == 33 * 50


@pytest.mark.parametrize("changes", [{}, {"use_moe": True}], ids=["dense", "experts"])
def test_a_model_asked_for_its_loss_learns_the_same(chunked, changes):
    torch.manual_seed(0)
    model = Transformer(LMConfig(**SHAPE, **changes))
    ids, (_, _, labels) = torch.randint(0, 50, (3, 11)), example()
    learnt = []
    for loss_only in (False, True):
        model.zero_grad()
        out = model(ids, labels, loss_only=loss_only)
        assert (out.logits is None) == loss_only
        (out.loss + out.balance).backward()
        learnt.append({"loss": out.loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters()}})
    for name, wanted in learnt[0].items():
        torch.testing.assert_close(learnt[1][name], wanted, rtol=1e-4, atol=1e-6)
