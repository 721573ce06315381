"""Files that appear whole or not at all, and names that tell what a file was made from."""

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path, write):
    """Calls write(file) on a temporary file beside `path`, then puts it in place; on failure `path` stays as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError of its zip writer
        raise not_written(path, error, temporary.stat().st_size if temporary.exists() else 0) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path, array):
    """Writes a .npy file, atomically."""
    # numpy hands a real file to the C library, which loses what a full disk refuses at its end without an error
    write_atomically(path, lambda f: np.save(SimpleNamespace(write=f.write), array))


def not_written(path, error, written):
    """The OSError of a file that could not be written, with what is there now and the next step."""
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    kept = f"{path.name} of the last save is kept" if path.exists() else "nothing was overwritten"
    return OSError(
        f"could not write {path}: {error} ({written / 1e6:.1f} MB written, {free / 1e6:.1f} MB free); {kept}. "
        "Make room, or choose another --out_dir, and run the same command again"
    )


@contextlib.contextmanager
def room_for(path):
    """A context in which a full disk is told as the failure to write `path`, which is made from what fills it."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise not_written(path, error, 0) from error


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
