"""The documents that models are measured on, from raw files and .bin files of any size, one at a time in memory.

Unlike `data_process.py pretrain`, which cleans, nothing is changed or dropped here except documents without a letter:
what cannot be read ends the run, with the command that makes a .bin of it.
"""

import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from model.bin_data import bin_files, document_starts, open_ids

LONGEST = 1 << 20  # bytes of one document of a .txt file; a longer block of lines goes on as the next document
CHUNK = 1 << 20  # characters of a .json file read at a time
FIELDS = ("text", "content")  # the first that a record has is read, as in data_process.py pretrain
BETWEEN = re.compile(r"[\s,\[\]]*")  # what stands between the objects of a .json file


class Text(NamedTuple):
    """A document of a raw file.

    Attributes:
        text: its text, not blank.
        size: the UTF-8 bytes of it.
        read: bytes of the file, compressed or not, that were read since the document before; for progress bars.
    """

    text: str
    size: int
    read: float


def data_files(paths):
    """Files, and folders of .bin shards → list of Path, each once; FileNotFoundError for what is not there."""
    files = [f for p in map(Path, paths) for f in (bin_files(p) if p.is_dir() or p.suffix == ".bin" else [p])]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no data at {file}; check the path")
    return list(dict.fromkeys(files))


def groups(items, limit, size):
    """Yields lists of items, in order, each closed when the sum of size(item) reaches `limit`."""
    group, total = [], 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def bin_documents(path, tokenizer):
    """Yields the ids of each document of a .bin, BOS and EOS as they are in the file: (n,) uint16, memory-mapped.

    Number n of them is what `data_process.py inspect FILE n` shows.
    """
    ids, begin = open_ids(path), None
    for starts in document_starts(ids, tokenizer.bos_id, tokenizer.vocab_size, path):
        for start in starts.tolist():
            if begin is not None:
                yield ids[begin:start]
            begin = start
    yield ids[begin:]


def text_documents(path):
    """Yields a Text for each document of a raw file: a block of lines of a .txt, else the FIELDS column of a record.

    Raises:
        ValueError: a format or an encoding that is not read here, a broken file, a record without text, or no text.
    """
    reader = READERS.get(Path(path.name.lower().removesuffix(".gz")).suffix)
    if reader is None or path.name.lower().endswith(".parquet.gz"):
        raise unreadable(path, "it is not a .txt, .jsonl, .json or .csv, plain or .gz, or a .parquet")
    before = None
    try:
        with open(path, "rb") as file:
            for text in reader(file, path):
                size = len(text.encode("utf-8"))  # half a surrogate pair, which no tokenizer takes, is an error here
                if text.strip():
                    place = file.tell()
                    yield Text(text, size, place - (before or 0))
                    before = place
    except (UnicodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
        raise unreadable(path, error) from error
    if before is None:
        raise ValueError(f"{path} holds no text")


def unreadable(path, reason):
    """The ValueError for a file that data_process.py may read."""
    return ValueError(
        f"cannot read {path}: {reason}. Clean it into a .bin, which is read too: "
        f"python data_process.py pretrain --input {path} --output FILE.bin"
    )


def decoded(file, newline=None):
    """A binary file, compressed if its name ends in .gz → characters."""
    plain = gzip.GzipFile(fileobj=file) if file.name.lower().endswith(".gz") else file
    return io.TextIOWrapper(plain, encoding="utf-8-sig", newline=newline)


def read_paragraphs(file, path):
    """A .txt: the blocks of lines between blank lines."""
    block, size = [], 0
    stream = decoded(file)
    for line in iter(lambda: stream.readline(LONGEST), ""):
        blank, length = not line.strip(), len(line.encode("utf-8"))
        if block and (blank or size + length > LONGEST):
            yield "".join(block).rstrip("\n")
            block, size = [], 0
        if not blank:
            block.append(line)
            size += length
    yield "".join(block).rstrip("\n")


def text_of(record, path, place):
    """The text of a record; ValueError if it has none."""
    name = next((f for f in FIELDS if isinstance(record, dict) and isinstance(record.get(f), str)), None)
    if name is None:
        raise unreadable(path, f"{place} is no record with a {' or '.join(FIELDS)}")
    return record[name]


def read_json_lines(file, path):
    """A .jsonl: an object on each line; blank lines mean nothing."""
    for number, line in enumerate(decoded(file), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise unreadable(path, f"line {number} is not JSON") from error
            yield text_of(record, path, f"line {number}")


def read_json(file, path):
    """A .json: one array of objects, or objects one after another; holds one of them and a chunk at a time."""
    decoder, stream, text, at, number = json.JSONDecoder(), decoded(file), "", 0, 0
    while True:
        at = BETWEEN.match(text, at).end()
        try:
            record, at = decoder.raw_decode(text, at)  # an object is whole, or it cannot be parsed
        except json.JSONDecodeError as error:
            more = stream.read(max(CHUNK, len(text) - at))
            if not more and at < len(text):
                raise unreadable(path, f"what follows record {number} is not JSON") from error
            if not more:
                return
            text, at = text[at:] + more, 0
        else:
            number += 1
            yield text_of(record, path, f"record {number}")


def read_csv(file, path):
    """A .csv with a header."""
    csv.field_size_limit(64 << 20)
    rows = csv.DictReader(decoded(file, newline=""), strict=True)
    for row in rows:
        yield text_of(row, path, f"the row that ends at line {rows.line_num}")


def read_parquet(file, path):
    """A .parquet with a column of FIELDS."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        table = pq.ParquetFile(path)
        names = [name for name in FIELDS if name in table.schema_arrow.names]
        for batch in table.iter_batches(batch_size=256, columns=names):
            for record in batch.to_pylist():
                done += 1
                yield text_of(record, path, f"row {done}")
            # pyarrow has a handle of its own; this one only tells how far it is
            file.seek(path.stat().st_size * done // table.metadata.num_rows)
    except pa.ArrowException as error:
        raise unreadable(path, error) from error


READERS = {
    ".txt": read_paragraphs,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
