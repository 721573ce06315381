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
COUNTS = ("tokens", "documents", "text_bytes", "characters")
LONGEST_SIDECAR = 1 << 24  # bytes; a longer .json is not one of ours


def sidecar_of(path):
    """Where the description of a .bin lies."""
    return Path(path).with_suffix(".json")


def val_path_of(path):
    """`dataset/pretrain.bin` → `dataset/pretrain_val.bin`, the part held out for validation."""
    return Path(path).with_name(Path(path).stem + "_val.bin")


def anneal_path_of(path):
    """`dataset/pretrain.bin` → `dataset/pretrain_anneal.bin`, the best texts, for the end of a run."""
    return Path(path).with_name(Path(path).stem + "_anneal.bin")


def is_sidecar(path):
    """Is this the description of a .bin that lies beside it? Anything else must not be overwritten, and may be data."""
    path = Path(path)
    if path.suffix != ".json" or not path.is_file() or not path.with_suffix(".bin").is_file():
        return False
    if path.stat().st_size > LONGEST_SIDECAR:
        return False
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(description, dict) and description.get("format") == FORMAT


def check_output(path, inputs, sharded=False, anneal=False):
    """Refuses an output that would overwrite something that is not an older output.

    Raises:
        ValueError: not a .bin name (`sharded`: not the name of a folder for shards alone), or a description would
            overwrite one of the inputs or something else, or a part that nobody named a file that is not ours.
    """
    path, taken = Path(path), {os.path.realpath(i) for i in inputs}
    if sharded:
        if path.suffix or (path.exists() and not path.is_dir()):
            raise ValueError(f"--output {path}: with --shard_tokens it names a folder, for example dataset/pretrain")
        own = lambda f: is_number(f.stem) and (f.suffix in (".bin", ".tmp") or (f.suffix == ".json" and is_sidecar(f)))  # noqa: E731
        others = [f.name for f in path.glob("*") if not own(f) or os.path.realpath(f) in taken]
        if others:
            raise ValueError(f"--output {path} holds other files than shards, such as {others[0]}; name a new folder")
    elif path.suffix != ".bin" or path.is_dir():
        raise ValueError(f"--output {path} must be a file name that ends in .bin, for example dataset/pretrain.bin")
    check_neighbours(path, sharded)
    parts = [val_path_of(path), *([anneal_path_of(path)] if anneal else [])]
    for file in [*([] if sharded else [path]), *parts]:
        begun = Path(f"{sidecar_of(file)}.tmp").exists()  # a run was killed between moving the one and the other
        if file.exists() and not is_sidecar(sidecar_of(file)) and not begun:
            raise ValueError(f"{file} would be overwritten and was not made here; move it or choose another --output")
    for file in [*([] if sharded else [path]), *parts]:
        sidecar = sidecar_of(file)
        if os.path.realpath(sidecar) in taken or (sidecar.exists() and not is_sidecar(sidecar)):
            raise ValueError(
                f"{file} needs {sidecar} for its description, but that file holds something else; "
                f"rename it or choose another --output"
            )


def check_neighbours(path, sharded):
    """ValueError where an output and another corpus would have one name for their held-out texts."""
    other = path.with_name(f"{path.name}.bin") if sharded else path.with_suffix("")
    if other.is_file() or (not sharded and other.is_dir() and any(is_number(f.stem) for f in other.glob("*.bin"))):
        raise ValueError(f"--output {path}: {val_path_of(path)} would belong to {other} too; choose another name")
    for part in ("_val", "_anneal"):
        whole = path.with_name(f"{path.stem.removesuffix(part)}.bin")
        if path.stem.endswith(part) and (whole.is_file() or whole.with_suffix("").is_dir()):
            raise ValueError(f"--output {path} is the name of a part of {whole}; choose another name")


def is_number(name):
    """Is this the name of a shard, without its ending: 00012?"""
    return name.split(".")[0].isdecimal()


class BinWriter:
    """Collects documents in `<path>.tmp`; `commit` makes that the .bin. A context manager: leaving it cleans up."""

    def __init__(self, path):
        self.path, self.temporary = Path(path), Path(f"{path}.tmp")
        self.counts = dict.fromkeys(COUNTS, 0)
        self.digest = hashlib.sha256()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115 closed by __exit__

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.temporary.unlink(missing_ok=True)
        Path(f"{sidecar_of(self.path)}.tmp").unlink(missing_ok=True)

    def add(self, ids, lengths, characters, text_bytes):
        """Appends documents.

        Args:
            ids: uint16 ids of all of them, end to end, BOS and EOS among them.
            lengths, characters, text_bytes: of each document, in ids, characters and UTF-8 bytes.
        """
        data = ids.astype("<u2").tobytes()
        write(self.file, self.path, data, 2 * self.counts["tokens"])
        self.digest.update(data)
        added = len(ids), len(lengths), int(np.sum(text_bytes)), int(np.sum(characters))
        self.counts = {name: self.counts[name] + n for name, n in zip(COUNTS, added)}

    def prepare(self, **description):
        """Forces the ids to the disk and writes the description beside them, both still under temporary names."""
        own = {"format": FORMAT, "version": VERSION, **self.counts, "sha256": self.digest.hexdigest()}
        text = json.dumps({**own, **description}, ensure_ascii=False, indent=1)
        self.close()
        with open(f"{sidecar_of(self.path)}.tmp", "wb", buffering=0) as file:
            # a file name that is no UTF-8 becomes an escape of JSON
            write(file, sidecar_of(self.path), text.encode("utf-8", "backslashreplace"), 0)
            os.fsync(file.fileno())

    def close(self):
        """Forces what was added to the disk; nothing can be added afterwards."""
        if not self.file.closed:
            os.fsync(self.file.fileno())
            self.file.close()

    def commit(self):
        """Moves both files to their places. Call after `prepare`."""
        os.replace(self.temporary, self.path)
        os.replace(f"{sidecar_of(self.path)}.tmp", sidecar_of(self.path))


class ShardWriter:
    """The same for a folder of .bin files of at most `limit` ids each: 00000.bin, 00001.bin, … of whole documents."""

    def __init__(self, folder, limit):
        self.path, self.limit, self.shards = Path(folder), limit, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for shard in self.shards:
            shard.__exit__(*error)

    def add(self, ids, lengths, characters, text_bytes):
        """See BinWriter.add; a document longer than a shard has one of its own."""
        ends, at, document = np.cumsum(lengths), 0, 0
        while document < len(lengths):
            # none behind a document that is longer than a shard
            room = max(0, self.limit - self.shards[-1].counts["tokens"]) if self.shards else 0
            stop = int(np.searchsorted(ends, at + room, side="right"))
            if stop == document:  # the next one does not fit
                if self.shards:
                    self.shards[-1].close()
                self.shards.append(BinWriter(self.path / f"{len(self.shards):05d}.bin"))
                stop = max(document + 1, int(np.searchsorted(ends, at + self.limit, side="right")))
            part = slice(document, stop)
            self.shards[-1].add(ids[at : ends[stop - 1]], lengths[part], characters[part], text_bytes[part])
            at, document = int(ends[stop - 1]), stop

    @property
    def counts(self):
        """The same of all shards."""
        return {name: sum(shard.counts[name] for shard in self.shards) for name in COUNTS}

    def prepare(self, **description):
        """See BinWriter.prepare."""
        for shard in self.shards:
            shard.prepare(**description)

    def commit(self):
        """Moves all files to their places, and removes the shards of an earlier run that are more than these."""
        for shard in self.shards:
            shard.commit()
        for file in self.path.glob("*.bin"):
            if is_number(file.stem) and int(file.stem) >= len(self.shards):
                remove_bin(file)


def write(file, path, data, done):
    """Writes all of `data` to an unbuffered file; `done` bytes are in it already."""
    view = memoryview(data)
    with room_for(path, done + len(data)):
        while view:
            view = view[file.write(view) :]


def remove_bin(path):
    """Removes a .bin and its description, if they are there."""
    sidecar, begun = sidecar_of(path), Path(f"{sidecar_of(path)}.tmp")
    if is_sidecar(sidecar):
        os.replace(sidecar, begun)  # what is left if this is killed here is known to be ours, see check_output
    path.unlink(missing_ok=True)
    begun.unlink(missing_ok=True)


def sha256_of(path):
    """64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
