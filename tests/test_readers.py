"""Raw files → texts: every format, encoding and fault, each as a few bytes written here."""

import csv
import gzip
import io
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleaning import binfile, formats
from cleaning.encodings import guess_encoding, split_lines
from cleaning.normalize import clean_text, mark_new
from cleaning.readers import Drops, expand_inputs, read_records, read_texts

STORY = "从前有座山，山里有座庙，庙里有个老和尚在给小和尚讲故事。"
TEXTS = [
    STORY,
    'He said "hi", then\nleft.\\n is not a newline.',
    "NA",
    "第一行\n第二行，有,逗号和\t制表符",
    "😀 emoji 和 𠀀",
]


def line(text):
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def read(tmp_path, data, name="a.jsonl", field=None):
    """(texts, counts by reason) of one file with these bytes."""
    (tmp_path / name).write_bytes(data)
    drops = Drops()
    texts = list(read_texts([tmp_path / name], drops, field))
    assert set(drops.first) == set(drops.counts)
    assert all(str(tmp_path / name) in first and "\n" not in first for first in drops.first.values())
    return texts, dict(drops.counts)


def as_csv(texts):
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text"], *([i, t] for i, t in enumerate(texts))])
    return out.getvalue().encode()


def as_parquet(texts):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), out)
    return out.getvalue()


FORMATS = {
    "a.jsonl": lambda texts: b"".join(map(line, texts)),
    "a.json": lambda texts: json.dumps([{"text": t} for t in texts], ensure_ascii=False, indent=2).encode(),
    "lines.json": lambda texts: b"".join(map(line, texts)),
    "a.csv": as_csv,
    "a.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_format_gives_the_same_texts_byte_for_byte(tmp_path, name, packed):
    data = FORMATS[name](TEXTS)
    name, data = (name + ".gz", gzip.compress(data)) if packed else (name, data)
    assert read(tmp_path, data, name) == (TEXTS, {})


def test_a_txt_file_is_cut_at_blank_lines(tmp_path):
    data = f"一\n二\n\n \t\n三\r\n四\r\n\r\n{STORY}".encode()
    assert read(tmp_path, data, "a.txt") == (["一\n二", "三\r\n四", STORY], {})


def test_a_long_txt_block_comes_in_documents_of_bounded_size_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_BLOCK", 100)
    lines = ["春眠不觉晓，处处闻啼鸟。\n"] * 40 + ["夜" * 500]
    texts, counts = read(tmp_path, "".join(lines).encode(), "a.txt")
    assert counts == {}
    assert max(len(t.encode()) for t in texts) <= 100
    assert "".join(texts).replace("\n", "") == "".join(lines).replace("\n", "")


# (what it is, bytes of a .jsonl, how many texts come out, what is counted)
FAULTS = [
    ("empty file", b"", 0, {"empty file": 1}),
    ("five newlines", b"\n\n\n\n\n", 0, {"blank line": 5}),
    ("blank line with spaces", line("一") + b"   \n" + line("二"), 2, {"blank line": 1}),
    ("byte order mark", b"\xef\xbb\xbf" + line("一"), 1, {}),
    ("byte order mark in mid-file", line("一") + b"\xef\xbb\xbf" + line("二"), 2, {}),
    ("CRLF", line("一").replace(b"\n", b"\r\n") * 2, 2, {}),
    ("CR only", line("一").replace(b"\n", b"\r") * 2, 2, {}),
    ("no final newline", line("一") + line("二")[:-1], 2, {}),
    ("content instead of text", '{"content": "一"}\n'.encode(), 1, {}),
    ("no text field", b'{"title": "x"}\n{}\n', 0, {"no text field": 2}),
    ("text is null", b'{"text": null}\n', 0, {"text is null": 1}),
    ("text is a number", b'{"text": 42}\n{"text": 4.2}\n', 0, {"text is a number": 2}),
    ("text is a huge integer", b'{"text": ' + b"9" * 5000 + b"}\n", 0, {"text is a number": 1}),
    ("huge integer elsewhere", b'{"id": ' + b"9" * 5000 + b', "text": "a"}\n', 1, {}),
    ("text is true", b'{"text": true}\n', 0, {"text is true or false": 1}),
    ("text is a list", b'{"text": ["a"]}\n', 0, {"text is a list": 1}),
    ("text is an object", b'{"text": {"zh": "a"}}\n', 0, {"text is an object": 1}),
    ("text is NaN", b'{"text": NaN}\n', 0, {"text is NaN": 1}),
    ("NaN elsewhere", b'{"score": NaN, "text": "a"}\n', 1, {}),
    ("not objects", b'["a"]\n"a"\n42\nnull\n', 0, {"not an object": 4}),
    ("bare words", line("一") + "不是数据\n".encode() + line("二"), 2, {"bad JSON": 1}),
    ("trailing comma", b'{"text": "a",}\n', 0, {"bad JSON": 1}),
    ("comma after the object", b'{"text": "a"},\n', 0, {"bad JSON": 1}),
    ("single quotes", b"{'text': 'a'}\n", 0, {"bad JSON": 1}),
    ("unterminated string", b'{"text": "a\n' + line("二"), 1, {"bad JSON": 1}),
    ("quotes inside", b'{"text": "a "b" c"}\n', 0, {"bad JSON": 1}),
    ("raw newline in a string", b'{"text": "a\nb"}\n', 0, {"bad JSON": 2}),
    ("invalid escape", b'{"text": "C:\\data"}\n', 0, {"bad JSON": 1}),
    ("two objects on a line", b'{"text": "a"}{"text": "b"}\n', 0, {"bad JSON": 1}),
    ("code", b"__import__('os').system('exit 1')\n", 0, {"bad JSON": 1}),
    ("key given twice", b'{"text": "a", "text": "b"}\n', 0, {"key given twice": 1}),
    ("raw tab in a string", b'{"text": "a\tb"}\n', 1, {}),
    ("half a surrogate pair", b'{"text": "a\\ud83d b"}\n', 0, {"lone surrogate": 1}),
    ("a whole surrogate pair", b'{"text": "\\ud83d\\ude00"}\n', 1, {}),
    ("line of NUL bytes", line("一") + b"\0" * 64 + b"\n", 1, {"line of NUL bytes": 1}),
    ("deep nesting", b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", 0, {"nested too deep": 1}),
    ("one GBK line", line(STORY) + f'{{"text": "{STORY}"}}\n'.encode("gbk"), 1, {"not UTF-8": 1}),
    ("one Big5 line", line(STORY) + '{"text": "春眠不覺曉"}\n'.encode("big5"), 1, {"not UTF-8": 1}),
    ("invalid byte", line(STORY) + b'{"text": "a\xffb"}\n', 1, {"not UTF-8": 1}),
    ("overlong form", line(STORY) + b'{"text": "a\xc0\xafb"}\n', 1, {"not UTF-8": 1}),
    ("cut inside a character", line(STORY) + line(STORY)[:-6], 1, {"last line cut short": 1}),
    ("cut inside a string", line(STORY) + line(STORY)[:-4], 1, {"last line cut short": 1}),
]


@pytest.mark.parametrize("data,kept,counts", [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_one_counted_drop_and_the_rest_is_read(tmp_path, data, kept, counts):
    texts, counted = read(tmp_path, data)
    assert (len(texts), counted) == (kept, counts)
    "".join(texts).encode("utf-8")


def test_a_drop_is_shown_with_file_line_and_byte(tmp_path):
    good = line(STORY)
    (tmp_path / "a.jsonl").write_bytes(good + b'{"text": "a\xffb"}\n')
    drops = Drops()
    list(read_texts(tmp_path / "a.jsonl", drops))
    assert drops.first["not UTF-8"].startswith(f"{tmp_path / 'a.jsonl'}:2: byte {len(good) + 11}: ")
    assert drops.first["not UTF-8"] in drops.table()


def test_merged_drops_add_up_and_keep_the_earlier_example():
    a, b = Drops(), Drops()
    a.add("bad JSON", "x", 1, "one")
    b.add("bad JSON", "y", 2, "two")
    b.add("empty text", "y", 3)
    a.merge(b)
    assert a.counts == {"bad JSON": 2, "empty text": 1}
    assert a.first["bad JSON"] == "x:1: one"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_file_in_another_encoding_reads_as_in_utf8(tmp_path, name, encoding):
    texts = ["山重水复疑无路，柳暗花明又一村。", STORY, "一年之计在于春，一日之计在于晨。"]
    data = FORMATS[name](texts).decode() if name != "a.txt" else "id\n\n" + "\n\n".join(texts)
    expected = ["id", *texts] if name == "a.txt" else texts
    assert read(tmp_path, data.encode(encoding), name) == (expected, {})


@pytest.mark.parametrize(
    "text,encoding",
    [
        ("안녕하세요. 오늘은 날씨가 좋습니다.\n", "euc_kr"),
        ("Où est l'été? Déjà vu.\n", "latin-1"),
        ("春眠不覺曉，處處聞啼鳥。\n", "big5"),
    ],
)
def test_other_encodings_are_not_mistaken_for_gb18030(tmp_path, text, encoding):
    assert guess_encoding(text.encode(encoding) * 5) == "utf-8"
    assert read(tmp_path, text.encode(encoding) * 5, "a.txt") == ([], {"not UTF-8": 5})


def test_undecodable_places_of_a_utf16_file_cost_only_their_line(tmp_path):
    data = (
        line(STORY).decode().encode("utf-16")
        + b'{\0"\0\x00\xd8"\0}\0\n\0'
        + line("二").decode().encode("utf-16-le")
        + b"\x41"
    )
    assert read(tmp_path, data) == ([STORY, "二"], {"not UTF-8": 1, "last line cut short": 1})


@given(st.binary(max_size=200), st.integers(1, 20), st.integers(4, 30))
def test_lines_keep_every_byte_whatever_the_chunks_and_the_limit(data, chunk, limit):
    lines = list(split_lines([data[i : i + chunk] for i in range(0, len(data), chunk)], limit))
    assert b"".join(lines) == data
    assert all(len(piece.splitlines()) == 1 for piece in lines)
    if all(len(x) < limit for x in data.splitlines(keepends=True)):
        assert lines == data.splitlines(keepends=True)


@given(st.text(alphabet="中文😀é a", min_size=1, max_size=100), st.integers(4, 20))
def test_pieces_of_a_long_line_never_end_inside_a_character(text, limit):
    for piece in split_lines([text.encode()], limit):
        assert len(piece) <= limit
        piece.decode("utf-8")


def test_a_line_over_the_limit_is_one_drop(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_RECORD", 1000)
    assert read(tmp_path, line("一") + line("长" * 3000) + line("二")) == (["一", "二"], {"line too long": 1})


# --- .json ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data,kept,counts",
    [
        (b"[]", 0, {}),
        (b' [\n{"text": "a"}\n,{"text": "b"} ]\n', 2, {}),
        (b'[{"text": "a"}, {"text": "b"},\n]', 2, {"array broken from here on": 1}),
        (b'[{"text": "a"} {"text": "b"}]', 1, {"array broken from here on": 1}),
        (b'[{"text": "a"}, {"text": "b', 1, {"array broken from here on": 1}),
        (b'[{"text": "a"}', 1, {"array broken from here on": 1}),
        (b'[{"text": "a"}, 7, {"text": "b"}]', 2, {"not an object": 1}),
        (b'[{"text": "a\xff"}, {"text": "b"}]', 1, {"not UTF-8": 1}),
        (b'{"text":\n "a"}\n\n{"text": "b"}', 2, {}),
        (b'{"text": "a"}\n{"text": oops}\n{"text": "b"}\n', 2, {"bad JSON": 1}),
        (b'{"text": "a"},\n{"text": "b"},\n', 2, {}),
    ],
)
def test_json_files_give_what_comes_before_a_break(tmp_path, data, kept, counts):
    texts, counted = read(tmp_path, data, "a.json")
    assert (len(texts), counted) == (kept, counts)


def test_the_first_record_of_a_huge_array_needs_only_the_first_chunks():
    chunks_read = 0

    def chunks():
        nonlocal chunks_read
        for i in itertools.count():
            chunks_read += 1
            yield b"[" * (i == 0) + b'{"text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},' * 20_000

    records = formats.read_json_values(chunks(), "x", Drops())
    assert next(records)[1]["text"].startswith("a")
    assert chunks_read <= 3
    for _ in itertools.islice(records, 200_000):
        pass
    assert chunks_read <= 14


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.integers(), max_size=3), max_size=6),
    st.integers(1, 9),
)
def test_an_array_in_any_chunks_is_what_json_reads(records, chunk):
    data = json.dumps(records).encode()
    window = iter([data[i : i + chunk] for i in range(0, len(data), chunk)])
    original, formats.CHUNK = formats.CHUNK, 1
    try:
        assert [value for _, value in formats.read_json_values(window, "x", Drops())] == records
    finally:
        formats.CHUNK = original


# --- .csv, .parquet, .gz ----------------------------------------------------------------------------------------------


def test_csv_fields_keep_quotes_newlines_and_any_length(tmp_path):
    texts = ["a,b", 'say ""', "一\n二\r\n三", "NA", "nan", "null", "3.14", "长" * 140_000]
    assert read(tmp_path, as_csv(texts), "a.csv") == (texts, {})


@pytest.mark.parametrize(
    "row,reason",
    [
        (b"1", "wrong number of columns"),
        (b"1,2,3", "wrong number of columns"),
        (b"", "blank line"),
        (b"id,text", "header again"),
        (b'1,"a"b"', "bad CSV"),
        (b'1,"a\\"b\\""', "bad CSV"),
        ('1,"好的"'.encode("gbk"), "not UTF-8"),
    ],
)
def test_a_bad_csv_row_is_dropped_alone(tmp_path, row, reason):
    data = "id,text\n0,好的\n".encode() + row + b"\n2,c\n"
    assert read(tmp_path, data, "a.csv") == (["好的", "c"], {reason: 1})


def test_an_open_quote_at_the_end_of_a_csv_is_a_drop(tmp_path):
    assert read(tmp_path, b'id,text\n1,a\n2,"b\nc', "a.csv") == (["a"], {"bad CSV": 1})


def test_a_cut_gzip_file_gives_what_came_before_the_cut(tmp_path):
    packed = gzip.compress(b"".join(line(f"{i} {STORY}") for i in range(5000)))
    texts, counts = read(tmp_path, packed[: len(packed) // 2], "a.jsonl.gz")
    assert len(texts) > 100
    assert counts == {"broken gzip file": 1, "last line cut short": 1}
    assert read(tmp_path, b"not gzip at all", "b.jsonl.gz") == ([], {"broken gzip file": 1})


def test_a_broken_parquet_file_is_a_drop(tmp_path):
    assert read(tmp_path, b"PAR1 no", "a.parquet") == ([], {"broken parquet file": 1})


# --- which text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record,text",
    [
        ({"instruction": "甲", "input": "", "output": "乙"}, "甲\n乙"),
        ({"history": [["一", "二"]], "q": "三", "a": "四"}, "一\n二\n三\n四"),
        ({"history": "[]", "q": "三", "a": "四"}, "三\n四"),
        ({"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, "问\n答"),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}], "id": "x7"}, "问\n答"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]}]}, "问"),
        ({"prompt": "问", "chosen": "好", "rejected": None}, "问\n好"),
        ({"chosen": [{"role": "user", "content": "问"}], "rejected": []}, "问"),
    ],
)
def test_chat_records_give_their_words_without_roles(tmp_path, record, text):
    assert read(tmp_path, json.dumps(record).encode() + b"\n") == ([text], {})


def test_a_named_field_is_used_and_missed(tmp_path):
    data = b'{"text": "a", "body": "b"}\n{"text": "a"}\n'
    assert read(tmp_path, data, field="body") == (["b"], {"no field body": 1})


def test_folders_are_searched_sorted_and_nothing_is_read_twice(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "b.bin", "a.txt", "sub/c.csv.gz", "notes.md", "packed.bin", "d.json", "d.bin"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "packed.json").write_text(json.dumps({"format": binfile.FORMAT}), encoding="utf-8")
    found = expand_inputs([tmp_path, str(tmp_path / "a.txt")])
    assert [p.name for p in found] == ["a.txt", "b.jsonl", "d.json", "c.csv.gz"]


@pytest.mark.parametrize(
    "name,error", [("none.jsonl", FileNotFoundError), ("empty", FileNotFoundError), ("a.docx", ValueError)]
)
def test_a_wrong_input_is_named(tmp_path, name, error):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(error, match=name):
        list(read_texts([tmp_path / name], Drops()))


def test_records_come_with_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"x": 1}\n\n{"x": 2}\n')
    assert list(read_records(tmp_path / "a.jsonl", Drops())) == [(2, {"x": 1}), (4, {"x": 2})]
    (tmp_path / "a.json").write_bytes(b'[\n{"x": 1},\n{"x":\n 2}\n]')
    assert list(read_records(tmp_path / "a.json", Drops())) == [(2, {"x": 1}), (3, {"x": 2})]


# --- cleaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw,cleaned",
    [
        ("e\u0301", "é"),
        ("a\0b\x07\x1b[31mc\x7f\x85d", "ab[31mc\nd"),
        ("a\r\nb\rc\td\u3000e", "a\nb\nc\td\u3000e"),
        ("  留白  \n", "  留白  \n"),
        ("\u200b零宽\u2028", "\u200b零宽\u2028"),
    ],
)
def test_clean_text_changes_only_form_and_controls(raw, cleaned):
    assert clean_text(raw) == (cleaned, None)


@pytest.mark.parametrize("raw", ["", " \n\t ", "\u3000\u3000", "\0\x01"])
def test_text_without_anything_to_read_is_rejected(raw):
    assert clean_text(raw) == (None, "empty text")


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=20), max_size=30))
def test_mark_new_finds_first_occurrences_as_a_set_does(batches):
    import numpy as np

    seen, met = [], set()
    for batch in batches:
        expected = [not (key in met or met.add(key)) for key in batch]
        assert mark_new(np.array(batch, np.uint64), seen).tolist() == expected
    assert sorted(np.concatenate(seen).tolist() if seen else []) == sorted(met)
    assert len(seen) <= 6
