"""Lines of many documents are left out, and nothing else is touched."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleaning.repeated_lines import (
    RepeatedLines,
    check_repeated_lines,
    frequent_lines,
    line_keys,
    units_of,
    without_lines,
)

FOOTER = "本站所有文章均来自网络转载，版权归原作者所有，如有侵权请联系我们删除。"
NUMBERS = "一二三四五六七八九十"


def cleaned(documents, **chosen):
    """All documents without the lines that are frequent among them, and what was left out of each."""
    chosen = RepeatedLines(**chosen)
    frequent = frequent_lines([line_keys(document, chosen) for document in documents], chosen)
    pairs = [without_lines(document, frequent, chosen) for document in documents]
    return [text for text, _ in pairs], [removed for _, removed in pairs]


def articles(count):
    return [f"这是第 {i} 篇文章，里面说的话和别的文章里的都不一样，编号 {i * i + 1000}。" for i in range(count)]


@given(st.text('春a。！？.!?”)"` \n\t', max_size=40), st.sampled_from(["line", "sentence"]))
@settings(max_examples=200, deadline=None)
def test_the_pieces_of_a_text_are_the_text(text, unit):
    assert "".join(units_of(text, RepeatedLines(line_unit=unit))[0]) == text


@given(st.lists(st.lists(st.sampled_from("甲乙丙丁戊"), max_size=6), max_size=12), st.integers(2, 4))
@settings(max_examples=50, deadline=None)
def test_lines_go_where_a_counter_of_documents_says(documents, times):
    lines = [[letter * 20 for letter in document] for document in documents]
    counts = Counter(line for document in lines for line in set(document))
    expected = ["\n".join(line for line in d if counts[line] < times) for d in lines]
    texts, removed = cleaned(["\n".join(d) for d in lines], line_documents=times)
    assert [text.removesuffix("\n") for text in texts] == expected
    assert removed == [[line for line in d if counts[line] >= times] for d in lines]


def test_a_footer_goes_from_the_twentieth_document_on_and_the_articles_stay():
    for count in (19, 20):
        texts, removed = cleaned([f"{article}\n\n  {FOOTER}\t\n" for article in articles(count)])
        expected = [f"{article}\n\n" + f"  {FOOTER}\t\n" * (count < 20) for article in articles(count)]
        assert texts == expected and removed == [[FOOTER] * (count == 20)] * count


def test_a_refrain_inside_one_document_is_not_in_many():
    song = f"{FOOTER}\n" * 50
    texts, removed = cleaned([song, *articles(30)])
    assert texts[0] == song and not any(removed)


def test_headings_verses_rules_of_tables_and_code_stay():
    for line in (
        *(f"第{n}条" for n in NUMBERS),
        "第一章　总则",
        "床前明月光，疑是地上霜。",
        "| ------------------ | ------------------- | ------------------ |",
        "================================================================",
        "```python\nfrom sklearn.model_selection import train_test_split\n```",
        "~~~\npublic static void main(String[] arguments) {\n~~~",
    ):
        documents = [f"{line}\n{article}" for article in articles(40)]
        assert cleaned(documents)[0] == documents
    documents = [f"```\ncode\n```\n{FOOTER}\n{article}" for article in articles(20)]  # behind the fence all is as usual
    assert cleaned(documents)[0] == [f"```\ncode\n```\n{article}" for article in articles(20)]


def test_sentences_go_from_within_a_line():
    documents = [f"{article}{FOOTER}完。\n\n{article}" for article in articles(20)]
    assert not any(cleaned(documents)[1])
    texts, removed = cleaned(documents, line_unit="sentence")
    assert texts == [f"{article}完。\n\n{article}" for article in articles(20)] and removed == [[FOOTER]] * 20


def test_a_sentence_ends_where_a_reader_ends_it():
    pieces = lambda text: units_of(text, RepeatedLines(line_unit="sentence"))[0]  # noqa: E731
    assert pieces("他说：“来了！”走吧。Version 3.1 of <!-- a.b --> is out! Yes?!\nEnd.") == [
        "他说：“来了！”",
        "走吧。",
        "Version 3.1 of <!-- a.b --> is out!",
        " Yes?!",
        "\n",
        "End.",
    ]
    assert len(pieces("." * 200_000)) == 1  # and soon


def test_a_document_of_nothing_else_becomes_empty():
    texts, removed = cleaned([f"{FOOTER}\n \n{FOOTER}"] * 20)
    assert texts == [""] * 20 and removed == [[FOOTER] * 2] * 20


def test_parts_and_memory_change_nothing():
    chosen, documents = RepeatedLines(), [f"{article}\n{FOOTER}" for article in articles(25)]
    keys = np.concatenate([line_keys(document, chosen) for document in documents])
    expected = frequent_lines([keys], chosen)
    assert len(keys) == 50 and len(expected) == 1
    for parts in (np.split(keys, [1, 7, 30]), [keys, keys[:0]]):
        assert np.array_equal(frequent_lines(parts, chosen, memory=200), expected)


def test_no_document_number_leaves_all_lines():
    assert not any(cleaned([FOOTER] * 30, line_documents=0)[1])
    assert without_lines("", frequent_lines([], RepeatedLines()), RepeatedLines()) == ("", [])


def test_settings_out_of_range_are_named():
    for wrong, words in (
        ({"line_documents": 1}, "line_documents is 1"),
        ({"line_documents": -3}, "line_documents is -3"),
        ({"line_length": 0}, "line_length is 0"),
        ({"line_unit": "word"}, "'word'; choose line or sentence"),
    ):
        with pytest.raises(ValueError, match=words):
            check_repeated_lines(RepeatedLines(**wrong))
    check_repeated_lines(RepeatedLines())
