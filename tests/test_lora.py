"""LoRA: the base stays bit-equal, merged is unmerged, and peft reads what we write."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.huggingface import own_name, stock_name, to_adjacent, to_half_split
from model.LMConfig import LMConfig
from model.lora import Adapter, LoRALinear, adapted, add_lora, load_adapter, merge_lora, merged_state, remove_lora
from model.model import Transformer
from tests.oracles import stock_llama
from trainer.chat_stage import adapter_folder, save_adapter
from trainer.checkpoint import load_model
from trainer.config import LoRAConfig

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 320, "max_seq_len": 32}


class Somewhere:
    """As much of a tokenizer as a description asks for."""

    hash, path = "abc", "somewhere"


def transformer(**shape):
    torch.manual_seed(3)
    return Transformer(LMConfig(**{**SHAPE, **shape})).eval()


def trained(model, adapter):
    """The model with an adapter whose matrices are not zero."""
    add_lora(model, adapter)
    torch.manual_seed(5)
    with torch.no_grad():
        for module in adapted(model).values():
            module.lora_B.normal_(0, 0.1)
    return model.eval()


IDS = torch.tensor([[1, 5, 9, 200, 17, 300, 2, 44]])


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@pytest.mark.parametrize("rslora", [False, True])
@torch.no_grad()
def test_merged_equals_unmerged_and_removing_it_restores_the_base_bit_for_bit(moe, rslora):
    model = transformer(use_moe=moe)
    before, logits = {k: v.clone() for k, v in model.state_dict().items()}, model(IDS).logits
    trained(model, Adapter(rank=4, alpha=8, rslora=rslora))
    adapted_logits = model(IDS).logits
    assert (adapted_logits - logits).abs().max() > 1e-3
    merged = transformer(use_moe=moe)
    merged.load_state_dict(merged_state(model), strict=True)
    assert (merged(IDS).logits - adapted_logits).abs().max() < 1e-5
    in_place = merge_lora(trained(transformer(use_moe=moe), Adapter(rank=4, alpha=8, rslora=rslora)))
    assert torch.equal(in_place(IDS).logits, merged(IDS).logits) and not adapted(in_place)
    remove_lora(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(model(IDS).logits, logits) and not adapted(model)


@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_every_linear_has_one():
    model = transformer(use_moe=True)
    logits = model(IDS).logits
    add_lora(model, Adapter(rank=2))
    assert torch.equal(model(IDS).logits, logits)
    names = set(adapted(model))
    assert {
        "layers.0.attention.wk",
        "layers.1.feed_forward.experts.3.w2",
        "layers.0.feed_forward.shared_experts.w1",
    } <= names
    linears = {n for n, m in transformer(use_moe=True).named_modules() if isinstance(m, nn.Linear)}
    assert names == linears - {"output"}  # wk and wv are not square here: 32 x 16
    trained_parameters = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained_parameters == {f"{n}.{part}" for n in names for part in ("lora_A", "lora_B")}


@torch.no_grad()
def test_the_layer_is_the_papers_formula():
    linear = nn.Linear(6, 4, bias=False)
    layer = LoRALinear(linear, Adapter(rank=3, alpha=6)).eval()
    layer.lora_B.normal_()
    x = torch.randn(5, 6)
    expected = x @ linear.weight.T + (6 / 3) * (x @ layer.lora_A.T) @ layer.lora_B.T
    assert (layer(x) - expected).abs().max() < 1e-6
    assert Adapter(rank=16, alpha=8, rslora=True).scale == 8 / 4


@pytest.mark.parametrize(
    ("targets", "words"), [("wq,output", "it is the embedding too"), ("wq,wz", "--targets wz: no such layer")]
)
def test_targets_that_cannot_be_are_refused(targets, words):
    with pytest.raises(ValueError, match=words):
        add_lora(transformer(), Adapter(targets=targets))


def test_only_targets_get_an_adapter():
    model = add_lora(transformer(), Adapter(targets="wq, w2"))
    assert {n.rpartition(".")[2] for n in adapted(model)} == {"wq", "w2"}


# ---- files ---------------------------------------------------------------------------------------------------------
def saved(tmp_path, **shape):
    model = trained(transformer(**shape), Adapter(rank=4, alpha=8))
    cfg = LoRAConfig(rank=4, alpha=8, init_from="base.pth")
    path = tmp_path / "lora_sft_32.pth"
    from trainer.checkpoint import describe

    save_adapter(cfg, path, model, describe(model.cfg, "lora_sft", Somewhere()))
    return model, path


@torch.no_grad()
def test_peft_loads_the_adapter_onto_stock_llama_with_the_same_logits(tmp_path):
    from peft import PeftModel

    model, path = saved(tmp_path)
    stock = stock_llama(transformer())
    theirs = PeftModel.from_pretrained(stock, adapter_folder(path)).eval()
    assert (theirs(IDS).logits - model(IDS).logits).abs().max() < 1e-5
    assert (theirs(IDS).logits - transformer()(IDS).logits).abs().max() > 1e-3


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.no_grad()
def test_an_adapter_is_read_back_as_it_was_and_the_merged_file_is_the_same_model(tmp_path, moe):
    model, path = saved(tmp_path, use_moe=moe)
    again = transformer(use_moe=moe)
    load_adapter(again, adapter_folder(path))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    merged, about = load_model(path)
    assert (merged(IDS).logits - model(IDS).logits).abs().max() < 1e-5 and about["stage"] == "lora_sft"
    load_adapter(again, adapter_folder(path))  # replaces the one that is on
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_an_adapter_that_peft_made_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    config = LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    theirs = get_peft_model(stock_llama(transformer()), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = transformer()
    load_adapter(model, tmp_path / "theirs")
    assert (theirs(IDS).logits - model(IDS).logits).abs().max() < 1e-5


def test_another_shape_no_file_and_a_broken_file_are_told_and_leave_the_base(tmp_path):
    _, path = saved(tmp_path)
    folder, model = adapter_folder(path), transformer(dim=64)
    with pytest.raises(ValueError, match="another shape"):
        load_adapter(model, folder)
    assert not adapted(model)
    with pytest.raises(FileNotFoundError, match=r"4-lora_sft\.py"):
        load_adapter(model, tmp_path / "nowhere")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a LoRA adapter"):
        load_adapter(model, folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == "base.pth"


@torch.no_grad()
def test_an_adapter_is_put_on_the_base_it_was_trained_on_and_on_no_other(tmp_path):
    _, path = saved(tmp_path)
    folder = adapter_folder(path)
    merged, _ = load_model(path)
    before = merged(IDS).logits
    with pytest.raises(
        ValueError, match=r"lora_sft_32 was trained on base\.pth \(weights \w{16}\), .*\bx\.pth has \w{16}"
    ):
        load_adapter(merged, folder, "x.pth")  # it contains the adapter already
    assert torch.equal(merged(IDS).logits, before)
    retrained = transformer()
    retrained.norm.weight += 1
    with pytest.raises(ValueError, match="was trained on"):
        load_adapter(retrained, folder)


@torch.no_grad()
def test_an_adapter_that_cannot_be_put_on_leaves_the_one_that_is(tmp_path):
    model, path = saved(tmp_path)
    before = model(IDS).logits
    weights = adapter_folder(path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a LoRA adapter"):
        load_adapter(model, adapter_folder(path))
    assert torch.equal(model(IDS).logits, before) and adapted(model)


@pytest.mark.parametrize(
    "setting", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}]
)
def test_a_kind_of_adapter_that_is_not_read_is_named(tmp_path, setting):
    _, path = saved(tmp_path)
    file = adapter_folder(path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | setting), encoding="utf-8")
    with pytest.raises(ValueError, match=f"lora_sft_32 uses {next(iter(setting))}, which"):
        load_adapter(transformer(), adapter_folder(path))


# ---- names and layout ----------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_the_two_rotary_layouts_are_inverses(heads, pairs, columns):
    x = torch.randn(heads * pairs * 2, columns)
    assert torch.equal(to_adjacent(to_half_split(x, heads), heads), x)


def test_names_go_there_and_back():
    names = [n.removesuffix(".weight") for n in transformer(use_moe=True).state_dict() if n.startswith("layers.")]
    names = [n for n in [*names, "layers.0.feed_forward.w1"] if not n.endswith("norm")]
    assert [own_name(stock_name(n)) for n in names] == names
    assert stock_name("layers.1.feed_forward.experts.2.w3") == "model.layers.1.mlp.experts.2.up_proj"
