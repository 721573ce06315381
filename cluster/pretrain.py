"""Raw data → what 1-pretrain.py reads, on one machine, under Slurm or on a Ray cluster: data work beyond one machine.

    python -m cluster.pretrain --input FILE_OR_FOLDER ... --output dataset/pretrain --executor slurm --tasks 200
        reads    what `data_process.py pretrain` reads; whole files go to tasks, so let there be more files than tasks
        cleans   as `data_process.py pretrain` does, with the same flags
        writes   pretrain/00000.bin …       a shard of ids per task, pretrain_val.bin beside the folder
                 pretrain.parts             until that is done; its logs stay

Every step is a pipeline of datatrove whose tasks share the folder of the output, which all machines must see. The same
command goes on with the tasks that are not done. Needs pip install -r requirements-cluster.txt
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path

from cleaning.binfile import check_output, sha256_of
from cleaning.files import code_digest
from cleaning.pieces import encoder_of
from cleaning.pretrain import described, files_of_settings, job_of, size_and_time
from cleaning.pretrain_settings import PretrainSettings
from cleaning.readers import Drops, expand_inputs
from cleaning.rules import RuleSettings, check_limits
from cluster.executors import ROOT, ClusterSettings, Stage, ray_cluster, run_stages, submit
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from trainer import args

# what needs all documents at once, or is not asked for here
NOT_HERE = ("mix", "max_repeats", "mix_domains", "domains", "order", "anneal", "shard_tokens", "num_workers", "dry_run")


def share_out(sizes, tasks):
    """Which task each file goes to: in order, about as many bytes to each.

    Args:
        sizes: bytes of each file.
    Returns:
        list of int, from 0 to tasks - 1, never falling.
    """
    total, before, shares = max(1, sum(sizes)), 0, []
    for size in sizes:
        shares.append(min(tasks - 1, (2 * before + size) * tasks // (2 * total)))
        before += size
    return shares


def stages_of(cfg, limits, folder, tasks, files, description):
    """All that is to be done, in order, as a list of Stage.

    Args:
        cfg, limits: PretrainSettings and RuleSettings, with paths that hold on every machine.
        files: list of paths per task; description: {…} of all shards.
    """
    from cluster import finish, steps

    job = job_of(cfg, limits, folder, load_tokenizer)
    near, job = job.near, dataclasses.replace(job, near=None)  # parts need no bands: they are made after the repeats
    stages = []
    if job.lines:
        job = dataclasses.replace(job, frequent=str(Path(folder, "repeated_lines.npy")))
        stages.append(Stage("lines", [steps.NoteLines(job, files)], tasks))
        stages.append(Stage("repeated_lines", [steps.FindRepeatedLines(job)], 1))
    stages.append(Stage("clean", [steps.Clean(job, files)], tasks))
    stages.append(Stage("repeats", [steps.FindRepeats(folder)], tasks))
    left = [steps.ReadParts(job, with_text=False)]
    if near:
        found, last = near_stages(dataclasses.replace(job, near=near), folder, tasks)
        stages += found
        left.append(last)
    stages.append(Stage("write", [*left, steps.WriteShard(job, files, description)], tasks))
    stages.append(Stage("finish", [finish.Finish(folder, cfg.output, tasks)], 1))
    return stages


def near_stages(job, folder, tasks):
    """(list of Stage that find near-duplicates, the step that leaves them out)."""
    from datatrove.pipeline.dedup import minhash

    from cluster import near, steps

    config = near.minhash_config(job.near)
    signatures, pairs, similar, clusters = (
        str(Path(folder, "near", name)) for name in ("signatures", "pairs", "similar", "clusters")
    )
    sign = [steps.ReadParts(job, with_text=True), near.BandSignature(signatures, job.near)]
    compare = [
        minhash.MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=1 << 10),
        near.SimilarPairs(job, pairs, similar, tasks),
    ]
    join = [
        minhash.MinhashDedupCluster(similar, clusters, config, save_cluster_id=True, lines_to_buffer=1 << 10),
        near.KeepBest(job, clusters, tasks),
    ]
    stages = [
        Stage("signatures", sign, tasks),
        Stage("pairs", compare, config.num_buckets),
        Stage("clusters", join, 1),
    ]
    return stages, minhash.MinhashDedupFilter(clusters)


# --- the command ------------------------------------------------------------------------------------------------------


def work_folder(output, identity):
    """The folder beside `output` that the tasks share, with what an interrupted run of the same `identity` left there.

    Raises:
        ValueError: it belongs to another run that has not come to its end, whose tasks may be at work.
    """
    folder = Path(f"{output}.parts")
    mark, text = folder / "job.json", json.dumps(identity, ensure_ascii=False, indent=1, default=str)
    if (folder / "logs" / "finish" / "completions" / "00000").is_file():
        shutil.rmtree(folder)
    if mark.is_file() and mark.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{folder} belongs to a run with other settings or files that has not come to its end; "
            "give its command again, or remove the folder once none of its tasks is running"
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(text, encoding="utf-8")
    return folder


def run(cfg, where, limits=None):
    """Raw files → a folder of shards.

    Args:
        cfg: PretrainSettings; where: ClusterSettings; limits: RuleSettings of cfg.rules, None: the usual ones.
    Raises:
        ImportError: datatrove or Ray is missing. OSError: a task failed. ValueError: see work_folder.
    """
    try:
        import datatrove  # noqa: F401 to say so before anything is made
    except ImportError as error:
        raise ImportError("this command needs datatrove: pip install -r requirements-cluster.txt") from error
    limits = limits or RuleSettings()
    check_limits(cfg.rules, limits)
    files = expand_inputs(cfg.input)
    check_output(cfg.output, files, sharded=True)
    exams, blocklist = [str(Path(p).resolve()) for p in limits.exams], limits.blocklist
    limits = dataclasses.replace(limits, exams=exams, blocklist=blocklist and str(Path(blocklist).resolve()))
    scorers = {name: str(Path(path).resolve()) for name in ("quality",) if (path := getattr(cfg, name))}
    paths = {"output": str(Path(cfg.output).resolve()), "tokenizer": str(Path(cfg.tokenizer).resolve())}
    cfg = dataclasses.replace(cfg, input=[os.path.realpath(file) for file in files], **paths, **scorers)
    tokenizer = encoder_of(load_tokenizer, cfg.tokenizer).tokenizer  # V ≤ 65,536
    seen = [size_and_time(path) for path in files]
    tasks = min(where.tasks, len(files))
    if tasks < where.tasks:
        print(f"{len(files)} files, so {tasks} tasks; cut long files into several to use more machines")
    shares = share_out([size for size, _ in seen], tasks)
    shared = [[file for file, share in zip(cfg.input, shares) if share == task] for task in range(tasks)]
    identity = {
        "settings": dataclasses.asdict(cfg),
        "tasks": tasks,
        "tokenizer": tokenizer.hash,
        "files": [[file, *facts] for file, facts in zip(cfg.input, seen)],
        "limits": dataclasses.asdict(limits),
        "read besides": [[str(path), sha256_of(path)] for path in files_of_settings(cfg, limits)],
        "code": [code_digest(ROOT / "cleaning"), code_digest(ROOT / "cluster")],
    }
    folder = work_folder(cfg.output, identity)
    description = described(cfg, limits, tokenizer, [], Drops(), Counter())
    stages = stages_of(cfg, limits, str(folder), tasks, shared, description)
    if where.executor == "slurm":
        print(f"submitted; the last job is {submit(stages, folder, where)}, logs go to {folder / 'logs'}")
        return
    with ray_cluster(where.ray_address) if where.executor == "ray" else contextlib.nullcontext():
        run_stages(stages, folder, where)


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "input", nargs="+", required=True, metavar="PATH", help="files and folders")
    args.add_flag(parser, "output", required=True, metavar="DIR", help="for example dataset/pretrain")
    args.add_flag(parser, "tokenizer", default=str(DEFAULT_TOKENIZER), metavar="DIR", help="default: %(default)s")
    args.add_flag(parser, "seed", type=args.parse_seed, default=0, help="same seed, same result (default: 0)")
    args.add_fields(parser, ClusterSettings)
    args.add_fields(parser, PretrainSettings, without=NOT_HERE)
    args.add_fields(parser.add_argument_group("limits of --rules"), RuleSettings)
    return parser.parse_args(argv)


def main(argv=None):
    """The command."""
    typed = vars(parse(argv))
    own, where, limits = args.split(typed, PretrainSettings, ClusterSettings, RuleSettings)
    run(PretrainSettings(**own), ClusterSettings(**where), RuleSettings(**limits))


if __name__ == "__main__":
    args.run(main)
