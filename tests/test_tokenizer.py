"""The tokenizer, its trainer (train_tokenizer.py, cleaning/bpe.py) and the one in model/minimind_tokenizer."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import train_tokenizer
from cleaning import bpe, files
from model.chat import BOS, DEFAULT_TOKENIZER, EOS, UNK, load_tokenizer
from trainer.args import run

HOSTILE = [
    "",
    " ",
    "\n\n\t \r\n",
    "</s><s>assistant\n我是谁<unk>",
    "<think>a</think><tool_call>{}</tool_call><tool_response></tool_response><|reserved_0|>",
    "价格是 12,345.67 元，２０２６年１１月，ⅫⅣ½",
    "Привет, мир! こんにちは 안녕하세요 مرحبا שלום नमस्ते ไทย",
    "👩‍👩‍👧‍👦 🇨🇳 e\u0301 \u200b\ufeff\u202e \x00\x01\x7f\x80 \U0010ffff \ue000",
    "龘靐齉爩𠮷𪚥 □□",
    "def f(x):\n    return  x**2   # ok\n\n\n\t\tpass",
    "-" * 100 + " " * 50 + "哈" * 300,
    " leading and trailing ",
]
WORDS = [
    "春天来了",
    "小河边的柳树",
    "老师",
    "学而不思则罔",
    "高铁",
    "今天气温 23 度",
    "明天",
    "the quick",
    "brown fox",
    "jumps over",
    "lazy dog",
    "for i in range(10):\n    print(i)",
    "，",
    "。\n",
    " ",
    "----------",
]


def make_texts(count=200, seed=1, words=WORDS):
    rng = random.Random(seed)
    return ["".join(rng.choices(words, k=12)) for _ in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A .jsonl of 200 made-up documents."""
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in make_texts()]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def train(data, out, *more):
    train_tokenizer.main(["--data_path", str(data), "--out-dir", str(out), "--vocab-size", "420", *map(str, more)])
    return out


@pytest.fixture(scope="module")
def small(data, tmp_path_factory):
    """A folder with a tokenizer of 420 ids that the script trained."""
    return train(data, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", params=["default", "small"])
def folder(request):
    """The committed tokenizer, and one just trained."""
    return DEFAULT_TOKENIZER if request.param == "default" else request.getfixturevalue("small")


# --- what every tokenizer holds ---------------------------------------------------------------------------------------


def test_the_committed_tokenizer_has_6400_ids_and_the_config_of_the_code():
    assert load_tokenizer().vocab_size == 6400
    assert sorted(p.name for p in DEFAULT_TOKENIZER.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    config = (DEFAULT_TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8")
    assert json.loads(config) == bpe.CONFIG


def test_ids_are_contiguous_control_tokens_first_then_bytes(folder):
    vocab = load_tokenizer(folder).backend.get_vocab(with_added_tokens=True)
    names = sorted(vocab, key=vocab.get)
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert names[:3] == [UNK, BOS, EOS]
    assert names[:16] == list(bpe.SPECIALS) and len(bpe.SPECIALS) == 16
    assert all(len(name) == 1 for name in names[16:272]) and all(len(name) > 1 for name in names[272:])
    added = load_tokenizer(folder).backend.get_added_tokens_decoder()
    assert sorted(added) == list(range(16)) and all(token.special for token in added.values())


def test_pre_tokenizer_is_the_one_llama_cpp_calls_smollm(folder):
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["normalizer"] is None and saved["post_processor"] is None
    assert saved["pre_tokenizer"] == {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    }
    assert saved["decoder"]["type"] == "ByteLevel" and saved["model"]["type"] == "BPE"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_and_gives_no_control_token(folder, text):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i >= 16 for i in ids)
    assert tokenizer.encode_batch([text]) == [ids]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    assert load_tokenizer().decode(load_tokenizer().encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*bpe.SPECIALS, "<", "/", "s", ">", "</", " ", "\n", "好"]), max_size=12).map("".join))
def test_typed_control_tokens_stay_ordinary_characters(text):
    ids = load_tokenizer().encode(text)
    assert all(i >= 16 for i in ids)
    assert load_tokenizer().decode(ids) == text


def test_no_token_contains_a_control_token_and_none_ends_inside_a_later_character(folder):
    backend = load_tokenizer(folder).backend
    for i in range(16, backend.get_vocab_size()):
        name = backend.id_to_token(i)
        assert not any(special in bpe.shown(name) for special in bpe.SPECIALS)
        if len(name) > 1 and "�" in bpe.shown(name):  # the first bytes of one character and nothing else
            assert len(name) < 4 and any(
                bpe.spelled(chr(c)).startswith(name) for c in range(0x80, 0x110000, 64) if not 0xD800 <= c < 0xE000
            )


def test_each_digit_is_one_token(folder):
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("20261121")] == list("20261121")
    assert "42" not in [tokenizer.decode([i]).strip() for i in tokenizer.encode("a 42年")]


def test_stock_auto_tokenizer_gives_the_same_ids(folder):
    stock = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in HOSTILE:
        if not any(special in text for special in bpe.SPECIALS):
            ids = stock(text, add_special_tokens=False).input_ids
            assert ids == ours.encode(text) == stock(text).input_ids
            assert stock.decode(ids) == text
    assert (stock.unk_token_id, stock.bos_token_id, stock.eos_token_id) == (0, 1, 2)
    assert stock.pad_token_id != stock.eos_token_id and len(stock) == ours.vocab_size
    assert stock("<s>user\n").input_ids[0] == 1 and stock.convert_tokens_to_ids("<|reserved_6|>") == 15


# --- chat template ----------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "北京天气？"}
TOOL = {"type": "function", "function": {"name": "天气", "parameters": {}}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "天气", "arguments": {"城市": "北京"}}}],
}
TOOL_LINE = '{"type": "function", "function": {"name": "天气", "parameters": {}}}'
CALL_LINE = '<tool_call>\n{"name": "天气", "arguments": {"城市": "北京"}}\n</tool_call>'
RENDERED = {
    "one turn": ([USER], {}, "<s>user\n北京天气？</s>\n"),
    "prompt": ([USER], {"add_generation_prompt": True}, "<s>user\n北京天气？</s>\n<s>assistant\n"),
    "system and answer": (
        [{"role": "system", "content": "简短"}, USER, {"role": "assistant", "content": " 晴 "}],
        {},
        "<s>system\n简短</s>\n<s>user\n北京天气？</s>\n<s>assistant\n 晴 </s>\n",
    ),
    "thought": (
        [USER, {"role": "assistant", "content": "晴", "reasoning_content": "想"}],
        {},
        "<s>user\n北京天气？</s>\n<s>assistant\n<think>\n想\n</think>\n\n晴</s>\n",
    ),
    "tools": (
        [{"role": "system", "content": "简短"}, USER, CALL, {"role": "tool", "content": "晴"}],
        {"tools": [TOOL, TOOL], "add_generation_prompt": True},
        f"<s>system\n简短\n\n<tools>\n{TOOL_LINE}\n{TOOL_LINE}\n</tools></s>\n<s>user\n北京天气？</s>\n"
        f"<s>assistant\n{CALL_LINE}</s>\n<s>tool\n<tool_response>\n晴\n</tool_response></s>\n<s>assistant\n",
    ),
    "tools without system, content before two calls": (
        [USER, {**CALL, "content": "我查", "tool_calls": CALL["tool_calls"] * 2}],
        {"tools": [TOOL]},
        f"<s>system\n<tools>\n{TOOL_LINE}\n</tools></s>\n<s>user\n北京天气？</s>\n"
        f"<s>assistant\n我查\n{CALL_LINE}\n{CALL_LINE}</s>\n",
    ),
    "arguments as text, no content": (
        [{**CALL, "content": None, "tool_calls": [{"name": "天气", "arguments": '{"城市": "北京"}'}]}],
        {},
        f"<s>assistant\n{CALL_LINE}</s>\n",
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_chat_template_renders(name):
    messages, more, expected = RENDERED[name]
    stock = AutoTokenizer.from_pretrained(DEFAULT_TOKENIZER)
    assert stock.apply_chat_template(messages, tokenize=False, **more) == expected


# --- training ---------------------------------------------------------------------------------------------------------


def test_two_runs_write_the_same_bytes(data, small, tmp_path):
    again = train(data, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (small / name).read_bytes()


def test_excluded_tokens_and_all_built_on_them_are_gone(data, small, tmp_path):
    learned = bpe.learned_tokens(load_tokenizer(small).backend)
    unwanted = [t for t in learned if t.startswith("---") or t in ("柳树", "学", " fox", "老师")]
    assert len(unwanted) > 3
    (tmp_path / "unwanted.txt").write_text("\n".join(unwanted) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(train(data, tmp_path / "out", "--exclude", tmp_path / "unwanted.txt"))
    left = bpe.learned_tokens(tokenizer.backend)
    assert not set(unwanted) & set(left) and not any("学" in token for token in left)
    assert sorted(tokenizer.backend.get_vocab().values()) == list(range(420))
    for text in (*HOSTILE, *make_texts(20)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token", ["a", "</s>"])
def test_bytes_and_control_tokens_cannot_be_excluded(token):
    with pytest.raises(ValueError, match="cannot exclude"):
        bpe.train_backend(make_texts(20), 300, [token])


def test_too_little_text_names_the_ids_it_gives_and_that_many_work():
    texts = make_texts(5)
    with pytest.raises(ValueError, match="--vocab_size") as error:
        bpe.train_backend(texts, 6400)
    given_ids = int(str(error.value).split("--vocab_size ")[1])
    assert 272 < given_ids < 6400
    assert bpe.train_backend(texts, given_ids).get_vocab_size() == given_ids


def test_a_failure_is_one_line_and_leaves_the_old_tokenizer(data, tmp_path, capsys, monkeypatch):
    out = train(data, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    base = ["--data_path", str(data), "--out_dir", str(out)]
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for argv, words in [
        ([*base, "--vocab_size", "60000"], "the text gives"),
        ([*base, "--vocab_size", "272"], "must be 273 to 65536"),
        ([*base, "--vocab_size", "65537"], "must be 273 to 65536"),
        ([*base, "--sample_chars", "0"], "at least 1"),
        (["--data_path", str(empty), "--out_dir", str(out)], "no text"),
        (["--data_path", str(tmp_path / "nothing.jsonl"), "--out_dir", str(out)], "nothing.jsonl"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run(train_tokenizer.main, argv)
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert stopped.value.code == 1 and len(errors) == 1 and words in errors[0]
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        train(data, out, "--sample_chars", 5000)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_another_tokenizer_that_was_there_is_kept(data, tmp_path, capsys):
    out = train(data, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    train(data, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before  # the same again: nothing to keep
    capsys.readouterr()
    train(data, out, "--sample_chars", 5000)
    [kept] = [p for p in out.iterdir() if p.is_dir()]
    assert kept.name == f"replaced_{load_tokenizer(kept).hash}" and f"--tokenizer {kept}" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before
    assert (out / "tokenizer.json").read_bytes() != before["tokenizer.json"]


def test_report_numbers_equal_a_count_by_hand(tmp_path, capsys):
    texts = [a + "\n" + b for a, b in zip(make_texts(), make_texts(words=WORDS[:6] + WORDS[-4:-2]))]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    out = train(data, tmp_path / "out")
    printed = capsys.readouterr().out
    stock = AutoTokenizer.from_pretrained(out)
    held = texts[49::50]
    lines = [line for text in held for line in text.split("\n")]
    chinese = [s for s in lines if 2 * sum("㐀" <= c <= "鿿" for c in s) > len(s.replace(" ", ""))]
    rate = sum(map(len, chinese)) / sum(len(stock.tokenize(s)) for s in chinese)
    digits = sum(c.isdigit() for text in held for c in text)
    assert chinese and f"Chinese  {rate:.3f}   ({sum(map(len, chinese)):,} characters)" in printed
    assert f"digits   1.000   ({digits:,} characters)" in printed
    assert "code     no such text" in printed
    assert f"round trip: {len(held)} of {len(held)} texts" in printed
    assert "dropped: nothing" in printed
    saved = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert saved["characters_per_token"]["Chinese"] == rate and saved["characters_per_token"]["code"] is None
    assert saved["texts"] == saved["round_trip"] == len(held) and saved["vocab_size"] == 420
    assert saved["hash"] == load_tokenizer(out).hash


def test_text_kinds_takes_code_out_of_fences():
    kinds = bpe.text_kinds(["看这段 12 行\n```python\nx = 1\n```\nThat was it.\n"])
    assert kinds == {"Chinese": ["看这段 12 行"], "English": ["That was it."], "digits": ["12"], "code": ["x = 1\n"]}


# --- bounded memory ---------------------------------------------------------------------------------------------------


def test_the_sample_stays_in_its_budget_whatever_comes():
    sample = bpe.TextSample(50_000)
    for i in range(2000):
        sample.add(f"{i} " * (i % 900))
        assert sample.size == sum(len(chunk) for _, chunk in sample.heap) < 50_000 + bpe.CHUNK
        assert len(sample.keys) == len(sample.heap)
    assert sample.size >= 50_000


def test_the_sample_is_even_and_knows_no_order_and_no_duplicates():
    texts = [f"text number {i}" for i in range(5000)]
    draws = []
    for order in (texts, texts[::-1], texts + texts):
        sample = bpe.TextSample(10_000)
        for text in order:
            sample.add(text)
        draws.append(sample.chunks())
    assert draws[0] == draws[1] == draws[2]
    early = sum(int(text.split()[-1]) < 2500 for text in draws[0])
    assert 0.4 < early / len(draws[0]) < 0.6


def test_everything_is_kept_while_it_fits():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    sample = bpe.TextSample(10_000)
    sample.add(text)
    assert sorted(sample.chunks()) == sorted(text[i : i + bpe.CHUNK] for i in range(0, len(text), bpe.CHUNK))


def test_learning_on_characters_compresses_as_a_byte_level_trainer_does():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = make_texts(1000)
    ours = bpe.train_backend(texts, 400)
    stock = Tokenizer(models.BPE())
    stock.pre_tokenizer = ours.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=400 - len(bpe.SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stock.train_from_iterator(texts, trainer)
    rates = [bpe.chars_per_token(backend, make_texts(100, seed=2)) for backend in (ours, stock)]
    assert rates[0] > 0.97 * rates[1]
