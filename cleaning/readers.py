"""Raw files → records → texts, in bounded memory; what cannot be used is counted by reason, with its place.

Reads .jsonl, .json (one array, or values one after another), .csv, .txt and .parquet, plain or gzip. Files are parsed,
never executed, and nothing disappears: a record either comes out or is a counted drop.
"""

import collections
import functools
import gzip
import math
import os
import sys
import zlib
from pathlib import Path

from cleaning.binfile import is_sidecar
from cleaning.encodings import ignore, read_chunks, utf8_chunks
from cleaning.exam_files import is_question
from cleaning.files import is_description
from cleaning.formats import read_csv, read_json_lines, read_json_values, read_paragraphs, read_parquet

ENDINGS = (".jsonl", ".json", ".csv", ".txt", ".parquet")
OWN_ENDINGS = (".bin", ".npz", ".npy", ".md", ".part", ".incomplete")  # of results and notes that lie among texts
SHOWN_FILES = 50  # names of files that are lost in part
READING_ERRORS = (EOFError, OSError, zlib.error)  # a gzip file that is cut short or damaged, a disk or link that fails
# Where the words are in instruction and preference data; `role`, `from`, `id` and the like are labels, not words.
# fmt: off
CHAT_KEYS = ("system", "history", "instruction", "prompt", "question", "query", "input", "q", "conversations",
             "messages", "output", "response", "answer", "a", "chosen", "rejected", "response_chosen",
             "response_rejected", "value", "content", "text")
CHAT_MARKS = ("instruction", "output", "conversations", "messages", "q", "a", "prompt", "question", "chosen",
              "rejected")
# fmt: on


class Drops:
    """What was left out: `counts` by reason, and `first` example of each as 'file:line: excerpt'.

    `files` names those of which more than a record is lost, at most SHOWN_FILES of them.
    """

    def __init__(self):
        self.counts = collections.Counter()
        self.first, self.files = {}, []

    def add(self, reason, source, line, sample=""):
        """Counts one drop; `sample` (str or bytes) becomes one short printable line."""
        self.counts[reason] += 1
        if reason not in self.first:
            start = sample[:200].decode("utf-8", "backslashreplace") if isinstance(sample, bytes) else sample[:200]
            shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in start.strip())
            self.first[reason] = f"{source}:{line}: {shown[:80]}"

    def add_file(self, reason, path, sample=""):
        """Counts a file that cannot be read to its end, and keeps its name."""
        self.add(reason, path, 0, sample)
        self.files = [*self.files, f"{path}: {reason}"][:SHOWN_FILES]

    def merge(self, other):
        """Adds another count to this one; a first example already here stays."""
        self.counts.update(other.counts)
        self.first = {**other.first, **self.first}
        self.files = [*self.files, *other.files][:SHOWN_FILES]

    def take(self):
        """What was counted so far, as a Drops of its own; this one begins anew."""
        taken = Drops()
        taken.__dict__, self.__dict__ = self.__dict__, taken.__dict__
        return taken

    def table(self):
        """One line per reason, the most frequent first."""
        if not self.counts:
            return "dropped: nothing"
        width = max(map(len, self.counts))
        rows = [f"{count:>11,}  {reason:<{width}}  {self.first[reason]}" for reason, count in self.counts.most_common()]
        total = sum(self.counts.values())
        if self.files:
            rows += ["WARNING: files that could not be read to their end:", *(f"  {file}" for file in self.files)]
        return "\n".join([f"dropped: {total:,} in all; by reason, with the first of each", *rows])


# --- files ------------------------------------------------------------------------------------------------------------


def ending_of(path):
    """'.jsonl' for a.jsonl and A.JSONL.gz; '' for an ending that is not read here."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in ENDINGS else ""


def files_under(folder):
    """All files below a folder, through links too, sorted; what is not searched, and why, is told on stderr."""
    seen, found = {os.path.realpath(folder)}, []
    refused = lambda error: tell(f"{error.filename} is not searched: {error.strerror}")  # noqa: E731
    for here, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        folders.sort(key=lambda name: (os.path.islink(os.path.join(here, name)), name))
        for name in list(folders):
            real = os.path.realpath(os.path.join(here, name))
            if real in seen:
                folders.remove(name)
                tell(f"{os.path.join(here, name)} is not searched: it leads to a folder that was")
            seen.add(real)
        found += [Path(here, name) for name in files]
    if others := sorted(p for p in found if not ending_of(p) and p.suffix not in OWN_ENDINGS):
        tell(f"{len(others):,} files in {folder} are of a kind that is not read, such as {others[0]}")
    return sorted(found)


@functools.cache  # a folder is searched several times
def tell(line):
    """Prints a line for a person on stderr, once."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def expand_inputs(paths):
    """Files and folders (searched to the bottom, sorted) → list of Path, each file once."""
    found = {}
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        if path.is_dir():
            # a link to nothing is among them, for the reader to count
            own = (p for p in files_under(path) if ending_of(p) and (p.is_file() or not p.exists()))
            files = [p for p in own if not is_sidecar(p) and not is_description(p)]
            if not files:
                raise FileNotFoundError(
                    f"no {' '.join(ENDINGS)} file, plain or .gz, in folder {path}; name another folder"
                )
        elif not path.exists():
            raise FileNotFoundError(
                f"no file or folder at {path}; check the path, or make data: python data_process.py demo"
            )
        elif not ending_of(path):
            raise ValueError(
                f"cannot read {path}: it must end in {', '.join(ENDINGS)}, or one of them and .gz; convert it"
            )
        else:
            files = [path]
        for file in files:
            found.setdefault(os.path.realpath(file), file)  # which, unlike resolve(), lives through a link to itself
    if not found:
        raise ValueError("no input: name at least one file or folder")
    return list(found.values())


# --- records ----------------------------------------------------------------------------------------------------------

READERS = {".jsonl": read_json_lines, ".json": read_json_values, ".csv": read_csv, ".txt": read_paragraphs}


def read_records(path, drops, progress=ignore):
    """Yields (line, record) for every usable record of one file; a record is a dict.

    Args:
        drops: Drops that counts the rest.
        progress: called with the number of bytes taken from the disk, as they are.
    """
    path, source, ending = Path(path), str(path), ending_of(Path(path))
    try:
        if path.stat().st_size == 0:
            drops.add_file("empty file", source)
        elif ending == ".parquet":
            yield from read_parquet(path, source, drops, progress)
        else:
            yield from READERS[ending](utf8_chunks(readable_chunks(path, drops, progress)), source, drops)
    except READING_ERRORS as error:
        note_broken(path, error, drops)


def readable_chunks(path, drops, progress=ignore):
    """Decompressed bytes of a file up to where it can be read; what is broken off is counted."""
    try:
        yield from read_chunks(path, progress)
    except READING_ERRORS as error:
        note_broken(path, error, drops)


def note_broken(path, error, drops):
    """Counts a file that could not be read, or not to its end."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        drops.add_file("cannot be read", str(path), error.strerror or str(error))
    else:
        drops.add_file("broken gzip file", str(path), f"what was before the break is kept: {error}")


def size_of(path):
    """Bytes of a file; 0 for one that cannot be looked at, which reading it will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


# --- texts ------------------------------------------------------------------------------------------------------------


def chat_strings(value):
    """The words of instruction, chat and preference data in reading order, without roles and names."""
    if isinstance(value, str):
        return [value] if value not in ("", "[]") else []
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k in CHAT_KEYS]
    return [s for v in value for s in chat_strings(v)] if isinstance(value, list) else []


def text_of(record, field=None):
    """The text of one record → (text, None) or (None, reason)."""
    name = field or next((k for k in ("text", "content") if k in record), None)
    if name is None:
        if is_question(record):
            return None, "exam question"
        if not any(k in record for k in CHAT_MARKS):
            return None, "no text field"
        return "\n".join(chat_strings(record)), None
    if name not in record:
        return None, f"no field {name}"
    value = record[name]
    if isinstance(value, str):
        return value, None
    if isinstance(value, float) and not math.isfinite(value):
        return None, "text is NaN" if math.isnan(value) else "text is a number"
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return None, f"text is {kinds.get(type(value), 'a list')}"


def read_located(paths, drops, field=None, progress=ignore):
    """Yields (file, line, text) for every record of `paths`, which are files and folders; see read_texts."""
    for path in expand_inputs(paths):
        for line, record in read_records(path, drops, progress):
            text, reason = text_of(record, field)
            if reason is None:
                yield str(path), line, text
            else:
                drops.add(reason, str(path), line, str(record))


def read_texts(paths, drops, field=None):
    """Yields the raw text of every record of `paths`, which are files and folders.

    Args:
        drops: Drops that counts what has no text.
        field: name of the text field. Unset: `text`, else `content`, else all words of an instruction, chat or
            preference record, joined by newlines.
    Raises:
        FileNotFoundError, ValueError: a path that is not there, or that is no format of this project.
    """
    for _, _, text in read_located(paths, drops, field):
        yield text
