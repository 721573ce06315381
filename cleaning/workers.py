"""One function over many tasks in several processes, with few tasks in memory, in order, and no process left behind."""

import collections
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

SMALL = 8 << 20  # bytes of input below which starting worker processes takes longer than they save
AHEAD = 2  # tasks that wait for a free worker: so many are in memory beside those being worked on


def count_workers(asked, size):
    """Processes to use: as many as were asked for; else one per core, or none where there are few bytes to work on."""
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if size > SMALL else 0
    if asked < 0:
        raise ValueError(f"--num_workers {asked}: give a number of processes, or 0 for none")
    return asked


def begin():
    """Makes a worker leave ctrl-C to its parent, and end when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which a pool ends its workers
    parent = multiprocessing.parent_process()

    def leave():
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def in_order(function, tasks, workers, sent=lambda task: task):
    """Yields (task, function(sent(task))) for each task, in the order of the tasks.

    Args:
        function: importable by name, and so is the type of what is sent, where there are workers.
        tasks: an iterable, read no further than what is worked on needs.
        workers: processes beside this one; 0: everything is done here.
        sent: what of a task goes to the worker; the rest stays here.
    Raises:
        OSError: a worker was killed, for example because memory ran out.
    """
    if not workers:
        for task in tasks:
            yield task, function(sent(task))
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    pool = ProcessPoolExecutor(workers, context, initializer=begin)
    waiting = collections.deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(function, sent(task))))
            if len(waiting) >= workers + AHEAD:
                yield finished(waiting)
        while waiting:
            yield finished(waiting)
    except BrokenProcessPool as error:
        raise OSError(
            f"one of {workers} worker processes was killed; if memory ran out, try fewer: --num_workers {workers // 2}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or ctrl-C, what has not begun does not begin


def finished(waiting):
    """The first of the waiting tasks and its result, once there is one."""
    task, future = waiting.popleft()
    return task, future.result()
