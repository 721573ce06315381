"""Archives of downloaded sets → their files beside them; an exam's tables → the CSV files that exams are read from."""

import csv
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

from cleaning.files import safe_path

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TABLE = re.compile(r"(dev|val|test|train)-\d+-of-\d+\.parquet")  # <subject>/val-00000-of-00001.parquet


def members(archive):
    """Yields (name, size in bytes, function that opens it) for every plain file of a .zip or .tar.*; no links."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for member in file.infolist():
                    if not member.is_dir():
                        yield member.filename, member.file_size, lambda member=member: file.open(member)
        else:
            with tarfile.open(archive) as file:  # read from front to end: a .bz2 knows no other way
                for member in file:
                    if member.isfile():
                        yield member.name, member.size, lambda member=member: file.extractfile(member)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise ValueError(f"{archive} cannot be unpacked: {reason}; delete it and download it again") from error


def unpack(archive, folder):
    """Files of an archive → `folder`, {name: bytes}. What is there already in full size is not written again."""
    sizes = {}
    for name, size, open_member in members(archive):
        target = safe_path(folder, name, archive)
        sizes[target.relative_to(folder).as_posix()] = size
        if target.exists() and target.stat().st_size == size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{target}.part")
        with open_member() as source, open(part, "wb") as output:
            shutil.copyfileobj(source, output, 1 << 20)
        os.replace(part, target)
    return sizes


def exam_tables(folder):
    """<subject>/<split>-*.parquet below `folder` → <split>/<subject>_<split>.csv, {name: bytes}."""
    sizes = {}
    for table in sorted(folder.glob("*/*.parquet")):
        if not TABLE.fullmatch(table.name):
            continue
        split, subject = table.name.split("-")[0], table.parent.name
        target = folder / split / f"{subject}_{split}.csv"
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(table).to_pylist()
        target.parent.mkdir(exist_ok=True)
        part = Path(f"{target}.part")
        with open(part, "w", encoding="utf-8", newline="") as output:
            writer = csv.DictWriter(output, rows[0] if rows else ["question"])
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, target)
        sizes[target.relative_to(folder).as_posix()] = target.stat().st_size
    return sizes


def unpack_all(folder, exam):
    """Every archive in `folder`, and an exam's tables if `exam`; {name: bytes} of what came out of them."""
    sizes = exam_tables(folder) if exam else {}
    for archive in sorted(folder.iterdir()):
        if archive.name.endswith((".zip", *TAR_ENDINGS)):
            sizes |= unpack(archive, folder)
    return sizes
