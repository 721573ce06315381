"""Experts: all in one product or one after the other, and what keeps their loads even."""

import math

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from inference.export import stock_config
from model import moe
from model.batch import collate
from model.LMConfig import LMConfig
from model.lora import Adapter, add_lora
from model.model import FeedForward, Transformer
from model.moe import MoEFeedForward, Router, grouped, z_loss
from tests.test_training import CPU, ByteVocabulary, Rows, settings
from trainer.checkpoint import load_model, save_weights
from trainer.losses import language_model_loss
from trainer.run import Data, Run
from trainer.step import step

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320, "max_seq_len": 96, "use_moe": True}


def layer(**changes):
    torch.manual_seed(0)
    made = MoEFeedForward(LMConfig(**{**SHAPE, **changes}), FeedForward)
    torch.nn.init.normal_(made.gate.weight, std=0.3)
    return made


def answers_and_gradients(made, x, by_loop, monkeypatch, dtype=None):
    with monkeypatch.context() as patch:
        if by_loop:
            patch.setattr(moe, "can_group", lambda *_: False)
        else:
            patch.setattr(moe, "GROUPING_PAYS_FROM", 1)
            calls = []
            patch.setattr(moe, "grouped", lambda *given: (calls.append(1), grouped(*given))[1])
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            y, extra, load = made(x, torch.ones(len(x), dtype=torch.bool))
        made.zero_grad()
        (y.float().square().sum() + extra).backward()
    assert by_loop or calls
    return {"y": y, "load": load, "x": x.grad, **{n: p.grad.clone() for n, p in made.named_parameters()}}


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"n_routed_experts": 7, "num_experts_per_tok": 3, "n_shared_experts": False}])
def test_all_experts_in_one_product_answer_and_learn_as_one_after_the_other(monkeypatch, dtype, tolerance, changes):
    made, x = layer(**changes), torch.randn(3, 50, 32)
    whole = answers_and_gradients(made, x, False, monkeypatch, dtype)
    loop = answers_and_gradients(made, x, True, monkeypatch, dtype)
    assert torch.equal(whole["load"], loop["load"]) and whole["load"].sum() == 150 * made.gate.top_k
    for name in whole:
        scale = loop[name].float().norm()
        assert (whole[name].float() - loop[name].float()).norm() <= tolerance * scale, name


def test_an_expert_without_a_token_is_no_error_and_gets_no_gradient(monkeypatch):
    made, x = layer(num_experts_per_tok=1), torch.randn(2, 40, 32).abs()
    made.gate.weight.data.zero_()
    made.gate.weight.data[2] = 1.0  # all go to one
    found = answers_and_gradients(made, x, False, monkeypatch)
    assert found["load"].tolist() == [0, 0, 80, 0]
    assert found["experts.2.w1.weight"].abs().sum() > 0 and found["experts.0.w1.weight"].abs().sum() == 0


def test_few_tokens_and_experts_with_adapters_go_one_after_the_other():
    made, visits = layer(), torch.randn(300, 32)
    assert moe.can_group(made.experts, visits) and not moe.can_group(made.experts, visits[:10])
    model = add_lora(Transformer(LMConfig(**SHAPE)), Adapter(rank=2, targets="w1,w2"))
    assert not moe.can_group(model.layers[0].feed_forward.experts, visits)


def test_all_experts_for_all_tokens_answer_and_learn_as_the_chosen_ones(monkeypatch):
    made, x = layer(n_routed_experts=5, num_experts_per_tok=3), torch.randn(2, 7, 32)
    loop = answers_and_gradients(made, x, True, monkeypatch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # as on a GPU: nobody may ask how many
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    found = answers_and_gradients(made, x, True, monkeypatch)
    for name, expected in loop.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_overflows_in_an_expert_that_was_not_chosen_does_not_matter():
    experts = torch.nn.ModuleList(
        [torch.nn.Identity(), torch.nn.Softplus(beta=-1e-45)]
    )  # the second answers inf or nan
    x = torch.randn(4, 8)
    assert not experts[1](x).isfinite().any()
    found = moe.everyone(experts, x, torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.long))
    assert torch.equal(found, x)


@pytest.mark.no_cover
def test_the_layer_is_compiled_in_one_piece():
    made = layer()
    x, everyone = torch.randn(2, 80, 32), torch.ones(2, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explained = torch._dynamo.explain(made)(x, everyone)
    assert explained.graph_break_count == 0, explained.break_reasons
    few = torch._dynamo.explain(made)(x[:, :3].contiguous(), everyone)
    assert few.graph_break_count == 0, few.break_reasons


@pytest.mark.no_cover
def test_experts_one_after_the_other_are_not_compiled_anew_for_every_load():
    made, counter = layer(), torch._dynamo.testing.CompileCounter()
    compiled, everyone = torch.compile(made, backend=counter), torch.ones(4, dtype=torch.bool)
    for seed in range(12):
        torch.manual_seed(seed)
        x = torch.randn(4, 80, 32) if seed % 2 else torch.randn(32).expand(4, 80, 32).contiguous()  # two experts idle
        for found, expected in zip(compiled(x, everyone), made(x, everyone), strict=True):
            torch.testing.assert_close(found, expected)
        if seed == 1:
            known = counter.frame_count
    assert counter.frame_count == known


def test_the_z_loss_is_the_papers():
    logits, counted = torch.randn(3, 5, 4), torch.tensor([True, False, True])
    rows = [sum(math.log(sum(math.exp(v) for v in t)) ** 2 for t in row) / 5 for row in logits.tolist()]
    assert z_loss(logits, counted).item() == pytest.approx((rows[0] + rows[2]) / 2, rel=1e-5)
    plain, weighted = layer(), layer(router_z_alpha=0.1)
    x, everyone = torch.randn(2, 9, 32), torch.ones(2, dtype=torch.bool)
    logits = (x @ plain.gate.weight.T).view(2, 9, -1)
    difference = weighted(x, everyone)[1] - plain(x, everyone)[1]
    assert difference.item() == pytest.approx(0.1 * z_loss(logits, everyone).item(), rel=1e-5)


def test_a_bias_decides_who_is_chosen_and_not_how_much_they_count():
    router = Router(LMConfig(**SHAPE, router_bias_rate=0.01, norm_topk_prob=False))
    torch.nn.init.normal_(router.weight)
    x = torch.randn(64, 32)
    _, scores, weights, chosen = router(x)
    router.bias[3] = 10.0
    _, again, weights, chosen = router(x)
    assert torch.equal(scores, again) and (chosen == 3).any(1).all()
    torch.testing.assert_close(weights, scores.gather(1, chosen))


def test_moving_biases_even_out_a_skewed_router():
    router = Router(LMConfig(**SHAPE, router_bias_rate=0.01))
    torch.nn.init.normal_(router.weight, std=0.05)
    router.weight.data[0] += 0.1
    x = torch.randn(2000, 32) + 0.5
    loads = []
    for _ in range(200):
        loads.append(torch.bincount(router(x)[3].flatten(), minlength=4))
        router.rebalance(loads[-1])
    spread = [(load.max() / load.float().mean()).item() for load in (loads[0], loads[-1])]
    assert spread[0] > 1.8 and spread[1] < 1.2


def test_biases_are_saved_loaded_and_not_exported_as_if_they_were_not_there(tmp_path):
    model = Transformer(LMConfig(**SHAPE, router_bias_rate=0.01))
    model.layers[1].feed_forward.gate.bias += 0.5
    import dataclasses

    save_weights(tmp_path / "m_32_moe.pth", model, {"config": dataclasses.asdict(model.cfg)})
    again, _ = load_model(tmp_path / "m_32_moe.pth")
    assert again.layers[1].feed_forward.gate.bias.tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="router_bias_rate"):
        stock_config(again.cfg, None)


def test_an_adapter_leaves_the_biases_of_its_base_alone(tmp_path):
    model = add_lora(Transformer(LMConfig(**SHAPE, router_bias_rate=0.01)), Adapter(rank=2))
    rows = Rows()
    data = Data(rows, np.arange(40))
    run = Run(model, CPU, settings(tmp_path), "lora_x", ByteVocabulary(), data, language_model_loss)
    step(run, model, [collate([rows[i] for i in micro]) for micro in run.order.micro_batches(0)]).read()
    assert not any(layer.feed_forward.gate.bias.any() for layer in model.layers)
