"""Processes that start warm: a server that has imported the libraries forks them, so that a start costs milliseconds.

A fresh interpreter takes two to five seconds of processor time before its first line of work. What only such a one can
show (a script's own imports, what a launcher starts, a second interpreter's memory) has to be started afresh.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRESH = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONUTF8": "1"}
OWN = {f.stem for f in ROOT.glob("*.py")} | {f.parent.name for f in ROOT.glob("*/__init__.py")} - {"tests"}

# what takes long to import (an optimizer imports torch._dynamo when it is made), and tests that run in such processes
SLOW = ["torch._dynamo", "torch.distributed.fsdp", "scipy.stats", "tokenizers", "safetensors.torch"]
TESTS = ["tests.test_kill", "tests.test_parallel", "tests.test_sharing"]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(SLOW + TESTS)


def meeting_place():
    """A store where the ranks of one run find each other for as long as it is kept; the system chose its port.

    A port that is only chosen here, for rank 0 to listen at later, may be somebody else's by then.
    """
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def rank_env(rank, world, port):
    """What a launcher that keeps the store at `port` tells a rank of a run on this machine."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in (names | {"TORCHELASTIC_USE_AGENT_STORE": True}).items()}


def begin():
    """To be called first in a warm process: makes of it what a fresh one would be."""
    import torch

    torch.set_num_threads(1)  # OMP_NUM_THREADS was read when torch was imported
    multiprocessing.set_start_method(None, force=True)  # loader workers are started as they are by default


def be_python(words, said, env):
    """Does what `python words…` does in the project's root; its output goes to the files said.out and said.err.

    The libraries are imported already. The project's own modules are not: a script has to find them by itself.
    """
    begin()
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    for number, file in enumerate((os.devnull, f"{said}.out", f"{said}.err")):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "rww"[n], encoding="utf-8", closefd=False) for n in range(3))
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def python(*words, world=1):
    """Runs `python words…` in as many ranks as `world`; returns [(exit code, what was said)]."""
    store = meeting_place() if world > 1 else None
    envs = [FRESH | (rank_env(rank, world, store.port) if store else {}) for rank in range(world)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(world)]
        words = [str(word) for word in words]
        runs = [context.Process(target=be_python, args=(words, file, env)) for file, env in zip(files, envs)]
        for process in runs:
            process.start()
        for process in runs:
            process.join()
        said = ["".join(Path(f"{f}.{end}").read_text(encoding="utf-8") for end in ("out", "err")) for f in files]
    return [(process.exitcode, text) for process, text in zip(runs, said)]
