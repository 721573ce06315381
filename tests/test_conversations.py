"""Instruction and preference data: every schema in use becomes one form, and what cannot be used says why."""

import json
import tracemalloc

import pytest

import data_process
from cleaning import encodings, equal_keys, formats, spool
from cleaning.chat_files import Filters, chinese_share, clean, record_at, share_out
from cleaning.chat_rules import chat_rules
from cleaning.conversations import conversation_of
from cleaning.preferences import pair_of
from cleaning.rules import RuleSettings
from cleaning.selection import parse_weights
from cleaning.spool import key_of

Q, A = "你好吗？", "我很好。"
ONE = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
EARLIER = [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早上好"}]


# ---- schemas -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "record",
    [
        {"conversations": ONE},
        {"messages": ONE},
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        {"conversations": [{"role": "User", "content": Q}, {"role": "ASSISTANT", "content": A}]},
        {"conversations": [{"from": "human", "value": Q}, {"role": "assistant", "content": A}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, ONE[1]]},
        {"instruction": Q, "output": A},
        {"instruction": Q, "input": "", "output": A, "history": ""},
        {"instruction": Q, "input": "无输入", "output": A},
        {"instruction": Q, "input": Q, "output": A},
        {"q": Q, "a": A, "history": []},
        {"q": Q, "a": A, "history": None},
        {"history": "[]", "q": Q, "a": A},
        {"question": Q, "answer": A},
        {"prompt": Q, "response": A},
        {"conversations": [*ONE, {"role": "user", "content": "还有呢"}]},
    ],
    ids=lambda r: json.dumps(r, ensure_ascii=False)[:60],
)
def test_a_single_turn_of_every_schema_is_the_same_conversation(record):
    found, reason, _ = conversation_of(record)
    assert reason is None and found == {"conversations": ONE}


def test_asides_stay_with_their_turn_and_must_lie_inside_it():
    with_asides = lambda asides: {"messages": [{**ONE[0], "asides": asides}, ONE[1]]}  # noqa: E731
    found, reason, _ = conversation_of(with_asides([[2, "×"], [4, "√"]]))
    assert reason is None and found["conversations"][0] == {**ONE[0], "asides": [[2, "×"], [4, "√"]]}
    for asides, reason in (
        ([[5, "×"]], "aside outside of its turn"),
        ([[0, "×"]], "aside outside of its turn"),
        ([[2]], "asides are not [characters, text] pairs"),
        ([[2, ""]], "asides are not [characters, text] pairs"),
        ([["2", "×"]], "asides are not [characters, text] pairs"),
        ("×", "asides are not [characters, text] pairs"),
    ):
        assert conversation_of(with_asides(asides))[1] == reason


@pytest.mark.parametrize(
    "history",
    [
        [["早", "早上好"]],
        ["早", "早上好"],
        EARLIER,
        '[["早", "早上好"]]',
        "[['早', '早上好']]",
        [("早", "早上好")],
    ],
    ids=str,
)
def test_a_history_of_every_shape_comes_before_the_question(history):
    found, _, _ = conversation_of({"history": history, "q": Q, "a": A})
    assert found == {"conversations": [*EARLIER, *ONE]}


def test_input_follows_the_instruction_and_a_system_prompt_stands_first():
    found, _, _ = conversation_of({"system": "简短", "instruction": "翻译", "input": "hello", "output": "你好"})
    assert [t["role"] for t in found["conversations"]] == ["system", "user", "assistant"]
    assert found["conversations"][1]["content"] == "翻译\nhello"


def test_calls_and_results_of_tools_are_kept():
    record = {
        "conversations": [
            {"from": "human", "value": "北京天气？"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
            {"from": "observation", "value": "晴"},
            {"from": "gpt", "value": "晴天。"},
        ],
        "tools": '[{"name": "weather"}]',
    }
    found, _, _ = conversation_of(record)
    assert found["tools"] == [{"name": "weather"}]
    call, result = found["conversations"][1:3]
    assert call["tool_calls"] == [{"name": "weather", "arguments": {"city": "北京"}}] and call["role"] == "assistant"
    assert result == {"role": "tool", "content": "晴"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"q": Q}, "no a beside q"),
        ({"a": A}, "no q beside a"),
        ({"q": Q, "a": ""}, "answer is empty"),
        ({"q": Q, "a": " \n　"}, "answer is empty"),
        ({"q": "", "a": A}, "question is empty"),
        ({"q": Q, "a": None}, "answer is missing"),
        ({"q": 5, "a": A}, "question is not text"),
        ({"q": Q, "a": [A]}, "answer is not text"),
        ({"q": Q, "a": A, "history": 5}, "history is not a list"),
        ({"q": Q, "a": A, "history": [["早"]]}, "history turn is not a pair"),
        ({"q": Q, "a": A, "history": [["早", "好", "多"]]}, "history turn is not a pair"),
        ({"q": Q, "a": A, "history": [["早", None]]}, "history answer is missing"),
        ({"q": Q, "a": A, "history": "[['早', __import__('os').getcwd()]]"}, "history is not a list literal"),
        ({"q": Q, "a": A, "history": "[" * 100_000}, "history is not a list literal"),
        ({"conversations": []}, "no turns"),
        ({"conversations": "你好"}, "conversations is not a list of turns"),
        ({"conversations": [ONE[0]]}, "no assistant turn"),
        ({"conversations": [{"content": Q}, ONE[1]]}, "turn without a role"),
        ({"conversations": ["你好"]}, "turn is not an object"),
        ({"conversations": [{"role": "narrator", "content": Q}, ONE[1]]}, "unknown role"),
        ({"conversations": [ONE[0], {"role": "tool", "content": "{}"}, ONE[1]]}, "tool turn without a call"),
        ({"conversations": [*ONE, {"role": "system", "content": "x"}, *ONE]}, "system turn in the middle"),
        ({"conversations": [ONE[0], {"role": "assistant", "content": None}]}, "assistant turn is missing"),
        ({"q": Q, "a": "我是 {{name}}。"}, "unresolved placeholder"),
        ({"q": Q, "a": "\ud800"}, "text is not valid Unicode"),
        ({"conversations": ONE, "tools": 5}, "tools is not a list of objects"),
        ({"question": Q, "A": "一", "B": "二", "C": "三", "D": "四", "answer": "A"}, "exam question"),
        ({}, "unknown schema"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_what_cannot_be_used_says_why(record, reason):
    assert conversation_of(record)[:2] == (None, reason)


@pytest.mark.parametrize("answer", ["```jinja\n{{name}}\n```", r"\frac{{a}}{{b}}", "{{ message }}", "a{{b}}"])
def test_code_and_formulas_are_no_placeholders(answer):
    assert conversation_of({"q": Q, "a": answer})[1] is None


def test_an_expression_in_a_history_is_never_run(tmp_path):
    mark = tmp_path / "ran"
    conversation_of({"q": Q, "a": A, "history": f"[['x', open({str(mark)!r}, 'w').write('x')]]"})
    assert not mark.exists()


# ---- preferences ---------------------------------------------------------------------------------------------------
WORSE = "走开。"
LAST = {"role": "assistant", "content": WORSE}
PAIR = {"conversations": [ONE[0]], "chosen": A, "rejected": WORSE}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": Q, "chosen": A, "rejected": WORSE},
        {"question": Q, "response_chosen": A, "response_rejected": WORSE, "system": "", "history": []},
        {"chosen": ONE, "rejected": [ONE[0], {"role": "assistant", "content": WORSE}]},
        {"prompt": [ONE[0]], "chosen": [ONE[1]], "rejected": [{"role": "assistant", "content": WORSE}]},
        {"conversations": [{"from": "human", "value": Q}], "chosen": A, "rejected": WORSE},
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": WORSE},
        },
        {"instruction": Q, "input": "", "output": [A, "一般。", WORSE], "history": []},
        {"instruction": Q, "chosen": A, "rejected": WORSE},
        PAIR,
    ],
    ids=lambda r: json.dumps(r, ensure_ascii=False)[:60],
)
def test_a_pair_of_every_schema_is_the_same_pair(record):
    assert pair_of(record)[:2] == (PAIR, None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": Q, "chosen": A, "rejected": A + " "}, "chosen equals rejected"),
        ({"prompt": Q, "chosen": A, "rejected": ""}, "rejected answer is empty"),
        ({"prompt": Q, "chosen": "", "rejected": A}, "chosen answer is empty"),
        ({"prompt": Q, "chosen": A}, "chosen or rejected is missing"),
        ({"chosen": A, "rejected": WORSE}, "question is missing"),
        ({"prompt": "", "chosen": A, "rejected": WORSE}, "question is empty"),
        ({"prompt": Q, "chosen": [A], "rejected": WORSE}, "chosen answer is not text"),
        ({"chosen": ONE, "rejected": [*EARLIER, *ONE]}, "the sides have different prompts"),
        ({"chosen": [ONE[0]], "rejected": ONE}, "a side does not end with an answer"),
        ({"conversations": ONE, "chosen": A, "rejected": WORSE}, "prompt does not end with a question"),
        ({"conversations": [], "chosen": A, "rejected": WORSE}, "no prompt"),
        ({"instruction": Q, "output": [A]}, "fewer than two ranked answers"),
        ({"question": Q, "response_j": A, "response_k": WORSE}, "unknown schema"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_pairs_that_cannot_be_used_say_why(record, reason):
    assert pair_of(record)[:2] == (None, reason)


SYSTEM = {"role": "system", "content": "简短"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [SYSTEM, ONE[0]], "chosen": [SYSTEM, *ONE], "rejected": [SYSTEM, ONE[0], LAST]},
        {"prompt": [SYSTEM, ONE[0]], "chosen": ONE, "rejected": [ONE[0], LAST]},
        {"prompt": [SYSTEM, ONE[0]], "chosen": [ONE[1]], "rejected": [LAST]},
        {"system": "简短", "prompt": [ONE[0]], "chosen": ONE, "rejected": [ONE[0], LAST]},
        {"system": "简短", "prompt": [ONE[0]], "chosen": A, "rejected": WORSE},
        {"system": "简短", "chosen": ONE, "rejected": [ONE[0], LAST]},
        {"system": "简短", "prompt": Q, "chosen": [ONE[1]], "rejected": [LAST]},
        {"system": "别的", "conversations": [SYSTEM, ONE[0]], "chosen": A, "rejected": WORSE},
    ],
    ids=lambda r: json.dumps(r, ensure_ascii=False)[:60],
)
def test_the_prompt_of_a_pair_is_there_once_with_its_system_prompt(record):
    assert pair_of(record)[:2] == ({**PAIR, "conversations": [SYSTEM, ONE[0]]}, None)


@pytest.mark.parametrize(
    "side",
    [
        {"from": "gpt", "value": A, "reasoning_content": "想"},
        [{"role": "assistant", "content": A, "reasoning_content": "想"}],
        [{"role": "assistant", "content": A, "tool_calls": [{"name": "x", "arguments": {}}]}],
        {"from": "function_call", "value": '{"name": "x", "arguments": {}}'},
    ],
    ids=lambda s: json.dumps(s, ensure_ascii=False)[:60],
)
def test_an_answer_that_a_pair_cannot_hold_is_counted_and_not_cut(side):
    other = [LAST] if isinstance(side, list) else WORSE
    for sides in ({"chosen": side, "rejected": other}, {"chosen": other, "rejected": side}):
        assert pair_of({"prompt": Q, **sides})[:2] == (None, "answer with reasoning or calls")


def test_the_one_form_is_read_back_as_it_is():
    for record in ({"conversations": [*EARLIER, *ONE], "tools": [{"name": "x"}]}, {"conversations": ONE}):
        assert conversation_of(record) == (record, None, [])
    assert pair_of(PAIR) == (PAIR, None, [])


# ---- files ---------------------------------------------------------------------------------------------------------
def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbered(n, word="问"):
    return [{"q": f"{word}{i}？", "a": f"答{i}。"} for i in range(n)]


def test_the_same_words_in_another_schema_are_a_duplicate_and_a_swapped_pair_a_contradiction(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"q": Q, "a": A}, {"conversations": ONE}, {"q": Q, "a": "别的"}])
    written, drops, _, _ = clean("sft", [([file], None)], tmp_path / "o.jsonl", Filters())
    assert written == 2 and drops.counts == {"duplicate": 1} and len(read(tmp_path / "o.jsonl")) == 2
    swapped = {"prompt": Q, "chosen": WORSE, "rejected": A}
    file = write(tmp_path / "b.jsonl", [PAIR, {"prompt": Q, "chosen": A, "rejected": WORSE}, swapped])
    written, drops, _, _ = clean("dpo", [([file], None)], tmp_path / "p.jsonl", Filters())
    assert written == 1 and drops.counts == {"duplicate": 1, "contradicts an earlier pair": 1}


def test_every_line_is_written_or_counted(tmp_path):
    records = [*numbered(5), {"q": Q}, *numbered(3), {"q": "x", "a": "{{name}}"}]
    file = write(tmp_path / "a.jsonl", records)
    written, drops, _, _ = clean("sft", [([file], None)], tmp_path / "o.jsonl", Filters())
    assert written + sum(drops.counts.values()) == len(records) and written == 5


def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path, small_files):
    file = write(tmp_path / "a.jsonl", numbered(50))
    output = write(tmp_path / "o.jsonl", [{"old": 1}])
    with small_files(500), pytest.raises(OSError, match=r"no room for .*o\.jsonl: [\d,]+ bytes are free.*--output"):
        clean("sft", [([file], None)], output, Filters())
    assert read(output) == [{"old": 1}] and len(list(tmp_path.iterdir())) == 2


def test_filters_leave_out_what_they_name(tmp_path):
    records = [{"q": "hello there", "a": "hello"}, {"q": Q, "a": A}, {"q": Q, "a": "很" * 50}, {"q": "一", "a": "二"}]
    file = write(tmp_path / "a.jsonl", records)
    filters = Filters(min_chinese=0.5, min_tokens=3, max_tokens=30, count_tokens=lambda texts: sum(map(len, texts)))
    _, drops, _, _ = clean("sft", [([file], None)], tmp_path / "o.jsonl", filters)
    assert drops.counts == {"less than 50% Chinese": 1, "under 3 tokens": 1, "over 30 tokens": 1}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "x", "arguments": {"y": "z" * 40}}]}
    thought = {"role": "assistant", "content": A, "reasoning_content": "想" * 40}
    records = [
        {"conversations": [ONE[0], call, {"role": "tool", "content": "晴"}, ONE[1]]},
        {"conversations": [ONE[0], thought]},
        {"conversations": ONE, "tools": [{"name": "x" * 40}]},
        {"conversations": ONE},
    ]
    file = write(tmp_path / "b.jsonl", records)
    written, drops, _, _ = clean(
        "sft", [([file], None)], tmp_path / "o.jsonl", Filters(0, None, 30, filters.count_tokens)
    )
    assert written == 1 and drops.counts == {"over 30 tokens": 3}
    assert chinese_share("12 你好 ab") == 0.5 and chinese_share("12!") == 1.0


def test_rules_meet_each_text_that_is_said_and_a_dropped_text_takes_its_record_along(tmp_path):
    thought = {"role": "assistant", "content": A, "reasoning_content": "ＡＢ"}
    masked = [{"role": "user", "content": "打13912345678"}, thought]
    tools = [{"name": "call", "description": "13912345678"}]
    aside = {"role": "user", "content": "ＡＢ", "asides": [[1, "C"]]}
    records = [
        {"conversations": [*masked, *ONE], "tools": tools},
        {"conversations": [ONE[0], {"role": "assistant", "content": "坏词"}]},
        {"conversations": [aside, ONE[1]]},
        {"conversations": ONE},
    ]
    call = {"role": "assistant", "content": "\n", "tool_calls": [{"name": "x", "arguments": {}}]}
    hidden = {"role": "user", "content": Q, "asides": [[1, "13912345678"]]}
    records += [{"conversations": [ONE[0], call, {"role": "tool", "content": " "}, ONE[1]]}]
    records += [{"conversations": [hidden, ONE[1]]}]
    (tmp_path / "words.txt").write_text("坏词", encoding="utf-8")
    file, output = write(tmp_path / "a.jsonl", records), tmp_path / "o.jsonl"
    rules = ["--rules", "pii", "width", "blocklist", "--blocklist", str(tmp_path / "words.txt")]
    data_process.main(["sft", "--input", str(file), "--output", str(output), *rules])
    first, second, with_call = read(output)
    assert with_call["conversations"][1] == call
    told = [turn.get("reasoning_content", turn["content"]) for turn in first["conversations"]]
    assert told == ["打〈手机号〉", "AB", Q, A] and first["tools"] == tools and second == {"conversations": ONE}
    pairs = [{"prompt": Q, "chosen": a, "rejected": b} for a, b in (("13912345678", "13812345678"), (A, "ＡＢ"))]
    pairs, rules = [([write(tmp_path / "p.jsonl", pairs)], None)], chat_rules(["pii"], RuleSettings())
    written, drops, notes, _ = clean("dpo", pairs, output, Filters(), rules=rules)
    assert written == 1 and drops.counts == {"chosen equals rejected": 1} and not notes
    for names, limits, words in (
        (["length"], {}, "no rule length for chats"),
        (["pii"], {"exam_run": 9}, "--exam_run"),
    ):
        with pytest.raises(ValueError, match=words):
            chat_rules(names, RuleSettings(**limits))


def test_a_mix_has_its_ratio_repeats_nothing_and_is_the_same_for_a_seed(tmp_path):
    zh, en = write(tmp_path / "zh.jsonl", numbered(300)), write(tmp_path / "en.jsonl", numbered(100, "Q"))
    sources = [([path], weight) for path, weight in parse_weights([f"{zh}:0.6", f"{en}:0.4"], "--mix")]
    outputs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        written, _, _, taken = clean("sft", sources, tmp_path / f"{name}.jsonl", Filters(), seed)
        assert written == 250 and taken == [150, 100]
        outputs.append((tmp_path / f"{name}.jsonl").read_bytes())
    lines = outputs[0].splitlines()
    assert len(set(lines)) == 250 and outputs[0] == outputs[1] != outputs[2]
    english = [b"Q" in line for line in lines]
    assert 20 < sum(english[:100]) < 60  # the sources alternate
    assert share_out([10, 10], [1, 3]) == [3, 10]


def test_a_file_that_was_not_written_by_this_command_is_not_replaced(tmp_path):
    file, output = write(tmp_path / "zh.jsonl", numbered(3)), tmp_path / "out.jsonl"
    output.write_text('{"text": "mine"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="out.jsonl is there and holds something else"):
        data_process.main(["sft", "--input", str(file), "--output", str(output)])
    assert output.read_text(encoding="utf-8") == '{"text": "mine"}\n'
    output.unlink()
    for _ in range(2):  # its own output it replaces
        data_process.main(["sft", "--input", str(file), "--output", str(output)])


def test_a_mix_that_names_a_file_twice_is_refused(tmp_path):
    file, output = write(tmp_path / "zh.jsonl", numbered(3)), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="--mix names a file twice"):
        data_process.main(["sft", "--mix", f"{file}:1", f"{tmp_path}/./zh.jsonl:2", "--output", str(output)])
    assert not output.exists()


@pytest.mark.parametrize("entry", ["zh.jsonl", "zh.jsonl:x", "zh.jsonl:0", "zh.jsonl:-1", "zh.jsonl:nan"])
def test_a_weight_that_is_none_is_refused(entry):
    with pytest.raises(ValueError, match="PATH:WEIGHT"):
        parse_weights([entry], "--mix")


@pytest.mark.parametrize("weights", [[None], [1.0, 2.0]], ids=["whole", "mixed"])
def test_more_records_take_a_few_bytes_more_for_each(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(spool, "MEMORY", 1 << 15)
    for module, name in ((spool, "BLOCK"), (equal_keys, "BLOCK"), (encodings, "CHUNK"), (formats, "CHUNK")):
        monkeypatch.setattr(module, name, 1 << 9)

    def peak(n):
        """Bytes at most while n files of 1,000 records each are read for every source."""
        files = [
            [write(tmp_path / f"{i}_{j}.jsonl", numbered(1000, f"{i} {j} ")) for j in range(n)]
            for i in range(len(weights))
        ]
        tracemalloc.start()
        clean("sft", list(zip(files, weights)), tmp_path / "o.jsonl", Filters())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)  # what is kept once
    assert peak(5) - peak(2) < 3000 * len(weights) * 3  # a byte each; a list of numbers would be 36


def test_nothing_usable_writes_nothing_and_says_why(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"x": 1}])
    with pytest.raises(ValueError, match="unknown schema"):
        clean("sft", [([file], None)], tmp_path / "o.jsonl", Filters())
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_empty_answer_is_kept_where_it_is_asked_for(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"q": Q, "a": ""}])
    assert clean("sft", [([file], None)], tmp_path / "o.jsonl", Filters(), allow_empty=True)[0] == 1


def test_a_record_is_found_by_its_number(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"q": Q}, {"q": Q, "a": A}, {"prompt": Q, "chosen": A, "rejected": WORSE}])
    assert record_at(file, 0) == {"conversations": ONE} and record_at(file, 1) == PAIR
    with pytest.raises(ValueError, match="2 usable records"):
        record_at(file, 2)


def test_a_pair_of_many_turns_is_a_pair_and_no_conversation(tmp_path):
    long = {"conversations": [*EARLIER, ONE[0]], "chosen": A, "rejected": WORSE}
    asked = {"prompt": Q, "response": A, "response_chosen": A, "response_rejected": WORSE, "question": Q}
    file = write(tmp_path / "a.jsonl", [long])
    assert record_at(file, 0) == long
    for record in (long, asked):
        assert conversation_of(record)[:2] == (None, "a preference pair, not a conversation")
    merged = {"conversations": ONE, "chosen": None, "rejected": None}  # a table that has both kinds
    assert conversation_of(merged)[:2] == ({"conversations": ONE}, None)


def test_what_differs_in_tools_is_no_repeat_and_a_pair_is_known_whichever_side_was_chosen():
    tools = {"conversations": ONE, "tools": [{"name": "x"}]}
    assert key_of({"conversations": ONE}) != key_of(tools) and key_of(tools) == key_of(dict(reversed(tools.items())))
    pair = {"conversations": ONE, "chosen": A, "rejected": WORSE}
    (key, swapped), (other, other_way) = key_of(pair), key_of({**pair, "chosen": WORSE, "rejected": A})
    assert key == other and swapped is not other_way
