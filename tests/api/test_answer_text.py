"""An answer that comes in pieces against what it is made of."""

import pytest

from inference.answer_text import AnswerText

CALLS = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
CALLS += '<tool_call>\n{"name": "now"}\n</tool_call>'
CALLED = [("weather", '{"city": "北京"}'), ("now", "{}")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "tools", "thoughts", "words", "calls"),
    [
        ("好" + CALLS, True, "", "好", CALLED),
        ("好" + CALLS, False, "", "好" + CALLS, []),
        ("<think>\na\nb\n</think>\n\n好" + CALLS, True, "a\nb", "好", CALLED),
        ("<think>\na\n</think>\n\nb", False, "a", "b", []),
        ("<think>a", False, "a", "", []),
        ("<think>\na\n</thi", False, "a\n</thi", "", []),
        ("<thinking", False, "", "<thinking", []),
        ("<", True, "", "<", []),
        ("a <think>b</think>", True, "", "a <think>b</think>", []),
        ("<tool_call>{</tool_call>", True, "", "<tool_call>{</tool_call>", []),
        ('<tool_call>{"name": 5}</tool_call>', True, "", '<tool_call>{"name": 5}</tool_call>', []),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", True, "", "<tool_call>" + "[" * 100_000 + "</tool_call>", []),
        ("", True, "", "", []),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_answer_in_any_pieces_is_its_thoughts_words_and_calls(text, tools, thoughts, words, calls, size):
    if len(text) > 1000 and size < 100:
        size = 1000
    split = AnswerText(tools)
    pieces = [split.push(text[i : i + size]) for i in range(0, len(text), size)]
    pieces.append(split.push("", final=True))
    found, said, called = zip(*pieces)
    assert ("".join(found), "".join(said), called[-1]) == (thoughts, words, calls) and not any(called[:-1])
    assert AnswerText(tools).push(text, final=True) == (thoughts, words, calls)
