"""Raw files → units: a few megabytes of records each, cut the same way whatever is done with them afterwards.

Lines of .jsonl are cut without being parsed, so that one reader can feed many cores; other formats are parsed here.
"""

from dataclasses import dataclass, field

from cleaning.encodings import ignore, utf8_chunks
from cleaning.formats import MAX_RECORD, read_json_lines
from cleaning.readers import Drops, ending_of, read_records, readable_chunks, size_of, text_of

UNIT = 4 << 20  # bytes of .jsonl, or characters of the texts of other formats
EACH = 64  # characters that a text counts for beside its own, so that millions of empty cells are no single unit


@dataclass
class Unit:
    """The raw material of one part.

    Attributes:
        file: its path; source: the number of that file.
        block: bytes of .jsonl that stand behind `lines` lines and `offset` bytes of the file: whole lines, or a piece
            of a line that is too long. inside: it begins within such a line.
        texts: [(line, raw text)] of another format.
        number: from 0, over all files.
        drops: what was left out on the way here.
    """

    file: str
    block: bytes = b""
    lines: int = 0
    offset: int = 0
    inside: bool = False
    texts: list = field(default_factory=list)
    number: int = 0
    source: int = 0
    drops: Drops = field(default_factory=Drops)

    def located(self, drops, name=None):
        """Yields (line, raw text) of every record that has one; drops counts the others, and those left out before."""
        drops.merge(self.drops)
        yield from self.texts
        if self.block:
            at = self.lines + self.inside, self.offset, self.inside
            for line, record in read_json_lines(iter([self.block]), self.file, drops, *at):
                text, reason = text_of(record, name)
                if reason is None:
                    yield line, text
                else:
                    drops.add(reason, self.file, line, str(record))


def count_lines(block):
    r"""How many line ends, \n, \r\n or \r, are in a block of bytes that does not end between \r and \n."""
    return block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")


def line_blocks(chunks):
    """Chunks of bytes → blocks of whole lines, about UNIT long; a line over MAX_RECORD comes in several of them.

    Yields:
        (block, open): open if the block ends inside a line.
    """
    parts, held = [], 0
    for chunk in chunks:
        parts.append(chunk)
        held += len(chunk)
        if held < UNIT or (held <= MAX_RECORD and b"\n" not in chunk and b"\r" not in chunk):
            continue
        together = b"".join(parts)
        # a \r in the last place may be half of a \r\n
        end = together.rfind(b"\n") + 1 or together.rfind(b"\r", 0, len(together) - 1) + 1
        if end:
            yield together[:end], False
        elif held > MAX_RECORD:
            end = held - together.endswith(b"\r")  # which may be the end of this line
            yield together[:end], True
        parts, held = [together[end:]], len(together) - end
    if held:
        yield b"".join(parts), False


def units_of_lines(path, drops, progress):
    """Yields the Units of one .jsonl file."""
    lines = offset = 0
    inside = False
    for block, is_open in line_blocks(utf8_chunks(readable_chunks(path, drops, progress))):
        yield Unit(str(path), block, lines, offset, inside)
        lines, offset, inside = lines + count_lines(block), offset + len(block), is_open


def units_of_records(path, name, drops, progress):
    """Yields the Units of one file of another format, and counts in `drops`."""
    texts, size = [], 0
    for line, record in read_records(path, drops, progress):
        text, reason = text_of(record, name)
        if reason is not None:
            drops.add(reason, str(path), line, str(record))
            continue
        texts.append((line, text))
        size += len(text) + EACH
        if size >= UNIT:
            yield Unit(str(path), texts=texts)
            texts, size = [], 0
    if texts:
        yield Unit(str(path), texts=texts)


def units_of(path, name, drops, progress):
    """Yields the Units of one file; what cannot be read of it is counted in `drops`."""
    if ending_of(path) == ".jsonl" and size_of(path):
        yield from units_of_lines(path, drops, progress)
    else:
        yield from units_of_records(path, name, drops, progress)


def read_units(paths, name=None, progress=ignore):
    """Yields a Unit for every few megabytes of `paths`, which are files: the same ones in every run.

    Args:
        name: the field with the text, see text_of.
        progress: called with the number of bytes taken from the disk, as they are.
    """
    number = 0
    for source, path in enumerate(paths):
        drops = Drops()
        for unit in units_of(path, name, drops, progress):
            unit.number, unit.source, unit.drops = number, source, drops.take()
            yield unit
            number += 1
        if drops.counts:  # behind the last record
            yield Unit(str(path), number=number, source=source, drops=drops)
            number += 1
