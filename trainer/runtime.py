"""Where a run happens: device, number format, compiler, seeds."""

import contextlib
import ctypes
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h
COMPILE_PAYS_AFTER = 300  # steps; compiling takes about a minute, which a short run never earns back


@dataclass(frozen=True)
class Runtime:
    """One process's place in a run.

    Attributes:
        device, dtype: where and in which format matrix products run; weights stay fp32.
        rank, world: this process's number and how many there are.
        patient: process group on the hosts in which ranks wait for each other for days; None in a run of one.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1
    patient: object = None

    @property
    def is_main(self):
        """True on the one rank that prints and writes."""
        return self.rank == 0

    def autocast(self):
        """The context that the forward pass runs in; does nothing in fp32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @contextlib.contextmanager
    def memory_for(self, batch_size):
        """A context in which a device without enough memory is told with the flags that help."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            hint = "halve it and double --accumulation_steps: the result is the same"
            raise MemoryError(f"{self.device} is too small for --batch_size {batch_size}; {hint}") from error

    def say(self, *parts):
        """Prints on the main rank, at once, so that a log file is never behind."""
        if self.is_main:
            print(*parts, flush=True)


def keep_freed_memory():
    """Tells glibc to keep what is freed instead of handing it back; does nothing under another C library.

    By default every tensor over 32 MiB is mapped anew, and the kernel zeroes its pages at first touch, in every step:
    a tenth to a fifth of a small model's time on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def choose_device(name, local_rank=0):
    """'auto', 'cpu', 'cuda', 'cuda:N' or 'mps' → torch.device, made ready for use; ValueError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is not a device; write auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"--device {name} was asked for, but this PyTorch ({torch.__version__}) sees no CUDA device; "
                "use --device cpu, or install a CUDA build and driver"
            )
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"there is no {device}; this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps was asked for, but PyTorch sees no Apple GPU; use --device cpu")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {name} is not supported; write auto, cpu, cuda, cuda:N or mps")
    if device.type == "cpu":
        keep_freed_memory()
    return device


def machine():
    """What the numbers were measured on, in one line."""
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
        name = found[1] if found else name
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    threads = f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{gpu}{name}, {threads}, torch {torch.__version__}"


def has_bf16(device):
    """Whether the hardware multiplies bf16 itself; emulation, where PyTorch offers it, is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def choose_dtype(name, device):
    """The format of matrix products: what was asked for, or the best the hardware has; never silently another.

    Returns:
        (dtype, reason) for the screen.
    Raises:
        ValueError: an unknown name, or a format the device does not have.
    """
    if name == "auto":
        if has_bf16(device):
            return torch.bfloat16, "this device computes in bf16"
        if device.type == "cuda":
            return torch.float16, "this GPU has no bf16; losses are scaled"
        return torch.float32, f"this {device.type} has no bf16 units"
    if name not in DTYPES:
        raise ValueError(f"--dtype {name} is unknown; write auto, float32, bfloat16 or float16")
    dtype = DTYPES[name]
    if dtype == torch.bfloat16 and not has_bf16(device):
        raise ValueError(f"--dtype {name}: {device} has no bf16 units; use --dtype float32, or auto to get what it has")
    if dtype == torch.float16 and device.type != "cuda":
        raise ValueError(f"--dtype {name} needs a CUDA device, this is {device}; use --dtype float32, or auto")
    return dtype, "as asked"


def choose_compile(mode, device, steps):
    """(whether to call torch.compile, reason); ValueError where 'on' cannot work."""
    compiler = os.environ.get("CC", "gcc") if device.type == "cuda" else os.environ.get("CXX", "g++")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")  # generated code is loaded as a Python extension
    can = shutil.which(compiler) is not None and headers.is_file()
    if mode == "on" and not can:
        raise ValueError(
            "compiling needs a compiler and Python's headers (for example: apt install g++ python3-dev); "
            "or leave it off: --compile off for training, no --compiled for the server"
        )
    if mode != "auto":
        return mode == "on", "as asked"
    if not can or device.type == "mps":
        return False, "no compiler for this device"
    if steps < COMPILE_PAYS_AFTER:
        return False, f"{steps} steps are too few to earn back the minute it takes"
    return True, f"{steps} steps earn back the minute it takes"


def seed_step(seed, step, rank):
    """Gives every (step, rank) its own random numbers, so that a resumed run's dropout is that of one never stopped."""
    # splitmix-style mixing: neighbouring steps and ranks must not get neighbouring generators
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**63 - 1)
    torch.manual_seed(mixed)


class StopSignal:
    """Turns signals into wishes that the loop reads: ctrl-C and SIGTERM to leave, SIGUSR1 to save and go on.

    A second ctrl-C stops at once.
    """

    LEAVE = (signal.SIGINT, signal.SIGTERM)
    SAVE = getattr(signal, "SIGUSR1", None)  # Windows has none

    def __enter__(self):
        self.received, self.save = 0, False
        self.before = {s: signal.signal(s, self._note) for s in (*self.LEAVE, self.SAVE) if s is not None}
        return self

    def _note(self, number, frame):
        if number == self.SAVE:
            self.save = True
            return
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """A signal came in the middle of a step or a validation, which is given up; nothing has moved."""


class Stopped(KeyboardInterrupt):
    """Raised after the save that a signal asked for; carries the exit code that shells expect."""


def begin_worker(worker):
    """What a loader worker does first: it leaves when the main process closes it, or is gone, and not by itself.

    A ctrl-C in the terminal reaches the whole group, and a service manager's SIGTERM too. Without its main process,
    which may have been killed, a worker would keep its memory for another five seconds, and for ever where a fork
    server started it.
    """
    for number in (*StopSignal.LEAVE, StopSignal.SAVE):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Waits for the end of the process that started this one, then ends this one."""
    multiprocessing.parent_process().join()
    os._exit(1)
