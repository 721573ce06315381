"""What is made once and kept: its name tells everything it was made from, so that a change of any makes it anew."""

import hashlib
from pathlib import Path


def digest_of(parts):
    """16 hex digits of the SHA-256 of a list of bytes or str; where one part ends and the next begins counts."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:16]


def input_digest(path):
    """16 hex digits that change when the file at `path`, or any file of that folder, is another or was written to."""
    path = Path(path).resolve()
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return digest_of(f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)


def code_digest(*files):
    """16 hex digits that change when one of these source files does, or a .py file of one of these folders."""
    sources = [f for file in map(Path, files) for f in (sorted(file.glob("*.py")) if file.is_dir() else [file])]
    return digest_of(f.read_bytes() for f in sources)
