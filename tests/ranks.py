"""Several ranks in one test: processes that find each other."""

import os

import torch.multiprocessing as mp

from tests import warm


def rank_main(rank, body, port, world, arguments):
    warm.begin()
    os.environ |= warm.rank_env(rank, world, port)
    body(*arguments)


def on_ranks(world, body, *arguments):
    """Runs body(*arguments) in processes that find each other; an error of any is raised here."""
    store = warm.meeting_place()
    given = (body, store.port, world, arguments)
    mp.start_processes(rank_main, given, nprocs=world, start_method=warm.context.get_start_method())


def on_two_ranks(body, *arguments):
    """The same with two."""
    on_ranks(2, body, *arguments)
