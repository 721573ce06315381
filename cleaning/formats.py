"""One reader per file format: decoded chunks → (line, record), with every unusable record counted in `drops`.

Files are parsed, never executed. The formats are told apart in `cleaning.readers`, which is what other code calls.
"""

import codecs
import csv
import gzip
import json
import re
import shutil
import tempfile

from cleaning.encodings import BOM, CHUNK, split_lines

MAX_RECORD = 64 << 20  # bytes (characters in .json and .csv): no record may ask for more memory than this
MAX_BLOCK = 1 << 20  # bytes of one document of a .txt file; a longer paragraph block goes on as the next document
SPACE, SPACE_OR_COMMA = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")


def whole_number(digits):
    """int, or inf where Python refuses to convert so many digits (over 4,300)."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def as_object(pairs):
    """dict; the pairs themselves where a key is given twice, because any choice would lose one of the values."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else pairs


# strict=False: a raw tab or NUL inside a string has only one possible meaning
DECODER = json.JSONDecoder(strict=False, parse_int=whole_number, object_pairs_hook=as_object)


def is_unicode(text):
    """False where `text` holds half a surrogate pair, which UTF-8 cannot store."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def reason_to_drop(value, text):
    """Why `value`, parsed from the JSON `text`, is not a usable record; None if it is one."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return "key given twice"
    if not isinstance(value, dict):
        return "not an object"
    if "\\ud" in text or "\\uD" in text:  # the only way for JSON to carry half a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return "lone surrogate"
    return None


def parse_line(raw, offset):
    """One line of .jsonl, `offset` bytes into its file → (record, None, None) or (None, reason, sample)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, "not UTF-8", b"byte %d: %s" % (offset + error.start, raw)
    try:
        value = DECODER.decode(text)
    except RecursionError:
        return None, "nested too deep", text
    except json.JSONDecodeError:
        if not text.strip("\0 \t\r\n"):
            return None, "line of NUL bytes" if "\0" in text else "blank line", text
        return None, "bad JSON", text
    return value, reason_to_drop(value, text), text


def read_json_lines(chunks, source, drops, number=0, offset=0, skipping=False):
    """A .jsonl file: one object per line.

    A part of a file begins behind `offset` bytes and `number` lines, or, if `skipping`, inside line `number`, which is
    too long, comes in pieces, and was counted where it began.
    """
    for raw in split_lines(chunks, MAX_RECORD):
        ended = raw.endswith((b"\n", b"\r"))
        if not skipping:
            number += 1
            skipping = (
                not ended and len(raw) > MAX_RECORD - 4
            )  # a piece may end up to 3 bytes early, before a character
            value, reason, sample = (
                parse_line(raw.removeprefix(BOM), offset) if not skipping else (None, "line too long", raw)
            )
            if reason is None:
                yield number, value
            elif reason in ("bad JSON", "not UTF-8") and not ended:
                drops.add("last line cut short", source, number, sample)
            else:
                drops.add(reason, source, number, sample)
        elif ended:
            skipping = False
        offset += len(raw)


class Window:
    """The part of a long JSON text that is in memory: text[at:] waits to be parsed and begins on `line`."""

    def __init__(self, chunks):
        self.chunks, self.decoder = chunks, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.line, self.more = "", 0, 1, True

    def grow(self):
        """Doubles what is in sight, so that a long record is tried a few times only."""
        parts = [self.text[self.at :]]
        goal = max(CHUNK, 2 * len(parts[0]))
        while self.more and sum(map(len, parts)) < goal:
            chunk = next(self.chunks, None)
            self.more = chunk is not None
            parts.append(self.decoder.decode(chunk or b"", not self.more))
        self.text, self.at = "".join(parts), 0

    def advance(self, to):
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def peek(self, skip):
        """The next character that the pattern `skip` does not match; '' at the end of the file."""
        self.advance(skip.match(self.text, self.at).end())
        while self.at == len(self.text) and self.more:
            self.grow()
            self.advance(skip.match(self.text, self.at).end())
        return self.text[self.at : self.at + 1]

    def value(self):
        """(the value that begins here, its text); JSONDecodeError or RecursionError leave the place unchanged."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # 16: longer than any escape, literal or number that the end of the window could have cut
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if not (cut and self.more and len(self.text) - self.at < MAX_RECORD):
                    raise
            else:
                if end < len(self.text) or not self.more:
                    raw = self.text[self.at : end]
                    self.advance(end)
                    return value, raw
            self.grow()


def read_json_values(chunks, source, drops):
    """A .json file: the members of one array, or values one after another. Holds one record and a few chunks at a time.

    Where an array breaks, the rest of it is one drop; separate values go on at the next line.
    """
    window = Window(chunks)
    array = window.peek(SPACE) == "["
    if array:
        window.advance(window.at + 1)
        array = window.peek(SPACE) != "]"
        window.advance(window.at + (not array))
    while window.peek(SPACE if array else SPACE_OR_COMMA):
        line = window.line
        try:
            value, raw = window.value()
        except (json.JSONDecodeError, RecursionError) as error:
            sample = window.text[window.at : window.at + 200]
            if array:
                break
            drops.add("nested too deep" if isinstance(error, RecursionError) else "bad JSON", source, line, sample)
            window.advance(window.text.find("\n", window.at) + 1 or len(window.text))
            continue
        reason = reason_to_drop(value, raw) if is_unicode(raw) else "not UTF-8"
        if reason is None:
            yield line, value
        else:
            drops.add(reason, source, line, raw[:200])
        if array:
            mark = window.peek(SPACE)
            if mark not in (",", "]"):
                break
            window.advance(window.at + 1)
            array = mark == ","
    if array:
        sample = window.text[window.at : window.at + 200]
        drops.add("array broken from here on", source, window.line, sample or "the file ends")


def read_csv(chunks, source, drops):
    """A .csv file with a header row; fields may hold commas, doubled quotes and line ends."""
    offset, bad = 0, []  # bad: offsets of undecodable bytes since the last row

    def decoded():
        nonlocal offset
        for raw in split_lines(chunks, MAX_RECORD):
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                bad.append(offset + error.start)
                yield raw.decode("utf-8", "surrogateescape")
            offset += len(raw)

    csv.field_size_limit(MAX_RECORD)
    # strict: a misplaced quote is an error, where the lenient reader would return a changed text
    rows = csv.reader(decoded(), strict=True)
    header = None
    while True:
        line = rows.line_num + 1
        bad.clear()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            drops.add("bad CSV", source, line, str(error))
            continue
        if bad:
            drops.add("not UTF-8", source, line, f"byte {bad[0]}: {','.join(row)[:200]}")
        elif not row:
            drops.add("blank line", source, line)
        elif header is None:
            header = row
        elif row == header:
            drops.add("header again", source, line, ",".join(row))
        elif len(row) != len(header):
            drops.add("wrong number of columns", source, line, f"{len(row)} of {len(header)}: {','.join(row)[:200]}")
        else:
            yield line, dict(zip(header, row))


def read_paragraphs(chunks, source, drops):
    """A .txt file: one record per block of lines between blank lines."""
    offset, number, block, size, first = 0, 1, [], 0, 1
    for raw in split_lines(chunks, MAX_BLOCK):
        try:
            line = raw.removeprefix(BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            drops.add("not UTF-8", source, number, b"byte %d: %s" % (offset + error.start, raw[:200]))
            line = ""
        if block and (size + len(raw) > MAX_BLOCK or (line and not line.strip())):
            yield first, {"text": "".join(block).rstrip("\r\n")}
            block, size = [], 0
        if line.strip():
            first = first if block else number
            block.append(line)
            size += len(raw)
        offset += len(raw)
        number += raw.endswith((b"\n", b"\r"))
    if block:
        yield first, {"text": "".join(block).rstrip("\r\n")}


def read_parquet(path, source, drops, progress):
    """A .parquet file, some rows at a time; dates and times are not text and are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, "rb") as file, tempfile.TemporaryFile() as plain:
        if path.name.lower().endswith(".gz"):  # the format needs seeking, from its end
            shutil.copyfileobj(gzip.GzipFile(fileobj=file), plain, CHUNK)
        number = 0
        try:
            table = pq.ParquetFile(plain if plain.tell() else file)
            columns = [column.name for column in table.schema_arrow if not pa.types.is_temporal(column.type)]
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        yield number, batch.slice(row, 1).to_pylist()[0]
                    except UnicodeDecodeError as error:
                        drops.add("not UTF-8", source, number, error.object)
        except pa.ArrowException as error:
            drops.add("broken parquet file", source, number, str(error))
        progress(path.stat().st_size)
