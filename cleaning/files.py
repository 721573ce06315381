"""What the data scripts share around their work: files that appear whole, and a sign of life while they are made."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DOWNLOADED, STATISTICS = "downloaded data set", "data statistics"  # "format" of descriptions that lie beside data
UNFINISHED = "parts of an unfinished corpus"
DESCRIBES = re.compile(
    rb'\s*\{\s*"format": "(%s|%s|%s)"' % tuple(f.encode() for f in (DOWNLOADED, STATISTICS, UNFINISHED))
)


def is_description(path):
    """Does this .json describe data of this project (where it came from, its statistics), instead of being data?"""
    if Path(path).suffix != ".json":
        return False
    try:
        with open(path, "rb") as file:
            return bool(DESCRIBES.match(file.read(64)))
    except OSError:  # a link to nothing, a file that may not be read: reading it will tell
        return False


def prepare_folder_of(output, flag="output"):
    """Makes the folder that a file goes to and proves that it can be written, before work is spent."""
    folder = Path(output).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}; choose another --{flag}") from error


def prepare_file(path, ending, begins, inputs=(), flag="output"):
    """Makes the folder of an output; refuses one of another kind, or that would replace anything but an older one.

    Args:
        ending: what the name ends in, such as ".json".
        begins: tuple of the bytes that a file of this kind begins with.
        inputs: paths that are read.
    Raises:
        ValueError, OSError: before work is spent, with the flag to change.
    """
    path = Path(path)
    if path.suffix != ending or path.is_dir():
        raise ValueError(f"--{flag} {path} must end in {ending} and be no folder")
    if os.path.realpath(path) in {os.path.realpath(p) for p in inputs}:
        raise ValueError(f"--{flag} {path} is one of the inputs; choose another name")
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(max(map(len, begins)))
        if start and not start.startswith(begins):
            raise ValueError(f"--{flag} {path} is there and holds something else; choose another name")
    prepare_folder_of(path, flag)


@contextlib.contextmanager
def room_for(output, needed=0):
    """A context in which a full disk is told by the name of the output, with the next step."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free = f"{shutil.disk_usage(Path(output).parent).free:,}"
        counted = f"{needed:,} bytes were needed so far and {free}" if needed else f"{free} bytes"
        raise OSError(
            f"no room for {output}: {counted} are free on that disk; free some space or choose another --output. "
            "What was there before is unchanged."
        ) from error


def safe_path(folder, name, where):
    """Where a file called `name` in an archive or a repository may lie: below `folder`, else a ValueError."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError(f"{where} has a file that would lie outside of {folder}: {name}; it is not written")
    return Path(folder, *path.parts)


def relative(path):
    """A path as seen from here; whole where that cannot be, because it lies on another drive."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return os.path.abspath(path)


def code_digest(folder):
    """16 hex digits that change when a .py file of a folder does."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def write_files(folder, texts):
    """{name: text} → files in `folder`, UTF-8: all are written aside first, so that a failure leaves the old ones."""
    aside = {Path(folder, name): Path(folder, f"{name}.{os.getpid()}.tmp") for name in texts}
    try:
        for (target, temporary), text in zip(aside.items(), texts.values()):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for target, temporary in aside.items():
            os.replace(temporary, target)
    finally:
        for temporary in aside.values():
            temporary.unlink(missing_ok=True)


def write_lines(output, lines):
    """Lines of text → a file, whole or not at all."""
    output = Path(output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def progress_meter(total, label, unit="B"):
    """update(n): shows n more of `total` bytes (or documents, …), as a bar on a terminal, else a line every 10 s."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(total=total, desc=label, unit=unit, unit_scale=True).update
    scale, shown_unit = (1e6, "MB") if unit == "B" else (1, unit)
    done, shown, start = 0, time.monotonic(), time.monotonic()

    def update(n):
        nonlocal done, shown
        done, now = done + n, time.monotonic()
        if now - shown > 10:
            shown, speed = now, max(done, 1) / (now - start)
            left = time.strftime("%H:%M:%S", time.gmtime(max(0, total - done) / speed))
            share, amount, rate = done / max(total, 1), done / scale, speed / scale
            print(
                f"{label} {share:4.0%}  {amount:,.0f} {shown_unit}  {rate:,.1f} {shown_unit}/s  left {left}", flush=True
            )

    return update
