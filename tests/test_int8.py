"""Weights of 8 bits: near what they round, and nothing else changes."""

import pytest
import torch

import serve_openai_api
from inference.chat import Conversation, obey
from inference.engine import Engine, Sampling, generate
from inference.request import Request
from model.int8 import rounded, to_int8
from model.lora import Adapter, add_lora
from tests.test_engine import large

IDS = torch.tensor([[1, 9, 30, 41, 7, 200]])


def test_a_weight_is_off_by_half_a_scale_at_most_and_the_largest_by_nothing():
    weight = torch.randn(40, 64, generator=torch.manual_seed(0)) * torch.logspace(-6, 6, 40).unsqueeze(1)
    weight[3] = 0.0
    whole, scale = rounded(weight)
    assert whole.dtype == torch.int8 and scale.shape == (40, 1)
    assert ((whole * scale - weight).abs() <= scale * 0.5001).all()
    largest = weight.abs().argmax(1, keepdim=True)
    assert torch.allclose((whole * scale).gather(1, largest), weight.gather(1, largest))
    assert (whole.gather(1, largest).abs() == 127).sum() == 39  # all rows but the one of zeros


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.no_grad()
def test_a_model_is_that_of_the_rounded_weights(moe):
    model, expected = large(320, moe), large(320, moe)
    before, count = model(IDS).logits, model.n_params()
    for name, p in expected.named_parameters():
        if p.dim() == 2 and not name.endswith("gate.weight"):
            whole, scale = rounded(p)
            p.copy_(whole * scale)
    to_int8(model)
    assert torch.allclose(model(IDS).logits, expected(IDS).logits, atol=1e-3)
    assert not torch.equal(model(IDS).logits, before) and model.n_params() == count
    assert model.tok_embeddings.weight is model.output.weight
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    assert stored < 0.35 * 4 * count  # norms and, here, a large part of such a small model stay fp32


@torch.no_grad()
def test_an_adapter_is_in_the_rounded_weights():
    model = add_lora(large(320), Adapter(rank=2))
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            p.normal_(0.0, 0.3)
    wanted = model(IDS).logits
    near = to_int8(model)(IDS).logits
    assert (near - wanted).abs().max() < 0.1 * (wanted - large(320)(IDS).logits).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_at_once_write_what_one_writes(tokenizer, dtype):
    model = to_int8(large(tokenizer.vocab_size).to(dtype))
    sampling = Sampling(temperature=0, max_new_tokens=12)
    requests = [Request([1, 9 + i, 30], sampling, lambda event: None) for i in range(3)]
    engine = Engine(model, tokenizer, slots=2)
    assert engine.cache.keys[0].dtype == dtype
    for request in requests:
        engine.submit(request)
    while engine.step():
        pass
    for request in requests:
        assert request.text[3:] == list(generate(model, request.ids, sampling, (tokenizer.eos_id,)))


def test_adapters_cannot_change_under_it(tokenizer):
    conversation = Conversation(to_int8(large(tokenizer.vocab_size)), tokenizer, Sampling())
    for command in ("/lora x", "/lora off"):
        with pytest.raises(ValueError, match="without --int8"):
            obey(conversation, command, "out")


def test_every_way_to_talk_knows_the_flag():
    assert serve_openai_api.parse(["--int8"])[0].int8 and not serve_openai_api.parse([])[0].int8
