"""The .bin format: uint16 ids of documents end to end, each `<s>text</s>`, and beside it a .json that describes it.

`pretrain.bin` has `pretrain.json`. Files appear whole or not at all: everything is written to `*.tmp` beside its place,
forced to the disk, and only then moved over what was there.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from cleaning.files import room_for

FORMAT = "uint16 ids, <s>text</s> end to end"  # the mark by which a description is told from other .json files
VERSION = 1
LONGEST_SIDECAR = 1 << 24  # bytes; a longer .json is not one of ours


def sidecar_of(path):
    """Where the description of a .bin lies."""
    return Path(path).with_suffix(".json")


def val_path_of(path):
    """`dataset/pretrain.bin` → `dataset/pretrain_val.bin`, the part held out for validation."""
    return Path(path).with_name(Path(path).stem + "_val.bin")


def is_sidecar(path):
    """Is this the description of a .bin that lies beside it? Anything else must not be overwritten, and may be data."""
    path = Path(path)
    if path.suffix != ".json" or not path.with_suffix(".bin").is_file() or path.stat().st_size > LONGEST_SIDECAR:
        return False
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(description, dict) and description.get("format") == FORMAT


def check_output(path, inputs):
    """Refuses an output that would overwrite something that is not an older output.

    Raises:
        ValueError: not a .bin name, a folder, or its .json is one of the inputs or belongs to something else.
    """
    path = Path(path)
    if path.suffix != ".bin" or path.is_dir():
        raise ValueError(f"--output {path} must be a file name that ends in .bin, for example dataset/pretrain.bin")
    taken = {Path(i).resolve() for i in inputs}
    for file in (path, val_path_of(path)):
        sidecar = sidecar_of(file)
        if sidecar.resolve() in taken or (sidecar.exists() and not is_sidecar(sidecar)):
            raise ValueError(
                f"{file} needs {sidecar} for its description, but that file holds something else; "
                f"rename it or choose another --output"
            )


class BinWriter:
    """Collects documents in `<path>.tmp`; `commit` makes that the .bin. A context manager: leaving it cleans up."""

    def __init__(self, path, bos_id, eos_id):
        self.path, self.temporary = Path(path), Path(f"{path}.tmp")
        self.bos, self.eos = (np.array([i], "<u2").tobytes() for i in (bos_id, eos_id))
        self.documents = self.tokens = self.text_bytes = self.characters = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115 closed by __exit__

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.temporary.unlink(missing_ok=True)
        Path(f"{sidecar_of(self.path)}.tmp").unlink(missing_ok=True)

    def add(self, texts, encoded):
        """Appends documents: `encoded` are the uint16 ids of `texts` as bytes, without BOS and EOS."""
        data = b"".join(part for ids in encoded for part in (self.bos, ids, self.eos))
        write(self.file, self.path, data, 2 * self.tokens)
        self.documents += len(texts)
        self.tokens += len(data) // 2
        self.characters += sum(map(len, texts))
        self.text_bytes += sum(len(t.encode("utf-8")) for t in texts)

    def prepare(self, **description):
        """Forces the ids to the disk and writes the description beside them, both still under temporary names."""
        own = {key: getattr(self, key) for key in ("tokens", "documents", "text_bytes", "characters")}
        text = json.dumps({"format": FORMAT, "version": VERSION, **own, **description}, ensure_ascii=False, indent=1)
        os.fsync(self.file.fileno())
        with open(f"{sidecar_of(self.path)}.tmp", "wb", buffering=0) as file:
            write(file, sidecar_of(self.path), text.encode("utf-8"), 0)
            os.fsync(file.fileno())

    def commit(self):
        """Moves both files to their places. Call after `prepare`."""
        self.file.close()
        os.replace(self.temporary, self.path)
        os.replace(f"{sidecar_of(self.path)}.tmp", sidecar_of(self.path))


def write(file, path, data, done):
    """Writes all of `data` to an unbuffered file; `done` bytes are in it already."""
    view = memoryview(data)
    with room_for(path, done + len(data)):
        while view:
            view = view[file.write(view) :]


def remove_bin(path):
    """Removes a .bin and its description, if they are there."""
    if is_sidecar(sidecar_of(path)):
        sidecar_of(path).unlink()
    path.unlink(missing_ok=True)


def sha256_of(path):
    """64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
