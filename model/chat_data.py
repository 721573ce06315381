"""Files of conversations: read line by line, encoded into arrays that may be larger than memory."""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np


def file_digest(path):
    """First 16 hex digits of the SHA-256 of a file; FileNotFoundError with the command that makes it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no data at {path}; make it with: python data_process.py sft (or dpo) --output {path}")
    total = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 20):
            total.update(part)
    return total.hexdigest()[:16]


def read_jsonl(path):
    """Yields the record of each line; ValueError names a line that data_process.py did not write."""
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                record = json.loads(line)
                record["conversations"][0]["role"]
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise ValueError(
                    f"{path}:{number} is not in the form that data_process.py writes ({error!r}); "
                    "clean the file with: python data_process.py sft (or dpo)"
                ) from error
            yield record


def chunks(items, size):
    """Yields lists of at most `size` items."""
    items = iter(items)
    while part := list(itertools.islice(items, size)):
        yield part


class Growing:
    """A one-dimensional array that grows on the disk, in a file without a name.

    Args:
        dtype: of the array.
        folder: on which disk.
    """

    def __init__(self, dtype, folder):
        self.dtype, self.size = np.dtype(dtype), 0
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 closed by __exit__

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()  # the disk keeps the content for as long as it is mapped

    def append(self, values):
        """Adds values at the end."""
        self.file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.size += len(values)

    def array(self):
        """All of it, memory-mapped."""
        self.file.flush()
        return np.memmap(self.file, self.dtype, mode="r") if self.size else np.empty(0, self.dtype)
