"""Who starts the tasks of a pipeline: this machine, Slurm, or a Ray cluster, each by an executor of datatrove."""

import contextlib
import math
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from cleaning.settings import knob

ROOT = Path(__file__).parent.parent


@dataclass
class ClusterSettings:
    """Where the work is done."""

    executor: str = knob("local", "who starts the tasks", ("local", "slurm", "ray"))
    tasks: int = knob(1, "tasks that the files are shared out to; as many shards are written")
    workers: int = knob(0, "tasks at a time; 0: all, with local one per core")
    memory: int = knob(2, "slurm and ray: GiB that a task may need")
    partition: str = knob("", "slurm: the partition to run in")
    time: str = knob("08:00:00", "slurm: time limit of a task, as HH:MM:SS")
    sbatch: list[str] = knob(list, "slurm: further options of sbatch, as account=NAME qos=high")
    ray_address: str = knob("auto", "ray: address of a running cluster; local: start one on this machine")

    def __post_init__(self):
        if self.tasks < 1:
            raise ValueError(f"--tasks {self.tasks}: give at least 1, and no more than there are files")
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: give a number of tasks that run at a time, or 0 for all")
        if self.memory < 1:
            raise ValueError(f"--memory {self.memory}: give at least 1, in GiB; 2 is enough for most data")
        if self.executor == "slurm" and not self.partition:
            raise ValueError("--executor slurm needs --partition NAME; `sinfo` lists them")
        for option in self.sbatch:
            if "=" not in option:
                raise ValueError(f"--sbatch {option} is not NAME=VALUE, such as account=lab")


@dataclass
class Stage:
    """A pipeline: its name, its steps, how many tasks it has."""

    name: str
    steps: list
    tasks: int


def run_stages(stages, folder, where):
    """Runs all stages here or on a Ray cluster, one after another.

    Raises:
        OSError: tasks of a stage were not done; those of later stages were not begun.
    """
    for stage in stages:
        executor = executor_of(stage, Path(folder, "logs", stage.name), where)
        print(f"{stage.name}: {stage.tasks:,} tasks", flush=True)
        executor.run()
        # datatrove's Ray executor goes on after a task that failed
        if missing := executor.get_incomplete_ranks(skip_completed=True):
            raise OSError(
                f"{len(missing)} of {stage.tasks} tasks of `{stage.name}` failed, the first is {missing[0]}: see "
                f"{Path(folder, 'logs', stage.name, 'logs')}; the same command goes on from there"
            )


def executor_of(stage, logs, where):
    """datatrove's executor for a stage, local or on Ray."""
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor

    workers = where.workers or (min(stage.tasks, os.cpu_count()) if where.executor == "local" else stage.tasks)
    if where.executor == "local":
        return LocalPipelineExecutor(stage.steps, tasks=stage.tasks, workers=workers, logging_dir=str(logs))
    # starting a task on Ray takes seconds, so as many go into a job as keep all workers busy
    return RayPipelineExecutor(
        stage.steps,
        tasks=stage.tasks,
        workers=workers,
        tasks_per_job=math.ceil(stage.tasks / workers),
        mem_per_cpu_gb=where.memory,
        logging_dir=str(logs),
    )


@contextlib.contextmanager
def ray_cluster(address):
    """A context with a connection to a Ray cluster; `local` starts one of this machine and ends it again."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install -r requirements-cluster.txt") from error
    if ray.is_initialized():  # by who calls this
        yield
        return
    ray.init(
        None if address == "local" else address,
        include_dashboard=False if address == "local" else None,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        yield
    finally:
        ray.shutdown()


def submit(stages, folder, where):
    """Gives all stages to Slurm, each as an array of jobs that waits for the one before; returns the last job's id.

    Raises:
        OSError: there is no Slurm here.
    """
    from datatrove.executor import SlurmPipelineExecutor

    if not shutil.which("sbatch"):
        raise OSError("no sbatch on PATH; --executor slurm is started where Slurm's commands are, on a login node")
    before = None
    begin = (
        f"cd {shlex.quote(str(ROOT))} && export PYTHONPATH=$PWD PATH={shlex.quote(str(Path(sys.prefix, 'bin')))}:$PATH"
    )
    for stage in stages:
        before = SlurmPipelineExecutor(
            stage.steps,
            tasks=stage.tasks,
            time=where.time,
            partition=where.partition,
            workers=where.workers or -1,
            mem_per_cpu_gb=where.memory,
            job_name=f"pretrain_{stage.name}",
            qos="",
            env_command=begin,
            sbatch_args=dict(option.split("=", 1) for option in where.sbatch),
            logging_dir=str(Path(folder, "logs", stage.name)),
            depends=before,
        )
    before.run()
    return before.job_id
