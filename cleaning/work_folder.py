"""Where an unfinished run keeps what it has made, so that the same command goes on instead of starting anew."""

import contextlib
import json
import shutil
import sys
from pathlib import Path


@contextlib.contextmanager
def work_folder(output, identity):
    """A folder beside `output` for parts; those of an interrupted run of the same `identity` are found in it again.

    It is removed at the end, and after an error if nothing in it is worth keeping.
    """
    folder = Path(f"{output}.parts")
    mark, text = folder / "job.json", json.dumps(identity, ensure_ascii=False, indent=1, default=str)
    if folder.is_dir() and not mark.is_file():
        raise ValueError(f"{folder} is needed for the parts of {output}, but holds something else; rename it")
    if folder.is_dir() and mark.read_text(encoding="utf-8") != text:
        print(f"{folder} belongs to a run with other settings or files; starting anew")
        shutil.rmtree(folder)
    made = len(list(folder.glob("*.npz")))
    if made:
        print(f"going on with the {made:,} parts that are already in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(text, encoding="utf-8")
    done = False
    try:
        yield folder
        done = True
    finally:
        if done or sys.exc_info()[0] is ValueError or not any(folder.glob("*.npz")):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"finished parts stay in {folder}; the same command goes on from there", flush=True)
