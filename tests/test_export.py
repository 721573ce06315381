"""Out to the formats of others and back: nothing may change but names."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from inference import export, imports
from inference.engine import Sampling, generate
from inference.export import save_hugging_face
from inference.imports import import_folder
from model.chat import load_tokenizer
from model.LMConfig import LMConfig
from model.lora import Adapter, add_lora
from model.model import Transformer
from tests.oracles import v1_logits
from trainer.chat_stage import save_adapter
from trainer.checkpoint import describe, load_model, save_weights
from trainer.config import LoRAConfig

ROOT = Path(__file__).parent.parent
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 6400, "max_seq_len": 64}
SHAPES = {
    "dense": {},
    "experts": {"use_moe": True},
    "yarn": {"rope_scaling": "yarn:4"},
    "three raw experts": {"use_moe": True, "n_routed_experts": 3, "norm_topk_prob": False},
}


def make_model(**changes):
    torch.manual_seed(1)
    model = Transformer(LMConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2) if p.dim() > 1 else p.uniform_(0.5, 1.5)
    return model


def script(*words):
    """Runs export_model.py here."""
    runpy.run_path(str(ROOT / "export_model.py"))["main"]([str(word) for word in words])


def saved(model, folder, name="pretrain_32.pth"):
    save_weights(folder / name, model, describe(model.cfg, "pretrain", load_tokenizer(), step=7, tokens=1234))
    return folder / name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_out_and_back_gives_the_same_bits(shape, tmp_path):
    model = make_model(**shape)
    save_hugging_face(model, load_tokenizer(), tmp_path)
    back, tokenizer = import_folder(tmp_path)
    assert back.cfg == model.cfg and tokenizer.hash == load_tokenizer().hash
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_ntk_comes_back_as_the_larger_base_that_it_is(tmp_path):
    model = make_model(rope_scaling="ntk:2")
    save_hugging_face(model, load_tokenizer(), tmp_path)
    back, _ = import_folder(tmp_path)
    ids = torch.randint(3, 6400, (2, 64), generator=torch.manual_seed(0))
    assert back.cfg.rope_scaling is None and back.cfg.rope_theta > model.cfg.rope_theta
    assert torch.allclose(back(ids).logits, model(ids).logits, atol=1e-4)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_a_v1_file_gives_v1s_logits_before_and_after(moe, tmp_path):
    state = make_model(use_moe=moe, n_heads=16, n_kv_heads=8, dim=64).state_dict()
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "pretrain_64.pth")  # as v1 stores them
    state = {k: v.half().float() for k, v in state.items()}
    script("--import_from", tmp_path / "pretrain_64.pth", "--output", tmp_path / "own.pth")
    model, about = load_model(tmp_path / "own.pth")
    ids = torch.randint(3, 6400, (2, 40), generator=torch.manual_seed(0))
    expected = v1_logits(state, ids, 2, 16, 8)
    with torch.no_grad():
        assert float((model(ids).logits - expected).abs().max() / expected.abs().max()) < 1e-5
    assert about["imported_from"].endswith("pretrain_64.pth")


@pytest.mark.parametrize("shape", [*SHAPES, "adapter"])
@torch.no_grad()
def test_logits_and_greedy_text_of_256_tokens_are_the_same_in_stock_transformers(shape, tmp_path):
    from transformers import AutoModelForCausalLM

    if shape == "adapter":
        _, model, path = save_with_adapter(tmp_path, max_seq_len=300)
        script("--model", path, "--lora", tmp_path / "lora_x_32", "--output", tmp_path / "hf")
    else:
        model = make_model(**SHAPES[shape], max_seq_len=300)
        script("--model", saved(model, tmp_path), "--output", tmp_path / "hf")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    start = load_tokenizer().encode_prompt([{"role": "user", "content": "春天来了，"}])
    ours = list(generate(model, start, Sampling(temperature=0, max_new_tokens=256)))
    theirs = stock.generate(torch.tensor([start]), do_sample=False, max_new_tokens=256, eos_token_id=None)[
        0, len(start) :
    ]
    assert len(ours) == 256 and ours == theirs.tolist()
    ids = torch.randint(3, 6400, (2, 200), generator=torch.manual_seed(0))
    own, other = model(ids).logits, stock(ids).logits
    assert float((own - other).abs().max() / own.abs().max()) < 1e-5
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "| tokens | 1,234 |" in card and "pretrain_32.pth" in card


def save_with_adapter(folder, **changes):
    """Writes a base model and its adapter, lora_x_32/ → (base, the same with the adapter on, path of the base)."""
    base, adapted = make_model(**changes), add_lora(make_model(**changes), Adapter(rank=4))
    path = saved(base, folder)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if name.endswith("lora_B"):
                p.normal_(0.0, 0.2)
    cfg = LoRAConfig(data_path="", out_dir=str(folder), init_from=str(path), rank=4)
    save_adapter(cfg, folder / "lora_x_32.pth", adapted, describe(base.cfg, "lora_x", load_tokenizer()))
    return base, adapted.eval(), path


def test_an_adapter_is_merged_on_the_way_out(tmp_path):
    base, adapted, path = save_with_adapter(tmp_path)
    script("--model", path, "--lora", tmp_path / "lora_x_32", "--output", tmp_path / "hf")
    merged, _ = import_folder(tmp_path / "hf")
    ids = torch.randint(3, 6400, (1, 30))
    assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-2)


@torch.no_grad()
def test_peft_puts_the_adapter_onto_the_folder_of_its_base(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, adapted, path = save_with_adapter(tmp_path)
    script("--model", path, "--output", tmp_path / "hf")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(stock, tmp_path / "lora_x_32").eval()
    ids = torch.randint(3, 6400, (1, 30))
    assert torch.allclose(theirs(ids).logits, adapted(ids).logits, atol=1e-4)


def test_trl_trains_on_from_the_folder_where_we_are(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    script("--model", saved(model, tmp_path), "--output", tmp_path / "hf")
    chat = [{"role": "user", "content": "春天来了"}, {"role": "assistant", "content": "小河边的柳树发了芽。"}]
    settings = {"max_steps": 2, "per_device_train_batch_size": 1, "learning_rate": 1e-3, "logging_steps": 1}
    settings |= {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "bf16": False}
    data = Dataset.from_list([{"messages": chat}] * 2)
    trainer = SFTTrainer(str(tmp_path / "hf"), SFTConfig(str(tmp_path / "run"), **settings), train_dataset=data)
    trainer.train()
    first, second = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    [ours] = load_tokenizer().encode_chats([(chat, ())])
    ids = torch.tensor([[*ours.ids.tolist(), *load_tokenizer().encode("\n")]])  # which the template writes behind </s>
    with torch.no_grad():
        expected = model(ids[:, :-1], ids[:, 1:]).loss / (ids.shape[1] - 1)
    assert first == pytest.approx(float(expected), rel=1e-3) and second < first


@pytest.mark.parametrize(
    "change, said",
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "is a GPT2LMHeadModel"),
        ({"tie_word_embeddings": False}, "an output matrix of its own"),
        ({"attention_bias": True}, "biases in attention"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 4}},
            "YaRN with beta_fast",
        ),
        ({"attention_multiplier": 2.0, "rms_norm_eps": 0.5, "rope_theta": 17.0}, None),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_folder_that_this_model_cannot_compute_is_refused(change, said, tmp_path):
    save_hugging_face(make_model(), load_tokenizer(), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **change}), encoding="utf-8")
    if said is None:  # what is known is taken over, what has no effect does not matter
        assert import_folder(tmp_path)[0].cfg.norm_eps == 0.5
        return
    with pytest.raises(ValueError, match=said):
        import_folder(tmp_path)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("model.embed_tokens", "the embeddings"),
        ("model.layers.0.mlp.up_proj", "layer 0"),
        ("model.layers.1.self_attn.v_proj", "layer 1"),
        ("model.norm", "the output"),
    ],
)
def test_the_first_layer_that_differs_is_named(part, name):
    model = make_model()
    stock = export.to_stock_model(model, load_tokenizer())
    with torch.no_grad():
        stock.get_submodule(part).weight.mul_(-1.5)
    assert export.first_difference(model, stock) == name


def test_a_setting_that_nobody_knew_is_found_by_the_logits(tmp_path, monkeypatch):
    save_hugging_face(make_model(), load_tokenizer(), tmp_path)
    monkeypatch.setattr(imports, "from_stock", lambda name, weight, cfg: weight)
    with pytest.raises(ValueError, match="this model cannot: logits differ by .*, first behind layer 0"):
        import_folder(tmp_path)


def test_a_llama_of_before_heads_were_shared_is_read(tmp_path):
    save_hugging_face(make_model(n_kv_heads=4), load_tokenizer(), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["num_key_value_heads"]
    file.write_text(json.dumps(config), encoding="utf-8")
    assert import_folder(tmp_path)[0].cfg.n_kv_heads == 4


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--format", "gguf", "--push_to_hub", "me/it"], "--format hf"),
        (["--import_from", "x", "--model", "y"], "either --model"),
        (["--model", "absent.pth"], "no checkpoint at absent.pth"),
        (["--import_from", "."], "no config.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_use_is_told(flags, said, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        script(*flags, "--output", tmp_path / "x")


def test_what_was_not_exported_is_not_replaced(tmp_path):
    path = saved(make_model(), tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "a.gguf").write_bytes(b"notes")
    save_hugging_face(make_model(), load_tokenizer(), tmp_path / "foreign")  # as somebody else's folder looks
    for output, form, words in (
        ("raw", "hf", "was not written here"),
        ("raw", "ollama", "was not written here"),
        ("foreign", "hf", "was not written here"),
        ("a.gguf", "gguf", "holds something else"),
        ("a.bin", "gguf", "end in .gguf"),
    ):
        with pytest.raises(ValueError, match=words):
            script("--model", path, "--format", form, "--output", tmp_path / output)
    script("--model", path, "--output", tmp_path / "hf")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is a checkpoint that was trained; choose another name"):
        script("--import_from", tmp_path / "hf", "--output", path)
    assert path.read_bytes() == before
    for _ in range(2):  # an imported one is replaced
        script("--import_from", tmp_path / "hf", "--output", tmp_path / "new/again.pth")


def test_the_card_has_the_scores_of_this_checkpoint(tmp_path):
    path = saved(make_model(), tmp_path)
    scoring = {"answered": 636, "accuracy": 0.984, "interval_95": [0.971, 0.991]}
    taken = {"model": f"out/{path.name}", "lora": None, "data_dir": "x/ceval-exam", "split": "val", "shots": 5}
    taken |= {"saved": "2999-01-01", "chance": 0.25, "scorings": {"cloze_sum": scoring, "letter": {"answered": 0}}}
    others = ({"model": "out/other.pth"}, {"lora": "x"}, {"saved": "1999-01-01"}, {"scorings": 5})
    for i, change in enumerate(({}, *others)):
        (tmp_path / "ceval" / str(i)).mkdir(parents=True)
        content = {**taken, "split": f"val{i}", **change}
        (tmp_path / "ceval" / str(i) / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    script("--model", path, "--output", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    row = "| ceval-exam val0, 5 shots, cloze sum | 98.4% of 636 questions [97.1%, 99.1%]; guessing gives 25% |"
    assert row in card and card.count("5 shots") == 1


def test_a_card_that_was_changed_by_hand_is_kept(tmp_path, capsys):
    path, card = saved(make_model(), tmp_path), tmp_path / "hf" / "README.md"
    for _ in range(2):
        script("--model", path, "--output", tmp_path / "hf")
    assert "kept:" not in capsys.readouterr().out
    card.write_text("mine", encoding="utf-8")
    for _ in range(2):
        script("--model", path, "--output", tmp_path / "hf")
        assert card.read_text(encoding="utf-8") == "mine" and "which was changed by hand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "output", "stage"),
    [
        ("hf", "x.pth", "full_sft"),  # as the export recorded it
        ("foreign", "full_sft_32.pth", "full_sft"),
        ("foreign", "x.pth", "pretrain"),
        ("rlhf_32_moe.pth", "x.pth", "rlhf"),
        ("pretrain_32.pth", "full_sft_32.pth", "pretrain"),
    ],
)
def test_what_is_imported_keeps_its_stage(source, output, stage, tmp_path):
    model = make_model(use_moe="moe" in source)
    if source == "hf":
        path = tmp_path / "full_sft_32.pth"
        save_weights(path, model, describe(model.cfg, "full_sft", load_tokenizer()))
        script("--model", path, "--output", tmp_path / "hf")
    elif source == "foreign":
        save_hugging_face(model, load_tokenizer(), tmp_path / source)
    else:
        torch.save(model.state_dict(), tmp_path / source)
    script("--import_from", tmp_path / source, "--output", tmp_path / "own" / output)
    assert load_model(tmp_path / "own" / output)[1]["stage"] == stage


def test_an_export_that_computes_something_else_leaves_all_as_it_was(tmp_path, monkeypatch):
    path = saved(make_model(), tmp_path)
    script("--model", path, "--output", tmp_path / "hf")
    script("--model", path, "--format", "gguf", "--output", tmp_path / "m.gguf")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(export, "to_stock", lambda name, weight, cfg: weight)  # the rotary pairs stay where they are
    with pytest.raises(ValueError, match="does not compute what the checkpoint does: .* first behind layer 0"):
        script("--model", path, "--output", tmp_path / "hf")
    gguf = pytest.importorskip("gguf")
    real_quantize = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda weight, kind: real_quantize(weight * 0, kind))
    with pytest.raises(ValueError, match="does not hold the checkpoint's weights"):
        script("--model", path, "--format", "gguf", "--type", "q8_0", "--output", tmp_path / "m.gguf")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_dry_run_uploads_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda *a, **k: pytest.fail("uploaded"))
    flags = ["--push_to_hub", "me/it", "--dry_run", "--output", tmp_path / "hf"]
    script("--model", saved(make_model(), tmp_path), *flags)
    assert "would upload README.md, config.json" in capsys.readouterr().out
