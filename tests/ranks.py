"""Several ranks in one test: processes that find each other. It imports little: each of them does so again."""

import contextlib
import os
import socket

import torch
import torch.multiprocessing as mp


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def rank_main(rank, body, port, world, arguments):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    body(*arguments)


def on_ranks(world, body, *arguments):
    """Runs body(*arguments) in processes that find each other; an error of any is raised here."""
    mp.spawn(rank_main, (body, free_port(), world, arguments), nprocs=world)


def on_two_ranks(body, *arguments):
    """The same with two."""
    on_ranks(2, body, *arguments)
