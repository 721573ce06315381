"""Nats per token and bits per byte: what is scored and from how much context; nothing else may change the figures."""

import gzip
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import data_process
from evaluation import perplexity
from evaluation.perplexity import Document, batches, documents_of, measure, rows_of, windows
from evaluation.texts import data_files, text_documents
from model.chat import load_tokenizer
from model.LMConfig import LMConfig
from model.model import Transformer
from tests.conftest import SENTENCES
from tests.oracles import stock_llama, stock_qwen2_moe
from tests.stages import make_base
from tests.test_scripts import call
from trainer import args
from trainer.checkpoint import describe, save_weights
from trainer.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
TEXTS = [s.strip().replace("\n", "。") for s in SENTENCES] + ["１２３，ＡＢＣ！", "短"]
COUNTS = ("documents", "tokens", "bytes")


def random_model(**shape):
    """A small dense model (unless told otherwise) with random weights large enough for uneven predictions."""
    torch.manual_seed(1)
    small = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 60, "max_seq_len": 24}
    model = Transformer(LMConfig(**small | shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() > 1 else 1)
    return model


def random_documents(lengths, V=60):
    """Documents of BOS (1) and that many random tokens; each said to have two bytes a token."""
    rng = np.random.default_rng(0)
    return [Document(np.concatenate([[1], rng.integers(3, V, n)]), 2 * n, n) for n in lengths]


def close(value):
    return pytest.approx(value, rel=1e-5)


# ---- what is scored --------------------------------------------------------------------------------------------------
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_each_token_is_scored_once_from_the_context_that_is_promised(n, context, stride):
    stride = min(stride, context)
    scored = []
    for start, end, first in windows(n, context, stride):
        assert end - start <= context + 1 and end <= n and first > start
        for token in range(first, end):
            assert token - start >= min(token, context - stride + 1)
            scored.append(token)
    assert scored == list(range(1, n))


@pytest.mark.parametrize(
    ("shape", "stock"),
    [({}, stock_llama), ({"use_moe": True, "hidden_dim": 48}, stock_qwen2_moe)],
    ids=["dense", "moe"],
)
def test_a_document_that_fits_costs_what_stock_transformers_say(shape, stock, one_thread):
    model, documents = random_model(**shape), random_documents([3, 24, 1, 17, 9, 24])
    theirs, expected = stock(model), 0.0
    with torch.no_grad():
        for ids, _, _ in documents:
            ids = torch.from_numpy(ids)
            expected += F.cross_entropy(theirs(ids[None, :-1]).logits[0], ids[1:], reduction="sum").item()
    tally = measure(model, documents, 24, 12, CPU, batch_tokens=64)
    assert tally.nats == close(expected)
    assert (tally.documents, tally.tokens, tally.bytes) == (6, 78, 156)


@pytest.mark.parametrize(("context", "stride"), [(24, 12), (10, 10), (7, 3), (1, 1), (24, 1)])
def test_windows_score_what_a_loop_over_single_tokens_scores(context, stride, one_thread):
    model, documents = random_model(), random_documents([60, 5, 25, 31])
    theirs, expected = stock_llama(model), 0.0
    with torch.no_grad():
        for ids, _, _ in documents:
            for token in range(1, len(ids)):
                # the first of the windows at 0, stride, 2 stride, … that reads up to the id before it
                start = max(0, math.ceil((token - context) / stride)) * stride
                logits = theirs(torch.from_numpy(ids[start:token])[None]).logits[0, -1]
                expected -= logits.log_softmax(-1)[ids[token]].item()
    assert measure(model, documents, context, stride, CPU).nats == close(expected)


def test_batches_change_nothing(one_thread):
    model, documents = random_model(), random_documents([60, 5, 25, 31, 1, 2, 24, 24, 80])
    one = measure(model, documents, 24, 12, CPU, batch_tokens=1)
    for batch_tokens in (30, 100, 10_000):
        more = measure(model, documents[::-1], 24, 12, CPU, batch_tokens)
        assert more.nats == close(one.nats) and more.tokens == one.tokens


def test_a_model_that_knows_nothing_needs_log_v_nats_a_token(one_thread):
    model = random_model()
    torch.nn.init.zeros_(model.output.weight)
    summary = measure(model, random_documents([60, 5, 25]), 24, 12, CPU).summary()
    assert summary["nats_per_token"] == pytest.approx(math.log(60), rel=1e-6)
    assert summary["perplexity"] == pytest.approx(60, rel=1e-5)
    assert summary["bits_per_byte"] == pytest.approx(math.log2(60) / 2, rel=1e-6)


def test_progress_ends_at_the_size_of_the_file(one_thread):
    seen = []
    measure(random_model(), random_documents([60, 5, 25]), 24, 12, CPU, 30, seen.append)
    assert len(seen) > 2 and sum(seen) == pytest.approx(90)


def test_memory_does_not_grow_with_the_file():
    endless = (Document(np.ones(500, np.int64), 1, 1) for _ in itertools.count())
    batch = next(batches(rows_of(endless, 24, 1, perplexity.Tally()), 100))
    assert 1 <= len(batch) <= 100 // 25 and all(len(row.ids) == 25 for row in batch)


# ---- files -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_dir):
    """TEXTS in every format that is read, ids.bin made by data_process.py, and the base model pretrain_32.pth."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("texts")
    records = [json.dumps({"id": i, "text": t}, ensure_ascii=False) for i, t in enumerate(TEXTS)]
    files = {
        "t.txt": "\ufeff" + "\r\n \r\n\r\n".join(TEXTS) + "\r\n",
        "t.jsonl": "\n\n".join(records),
        "t.json": "[\n" + ",\n".join(records) + "]\n",
        "t.csv": "id,content\r\n" + "".join('{},"{}"\r\n'.format(i, t.replace('"', '""')) for i, t in enumerate(TEXTS)),
    }
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("utf-8"))
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    pq.write_table(pa.table({"text": TEXTS, "id": range(len(TEXTS))}), folder / "t.parquet", row_group_size=3)
    flags = ["--output", str(folder / "ids.bin"), "--tokenizer", str(tokenizer_dir), "--val_fraction", "0"]
    data_process.main(["pretrain", "--input", str(folder / "t.jsonl"), *flags])
    make_base(folder, tokenizer_dir)
    return folder


def score(*flags):
    """What the command does, in this process."""
    perplexity.main([*map(str, flags), "--device", "cpu"])


def error_of(capsys, *flags):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        args.run(perplexity.main, [*map(str, flags), "--device", "cpu"])
    errors = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and len(errors) == 1
    return errors[0]


def test_every_format_of_the_same_documents_gives_the_same_figures(folder, tokenizer_dir, one_thread):
    names = ["ids.bin", *(f"t.{n}" for n in "txt jsonl json csv txt.gz jsonl.gz json.gz csv.gz parquet".split())]
    score("--data", *(folder / n for n in names), "--out_dir", folder, "--output", folder / "all.json")
    found = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    first, *others = (found["files"][str(folder / n)] for n in names)
    encode = load_tokenizer(tokenizer_dir).encode
    expected = len(TEXTS), sum(len(encode(t)) for t in TEXTS), sum(len(t.encode()) for t in TEXTS)
    assert tuple(first[k] for k in COUNTS) == expected  # EOS and BOS are not among the tokens
    for other in others:
        assert [other[k] for k in COUNTS] == [first[k] for k in COUNTS]
        assert other["bits_per_byte"] == close(first["bits_per_byte"])
    assert found["total"]["nats"] == close(10 * first["nats"])
    assert found["total"]["bits_per_byte"] == close(first["bits_per_byte"])


def test_the_documents_of_a_bin_are_found_without_its_description(folder, tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(tokenizer_dir)
    (tmp_path / "old.bin").write_bytes((folder / "ids.bin").read_bytes())
    documents = list(documents_of(tmp_path / "old.bin", tokenizer))
    assert [tokenizer.decode(d.ids[1:]) for d in documents] == TEXTS
    assert all(d.ids[0] == tokenizer.bos_id for d in documents)


def test_a_bin_that_begins_inside_a_document_still_scores_its_first_token(tokenizer_dir, tmp_path):
    np.array([7, 8, 2, 1, 9, 2, 1, 2], np.uint16).tofile(tmp_path / "x.bin")
    documents = list(documents_of(tmp_path / "x.bin", load_tokenizer(tokenizer_dir)))
    assert [d.ids.tolist() for d in documents] == [[1, 7, 8], [1, 9]]


def test_paragraphs_are_the_documents_that_data_process_makes(tmp_path):
    (tmp_path / "p.txt").write_text("一\n二 \n\n \n三\n\n\n四  \n", encoding="utf-8")
    assert [t.text for t in text_documents(tmp_path / "p.txt")] == ["一\n二 ", "三", "四  "]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt", ".jsonl.gz"])
def test_files_are_read_piece_by_piece(ending, tmp_path):
    text = "春天来了" * 250
    record = json.dumps({"text": text}) + "\n"
    many = {".csv": "text\n" + f"{text}\n" * 5000, ".txt": f"{text}\n\n" * 5000}.get(ending, record * 5000).encode()
    file = tmp_path / f"big{ending}"
    file.write_bytes(gzip.compress(many, mtime=0) if ending.endswith("gz") else many)
    tracemalloc.start()
    assert sum(t.text == text for t in text_documents(file)) == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(many) / 2


# ---- the command -----------------------------------------------------------------------------------------------------
def test_two_models_stand_in_one_table(folder, tokenizer_dir, tmp_path, capsys, monkeypatch, one_thread):
    other_tokenizer = tmp_path / "other"
    other_tokenizer.mkdir()
    about = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    about["model"]["merges"] = about["model"]["merges"][:5]  # more tokens for the same bytes
    (other_tokenizer / "tokenizer.json").write_text(json.dumps(about), encoding="utf-8")
    tokenizer = load_tokenizer(other_tokenizer)
    model = Transformer(LMConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=320, max_seq_len=16))
    save_weights(tmp_path / "pretrain_32.pth", model, describe(model.cfg, "pretrain", tokenizer))

    models = folder / "pretrain_32.pth", tmp_path / "pretrain_32.pth"
    score("--data", folder / "t.txt", "--model", *models, "--context", 16, "--output", tmp_path / "two" / "r.json")
    said = capsys.readouterr().out
    assert all(str(m) in said for m in models) and "the tokenizers differ" in said
    a, b = json.loads((tmp_path / "two" / "r.json").read_text(encoding="utf-8"))
    assert {"model", "files", "total", "context", "stride", "command", "versions"} <= set(a)
    assert (a["context"], a["stride"]) == (16, 8) and a["total"]["bytes"] == b["total"]["bytes"]
    assert a["total"]["tokens"] < b["total"]["tokens"]
    total = a["total"]
    assert total["perplexity"] == close(math.exp(total["nats"] / total["tokens"]))
    assert total["bits_per_byte"] == close(total["nats"] / math.log(2) / total["bytes"])
    monkeypatch.setattr(perplexity, "measure", lambda *_: pytest.fail("measured before the second model was looked at"))
    said = error_of(capsys, "--data", folder / "ids.bin", "--model", *models)
    assert "was made with another tokenizer" in said and str(models[1]) in said


def test_the_command_runs_as_the_readme_says(folder):
    said = call("-m", "evaluation.perplexity", "--data", folder / "ids.bin", "--out_dir", folder)
    assert "bits/byte" in said and str(folder / "ids.bin") in said and "48 positions, 24 apart, float32" in said


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.jsonl", b'{"text": " "}\n', "holds no text"),
        ("empty.bin", b"", "is empty"),
        ("only_ends.bin", b"\1\0\2\0\1\0\2\0", "holds no text"),
        ("big_id.bin", b"\1\0\x90\1\2\0", "holds id 400"),
        ("a.pdf", b"%PDF", "python data_process.py pretrain --input"),
        ("gb.txt", "春天".encode("gb18030"), "python data_process.py pretrain --input"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("bad.json", b'[{"text": "a"}, {"text": ]', "what follows record 1 is not JSON"),
        ("chat.jsonl", b'{"q": "a", "a": "b"}\n', "line 1 is no record with a text or content"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "surrogates not allowed"),
        ("cut.csv", b'text\n"a', "cannot read"),
        ("cut.txt.gz", gzip.compress(b"abc" * 1000, mtime=0)[:30], "cannot read"),
        ("no.txt.gz", b"abc", "cannot read"),
        ("no.parquet", b"abc", "parquet"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_line(folder, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    said = error_of(capsys, "--data", tmp_path / name, "--out_dir", folder)
    assert said.startswith("error: ") and words in said and name in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere.txt"], "no data at nowhere.txt"),
        (["--data", "nowhere.bin"], "no data at nowhere.bin"),
        (["--context", "49"], "reads 1 to 48 positions"),
        (["--stride", "49"], "--stride 49 would leave tokens out; give 1 to 48"),
        (["--stride", "0"], "--stride 0"),
        (["--model", "nowhere.pth"], "no checkpoint at nowhere.pth"),
        (["--output", "README.md/x.json"], "cannot write"),
        (["--tokenizer", "model/minimind_tokenizer"], "made with another tokenizer"),
        (["--dtype", "float16"], "float16 needs a CUDA device"),
    ],
)
def test_wrong_flags_are_told_in_one_line(folder, capsys, flags, words):
    assert words in error_of(capsys, "--data", folder / "t.txt", "--out_dir", folder, *flags)


def test_folders_of_shards_are_read_and_no_file_twice(folder, tmp_path):
    for name in ("a.bin", "b.bin", "b_val.bin"):
        (tmp_path / name).write_bytes((folder / "ids.bin").read_bytes())
    assert [f.name for f in data_files([tmp_path, tmp_path / "a.bin"])] == ["a.bin", "b.bin"]
