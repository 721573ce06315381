"""A GGUF file holds the model, and llama.cpp reads it as this project does."""

import json
import sys

import pytest
import torch

from benchmarks import gguf_parity
from inference.export import save_hugging_face
from inference.gguf_file import save_gguf, tensors_of
from inference.model_card import modelfile
from model.chat import load_tokenizer
from model.LMConfig import LMConfig
from tests.test_export import SHAPES, make_model, saved


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind, error", [("f32", 0.0), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_a_gguf_file_holds_every_weight(shape, kind, error, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = make_model(**shape)
    save_gguf(model, load_tokenizer(), tmp_path / "m.gguf", kind)
    stored = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    expected = dict(tensors_of(model))
    assert stored.keys() == expected.keys()
    count = sum(w.size for w in expected.values())
    copies = model.output.weight.numel() if model.cfg.use_moe else 0  # "bailingmoe" wants the tied matrix twice
    assert count == model.n_params() + copies
    for name, weight in expected.items():
        assert abs(stored[name].reshape(weight.shape) - weight).max() <= error * abs(weight).max(), name


def test_experts_with_biases_are_in_no_file_that_others_load(tmp_path):
    model = make_model(use_moe=True, router_bias_rate=0.001)
    for save in (save_hugging_face, save_gguf):
        with pytest.raises(ValueError, match="balanced by biases"):
            save(model, load_tokenizer(), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_a_gguf_file_is_whole_or_absent(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", lambda self: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_gguf(make_model(), load_tokenizer(), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(tmp_path):
    pytest.importorskip("gguf")
    file = json.loads((load_tokenizer().path / "tokenizer.json").read_text("utf-8"))
    file["pre_tokenizer"]["pretokenizers"].pop(0)  # digits stay together
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(ValueError, match="smollm"):
        save_gguf(make_model(), load_tokenizer(tmp_path), tmp_path / "m.gguf")


LINES = [
    "春天来了，小河边的柳树发了芽。",
    "3 + 15 = 18  \n\n\tx",
    "It's 5 o'clock; don't  wait!",
    "《诗》云：“関関雎鳩”😀",
    "a\u3000b 12345",
]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_llama_cpp_reads_the_file_as_it_is(shape, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source")
    tokenizer, model = load_tokenizer(), make_model(**shape)
    save_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    llama = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0
    )
    for line in LINES:
        assert llama.tokenize(line.encode(), add_bos=True, special=False) == [1, *tokenizer.encode(line)]
    ids = torch.randint(3, 6400, (1, 60), generator=torch.manual_seed(0))
    llama.eval(ids[0].tolist())
    theirs, ours = torch.tensor(llama.scores[:60]), model(ids).logits[0].detach()
    assert float((theirs - ours).abs().max() / ours.abs().max()) < 1e-4
    assert torch.equal(theirs.argmax(-1), ours.argmax(-1))


def test_lines_for_the_benchmark_are_drawn_evenly_and_differ(tmp_path):
    texts = [f"{i}\n\nagain\n{i} more" for i in range(10)]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    found = gguf_parity.lines_of([file], 4)
    assert found == ["0", "2", "4 more", "7"] and len(gguf_parity.lines_of([file], 99)) == 21


def test_the_benchmark_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError, match="pip install llama-cpp-python"):
        gguf_parity.main(["--data", "x"])


def test_the_benchmark_compares_ids_and_texts(tmp_path, capsys):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source")
    model, data = make_model(), tmp_path / "lines.txt"
    data.write_text("\n\n".join(LINES), encoding="utf-8")
    flags = ["--model", str(saved(model, tmp_path)), "--data", str(data), "--new", "8"]
    assert gguf_parity.main(flags) == 0
    said = capsys.readouterr().out
    assert "ids: equal in 6 of 6 lines" in said and "f16: 6 of 6 texts of 8 ids are equal" in said


def test_the_modelfile_writes_a_chat_as_it_was_trained():
    """Ollama's template, filled in by hand: BOS comes from the file, once."""
    tokenizer = load_tokenizer()
    text = modelfile("m.gguf", tokenizer, LMConfig())
    template = text.split('"""')[1]
    loop, end = (
        template.split("{{ range $i, $m := .Messages }}")[1].split("{{ end }}<s>assistant\n")[0],
        "<s>assistant\n",
    )
    turns = [{"role": "system", "content": "简短。"}, {"role": "user", "content": "你好"}]
    written = ""
    for i, turn in enumerate(turns):
        own = loop.replace("{{ if $i }}<s>{{ end }}", "<s>" if i else "")
        written += own.replace("{{ $m.Role }}", turn["role"]).replace("{{ $m.Content }}", turn["content"])
    ids = tokenizer.backend
    ids.encode_special_tokens = False
    try:
        found = [tokenizer.bos_id, *ids.encode(written + end, add_special_tokens=False).ids]
    finally:
        ids.encode_special_tokens = True
    assert found == tokenizer.encode_prompt(turns)
    assert text.startswith("FROM ./m.gguf\n") and 'PARAMETER stop "</s>"' in text
