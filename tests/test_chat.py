"""Chat as it is trained and as it is prompted: who is scored, and that typed text never becomes a control token."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inference.engine import stream_parts, stream_text
from model.batch import FILLER, collate, collate_pairs
from model.chat import DEFAULT_TOKENIZER, answer_of, load_tokenizer
from model.dataset import DPODataset, Mixed, SFTDataset
from model.files import code_digest
from model.labels import IGNORE
from model.LMConfig import LMConfig
from model.model import Transformer
from trainer.preference import log_probs

HOSTILE = [
    "</s>",
    "<s>assistant\n",
    "</s>\n<s>user\n",
    "<think>",
    "</think>",
    "<tool_call>",
    "{{ x }}",
    "<|im_end|>",
    "\n",
    " ",
]
TEXT = st.lists(st.sampled_from([*HOSTILE, "你好", "abc", "，", "3", "答"]), min_size=1, max_size=6).map("".join)
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "天气", "arguments": {"城市": "北京"}}]}


def turns_of(texts, system=None):
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def scored_text(tokenizer, chat):
    return tokenizer.decode(chat.ids[chat.scored])


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def stock():
    return AutoTokenizer.from_pretrained(DEFAULT_TOKENIZER)


# ---- labels --------------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6), st.none() | TEXT)
def test_exactly_the_assistant_turns_and_their_eos_are_scored(tokenizer, texts, system):
    turns = turns_of(texts, system)
    [chat] = tokenizer.encode_chats([(turns, ())])
    assert scored_text(tokenizer, chat) == "".join(t["content"] + "</s>" for t in turns if t["role"] == "assistant")
    control = [i for i in chat.ids if i in (tokenizer.bos_id, tokenizer.eos_id)]
    assert control == [tokenizer.bos_id, tokenizer.eos_id] * len(turns)  # whatever was typed
    assert set(chat.ids[~chat.scored]) & set(range(3, 16)) == set()  # no other control token either
    assert len(chat.ends) == len(texts) // 2 and all(chat.ids[e - 1] == tokenizer.eos_id for e in chat.ends)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), st.none() | TEXT)
def test_a_prompt_is_the_beginning_of_what_is_trained(tokenizer, texts, system):
    texts = texts if len(texts) % 2 else texts[:-1]
    turns = turns_of(texts, system)
    answer = {"role": "assistant", "content": "好"}
    [chat] = tokenizer.encode_chats([([*turns, answer], ())])
    prompt = tokenizer.encode_prompt(turns)
    assert chat.ids[: len(prompt)].tolist() == prompt and tokenizer.decode(chat.ids[len(prompt) :]) == "好</s>"


@pytest.mark.parametrize(
    ("turns", "tools"),
    [
        (turns_of(["北京天气？", "晴。", "上海呢？"]), ()),
        (turns_of(["你好"], "你是助手。"), ()),
        ([*turns_of(["北京天气？"]), CALL, {"role": "tool", "content": "晴"}], ({"name": "天气"},)),
        ([*turns_of(["想"]), {"role": "assistant", "content": "好", "reasoning_content": "一\n二"}], ()),
        ([*turns_of(["想"]), {**CALL, "reasoning_content": "一"}], ()),
        ([*turns_of(["查"]), {**CALL, "content": "我查", "tool_calls": CALL["tool_calls"] * 2}], ()),
    ],
    ids=["turns", "system", "tools", "thought", "thought and call", "content and calls"],
)
def test_stock_transformers_renders_the_same_ids(tokenizer, stock, turns, tools):
    theirs = stock.apply_chat_template(
        turns, tools=list(tools) or None, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert tokenizer.encode_prompt(turns, tools) == list(theirs)


def test_a_call_and_a_thought_are_scored_and_a_tools_answer_is_not(tokenizer):
    turns = [*turns_of(["问"]), {**CALL, "reasoning_content": "想"}, {"role": "tool", "content": "晴"}]
    [chat] = tokenizer.encode_chats([([*turns, {"role": "assistant", "content": "晴天"}], ())])
    expected = '<think>\n想\n</think>\n\n<tool_call>\n{"name": "天气", "arguments": {"城市": "北京"}}\n</tool_call></s>'
    assert scored_text(tokenizer, chat) == expected + "晴天</s>"


@settings(max_examples=150, deadline=None)
@given(
    content=st.just("") | TEXT,
    reasoning=st.none() | TEXT,
    calls=st.lists(st.fixed_dictionaries({"name": TEXT, "arguments": st.dictionaries(TEXT, TEXT)}), max_size=2),
)
def test_an_answer_is_read_back_as_the_turn_that_it_was(tokenizer, content, reasoning, calls):
    turn = {"role": "assistant", "content": content}
    turn |= ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})
    [chat] = tokenizer.encode_chats([([turn], ())])
    said = chat.ids[chat.scored][:-1].tolist()  # what a model would write, without the EOS
    assert answer_of(stream_parts(tokenizer, iter(said))) == turn
    assert "".join(stream_text(tokenizer, iter(said))) == tokenizer.decode(said)  # a person sees the tags


def test_what_is_no_whole_answer_stays_what_it_is():
    assert answer_of([("<think>", True), ("\n想", False)]) == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "想",
    }
    for broken in ("{", "[1]", '{"name": 3}'):
        parts = [("好", False), ("<tool_call>", True), (broken, False), ("</tool_call>", True)]
        assert answer_of(parts) == {"role": "assistant", "content": f"好<tool_call>{broken}</tool_call>"}
    assert answer_of([("</think>", True), ("好", False)]) == {"role": "assistant", "content": "</think>好"}


# ---- rows ----------------------------------------------------------------------------------------------------------
def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def chats(n, seed=0, longest=40):
    rng = np.random.default_rng(seed)
    return [
        {
            "conversations": turns_of(
                [f"第{i}问" + "问" * rng.integers(longest), f"第{i}答" + "答" * rng.integers(longest)]
            )
        }
        for i in range(n)
    ]


def test_every_conversation_is_in_one_row_with_its_labels(tokenizer, tmp_path):
    records = chats(60)
    data = SFTDataset(write(tmp_path / "a.jsonl", records), 96, tokenizer, tmp_path)
    batch = collate([data[i] for i in range(len(data))])
    said = []
    for labels, docs in zip(batch.labels, batch.docs):
        for doc in range(int(docs.max()) + 1):
            ids = labels[(docs == doc) & (labels != IGNORE)]
            said.append(tokenizer.decode(ids.tolist()))
    assert sorted(said) == sorted(r["conversations"][1]["content"] + "</s>" for r in records)
    assert data.counts == {"whole": 60, "cut after a turn": 0, "too long": 0}
    assert data.fill == sum((data[i].docs >= 0).sum() for i in range(len(data))) / (len(data) * 97)
    assert collate([data[FILLER]]).units == 0


def test_asides_change_what_is_learnt_and_nothing_that_is_read(tokenizer, tmp_path):
    said = "首都是哪里？\nA. 上海\nB. 北京\n答案："
    plain, aside = turns_of([said, "B"]), turns_of([said, "B"])
    aside[0]["asides"] = [[said.index("\nB"), "×"], [said.index("\n答"), "√√"], [len(said), "√"]]
    one, two = tokenizer.encode_chats([(plain, ()), (aside, ())])
    assert one.ids.tolist() == two.ids.tolist() and one.ends == two.ends
    changed = np.flatnonzero(one.labels != two.labels)
    text = [tokenizer.decode(two.ids[:place].tolist()).removeprefix("<s>user\n") for place in changed]
    assert text == ["首都是哪里？\nA. 上海", "首都是哪里？\nA. 上海\nB. 北京", said]
    assert two.labels[changed].tolist() == [tokenizer.encode(mark)[0] for mark in "×√√"]
    data = SFTDataset(write(tmp_path / "a.jsonl", [{"conversations": aside}]), 64, tokenizer, tmp_path)
    batch = collate([data[0]])
    n = len(two.ids) - 1
    assert (
        batch.ids[0, :n].tolist() == two.ids[:-1].tolist() and batch.labels[0, :n].tolist() == two.labels[1:].tolist()
    )
    assert (batch.labels[0, n:] == IGNORE).all()


@torch.no_grad()
def test_packed_conversations_lose_what_they_lose_alone(tokenizer, tmp_path):
    torch.manual_seed(3)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 160}
    model = Transformer(LMConfig(**shape)).eval()
    records = chats(40)
    data = SFTDataset(write(tmp_path / "a.jsonl", records), 160, tokenizer, tmp_path)
    batch = collate([data[i] for i in range(len(data))])
    most = int(batch.docs.max()) + 1
    sums, counts = log_probs(model(batch.ids, docs=batch.docs).logits, batch.labels, batch.docs, most)
    packed = sorted((-sums / counts)[counts > 0].tolist())
    alone = []
    for chat in tokenizer.encode_chats([(r["conversations"], ()) for r in records]):
        ids, scored = torch.from_numpy(chat.ids), torch.from_numpy(chat.scored)[1:]
        log_p = model(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        alone.append(-log_p[scored].mean().item())
    assert most > 1 and np.abs(np.array(packed) - np.sort(alone)).max() < 1e-4


def test_a_long_conversation_is_cut_on_a_turn_border_and_a_hopeless_one_is_counted(tokenizer, tmp_path):
    records = [
        {"conversations": turns_of(["一", "甲", "二", "乙" * 200])},
        {"conversations": turns_of(["三" * 300, "丙"])},
        {"conversations": turns_of(["四", "丁"])},
    ]
    data = SFTDataset(write(tmp_path / "a.jsonl", records), 64, tokenizer, tmp_path)
    batch = collate([data[i] for i in range(len(data))])
    assert data.counts == {"whole": 1, "cut after a turn": 1, "too long": 1}
    assert sorted(tokenizer.decode(batch.labels[batch.labels != IGNORE].tolist())) == sorted("甲</s>丁</s>")


def test_nothing_that_fits_is_an_error_that_says_what_to_raise(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", [{"conversations": turns_of(["三" * 300, "丙"])}])
    with pytest.raises(ValueError, match="--max_seq_len"):
        SFTDataset(file, 16, tokenizer, tmp_path)


def test_rows_are_found_again_in_the_cache_and_made_anew_for_other_text(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", chats(30))
    first = SFTDataset(file, 96, tokenizer, tmp_path / "c")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    again = SFTDataset(file, 96, tokenizer, tmp_path / "c")
    assert again.fingerprint == first.fingerprint and len(again) == len(first)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    write(file, chats(31))
    assert SFTDataset(file, 96, tokenizer, tmp_path / "c").fingerprint != first.fingerprint


@pytest.mark.parametrize("when", ["while encoding", "while storing"])
def test_a_full_disk_is_named_and_leaves_nothing_in_the_cache(tokenizer, tmp_path, small_files, when):
    file = write(tmp_path / "a.jsonl", chats(300))
    ids = SFTDataset(file, 96, tokenizer, tmp_path).ids
    room = 1000 if when == "while encoding" else ids.nbytes + 10  # a .npy file has a header besides
    with small_files(room), pytest.raises(OSError, match=r"could not write .*sft_\w+\.npy: .*MB free.*Make room"):
        SFTDataset(file, 96, tokenizer, tmp_path / "c")
    assert not [p for p in (tmp_path / "c").iterdir() if p.suffix != ".npy"]
    data = SFTDataset(file, 96, tokenizer, tmp_path / "c")
    assert Path(data.ids.filename).stat().st_mode == file.stat().st_mode  # as any file of this person


@pytest.mark.parametrize("make", [SFTDataset, DPODataset])
def test_a_tokenizer_with_more_ids_than_16_bits_hold_is_refused(tokenizer, tmp_path, make):
    large = copy.copy(tokenizer)
    large.vocab_size = 65_537
    with pytest.raises(ValueError, match="has 65,537 ids.*65,536"):
        make(write(tmp_path / "a.jsonl", chats(3)), 96, large, tmp_path / "c")


def test_rows_are_made_anew_when_the_code_that_makes_them_changes(tokenizer, tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", chats(30))
    first = SFTDataset(file, 96, tokenizer, tmp_path / "c")
    monkeypatch.setattr("model.dataset.code_digest", lambda *files: "another")
    again = SFTDataset(file, 96, tokenizer, tmp_path / "c")
    assert again.ids.filename != first.ids.filename


def test_the_digest_of_code_changes_with_it(tmp_path):
    (tmp_path / "a.py").write_text("x = 1", encoding="utf-8")
    before = code_digest(tmp_path / "a.py")
    (tmp_path / "a.py").write_text("x = 2", encoding="utf-8")
    assert code_digest(tmp_path / "a.py") != before == before.lower() and len(before) == 16


def test_a_line_in_another_form_is_named(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", [*chats(2), {"q": "x", "a": "y"}])
    with pytest.raises(ValueError, match="a.jsonl:3"):
        SFTDataset(file, 96, tokenizer, tmp_path)


def test_pairs_lie_beside_each_other_and_only_their_answers_are_scored(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    records = [
        {
            "conversations": turns_of(["早", "早上好", f"第{i}问"]),
            "chosen": f"好{i}" + "好" * rng.integers(20),
            "rejected": f"坏{i}" + "坏" * rng.integers(20),
        }
        for i in range(40)
    ]
    data = DPODataset(write(tmp_path / "a.jsonl", records), 96, tokenizer, tmp_path)
    batch = collate_pairs([data[i] for i in range(len(data))])
    assert batch.units == 40 and len(batch.ids) == 2 * len(data)
    B, found = len(data), []
    for row in range(B):
        for doc in range(int(batch.docs[row].max()) + 1):
            sides = []
            for r in (row, row + B):
                inside = batch.docs[r] == doc
                sides.append(tokenizer.decode(batch.labels[r][inside & (batch.labels[r] != IGNORE)].tolist()))
            found.append(tuple(sides))
    assert sorted(found) == sorted((r["chosen"] + "</s>", r["rejected"] + "</s>") for r in records)
    padded = collate_pairs([data[0], data[FILLER]])
    assert padded.units == collate_pairs([data[0]]).units and padded.real_rows == 2


@pytest.mark.parametrize("make", [SFTDataset, DPODataset])
def test_a_data_set_travels_to_a_worker_as_names(tokenizer, tmp_path, make):
    records = chats(400)
    if make is DPODataset:
        records = [
            {"conversations": r["conversations"][:1], "chosen": "好" * (2 + i % 9), "rejected": "坏"}
            for i, r in enumerate(records)
        ]
    data = make(write(tmp_path / "a.jsonl", records), 96, tokenizer, tmp_path)
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    assert len(sent) < 2000 < data.ids.nbytes and again.fingerprint == data.fingerprint
    first = [(d[3][0] if make is DPODataset else d[3]).ids for d in (data, again)]
    assert np.array_equal(*first)


def test_mixed_rows_keep_their_numbers(tokenizer, tmp_path):
    a = SFTDataset(write(tmp_path / "a.jsonl", chats(30)), 96, tokenizer, tmp_path)
    b = SFTDataset(write(tmp_path / "b.jsonl", chats(20, seed=1)), 96, tokenizer, tmp_path)
    both = Mixed(a, b)
    assert len(both) == len(a) + len(b) and both[len(a)].row == len(a)
    assert np.array_equal(both[len(a)].ids, b[0].ids) and np.array_equal(both[0].ids, a[0].ids)
    assert collate([both[FILLER]]).units == 0
