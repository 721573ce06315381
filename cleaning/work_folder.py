"""Where an unfinished run keeps what it has made, so that the same command goes on instead of starting anew."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from cleaning.files import UNFINISHED, prepare_folder_of, write_lines

LOCK = "lock"  # in the folder: held by the process that works there


def differing(before, now):
    """The names of what differs between two identities: settings by their flags, the rest by its key."""
    flags = {**before.get("settings", {}), **before.get("limits", {})}, {**now["settings"], **now["limits"]}
    names = [f"--{name}" for name in flags[1] if flags[0].get(name) != flags[1][name]]
    return names + [key for key in now if key not in ("settings", "limits") and before.get(key) != now[key]]


@contextlib.contextmanager
def work_folder(output, identity, fresh=False):
    """A folder beside `output` for parts; those of an interrupted run of the same `identity` are found in it again.

    It is removed at the end, and after an error if nothing in it is worth keeping.

    Args:
        identity: {"settings", "limits", …}, what must be equal for parts to be the same.
        fresh: forget what an unfinished run has made.
    Raises:
        ValueError: an unfinished run was another one, another process works on it; or the folder holds something else.
    """
    folder = Path(f"{output}.parts")
    mark, now = folder / "job.json", json.loads(json.dumps({"format": UNFINISHED, **identity}, default=str))
    if folder.is_dir() and not mark.is_file() and any(file.name != LOCK for file in folder.iterdir()):
        raise ValueError(f"{folder} is needed for the parts of {output}, but holds something else; rename it")
    prepare_folder_of(output)
    folder.mkdir(exist_ok=True)
    with alone_in(folder, output):
        if fresh:
            for file in folder.iterdir():
                if file.name != LOCK:
                    file.unlink()
        if mark.is_file() and (names := differing(json.loads(mark.read_text(encoding="utf-8")), now)):
            raise ValueError(
                f"{folder} belongs to an unfinished run that differs in {', '.join(names)}. "
                "Use the same to go on with it, --fresh to start over, or another --output"
            )
        made = len(list(folder.glob("*.npz")))
        if made:
            print(f"going on with the {made:,} parts that are already in {folder}")
        write_lines(mark, [json.dumps(now, indent=1)])
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or sys.exc_info()[0] is ValueError or not any(folder.glob("*.npz")):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                print(f"finished parts stay in {folder}; the same command goes on from there", flush=True)


@contextlib.contextmanager
def alone_in(folder, output):
    """A context for one process at a time; ValueError for a second one. Where the system has no flock, for any."""
    with open(folder / LOCK, "wb") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is making {output} at this moment; wait until it ends, or choose another --output"
            ) from error
        yield
