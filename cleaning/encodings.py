"""Bytes of a file → UTF-8 lines: gzip, byte order marks, GB18030, UTF-16, all line ends, in bounded memory."""

import codecs
import gzip
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
HEAD = 1 << 16  # bytes that decide the encoding
BOM = codecs.BOM_UTF8
BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def ignore(n_bytes):
    """The progress callback of who does not want to know."""


def read_chunks(path, progress=ignore):
    """Decompressed bytes of a file. `progress` is called with the number of bytes taken from the disk."""
    with open(path, "rb") as raw:
        # read1, not read: of a cut .gz it gives everything before the cut
        read = gzip.GzipFile(fileobj=raw).read1 if Path(path).name.lower().endswith(".gz") else raw.read
        done = 0
        while chunk := read(CHUNK):
            progress(raw.tell() - done)
            done = raw.tell()
            yield chunk


def mark_undecodable(error):
    """Codec error handler: half a surrogate pair for the bad bytes, which no strict UTF-8 decoder lets pass later."""
    return "\udcff", error.end


codecs.register_error("mark_undecodable", mark_undecodable)


def decodes(data, encoding, whole=True):
    """Is every byte of `data` valid in `encoding`? whole=False: it may end inside a character."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(data, whole)
    except UnicodeDecodeError:
        return False
    return True


def guess_encoding(head):
    """'utf-8' unless the head of a file (its first HEAD bytes) is clearly something else as a whole."""
    for bom, name in BOMS.items():
        if head.startswith(bom):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even != odd and 0 in head[:2]:  # ASCII in UTF-16 has a NUL in every second byte, and data begins with ASCII
        return "utf-16-le" if odd > even else "utf-16-be"
    lines = head.splitlines()
    whole = len(head) < HEAD or len(lines) > 1
    if len(head) >= HEAD and whole:
        lines.pop()  # cut
    foreign = [line for line in lines if not line.isascii()]
    size = sum(map(len, foreign))
    # A few short GB18030 lines are valid UTF-8 by chance; a UTF-8 file with bad lines has them dropped one by one.
    if sum(len(line) for line in foreign if decodes(line, "utf-8", whole)) >= size / 20:
        return "utf-8"
    if not all(decodes(line, "gb18030", whole) for line in foreign):
        return "utf-8"
    import charset_normalizer  # GB18030 gives a meaning to almost any bytes, so the letters have to make sense as well

    letters = "".join(c for c in b"\n".join(foreign).decode("gb18030", "ignore") if not c.isascii() or c == "\n")
    rivals = ["gb18030", "big5", "euc_kr", "euc_jp", "shift_jis"]
    best = charset_normalizer.from_bytes(letters.encode("gb18030"), threshold=0.5, cp_isolation=rivals).best()
    return "gb18030" if best is not None and best.encoding == "gb18030" else "utf-8"


def utf8_chunks(chunks):
    """The same text as UTF-8 without a byte order mark. Undecodable places stay invalid, for the caller to count."""
    chunks = iter(chunks)
    head = b""
    while len(head) < HEAD and (chunk := next(chunks, b"")):
        head += chunk
    encoding = guess_encoding(head[:HEAD])
    if encoding == "utf-8":
        yield head.removeprefix(BOM)
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("mark_undecodable")
    yield decoder.decode(head).encode("utf-8", "surrogatepass").removeprefix(BOM)
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def split_lines(chunks, limit):
    r"""Bytes → lines with their ends, which are \n, \r\n or \r. A line over `limit` bytes comes in pieces."""
    parts, size = [b""], 0
    for chunk in chunks:
        open_cr = parts[-1].endswith(b"\r")  # is a \n the rest of this line end?
        parts.append(chunk)
        size += len(chunk)
        if size <= limit and not open_cr and b"\n" not in chunk and b"\r" not in chunk:
            continue
        lines = b"".join(parts).splitlines(keepends=True)
        # the last line may go on in the next chunk, even after \r: a \n may follow
        rest = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            yield from cut_line(line, limit)
        *whole, rest = cut_line(rest, limit)
        yield from whole
        parts, size = [rest], len(rest)
    for line in b"".join(parts).splitlines(keepends=True):
        yield from cut_line(line, limit)


def cut_line(line, limit):
    """A line → [line], or pieces of at most `limit` bytes that do not end inside a UTF-8 character."""
    pieces = []
    while len(line) > limit:
        cut = limit
        while cut > limit - 3 and line[cut] & 0xC0 == 0x80:
            cut -= 1
        pieces.append(line[:cut])
        line = line[cut:]
    return [*pieces, line]
