"""The saved states of a run: the newest beside the checkpoint, those before it and weights kept for good in out/kept.

out/pretrain_512_resume.pth             the newest
out/kept/pretrain_512_resume_1.pth, …   those before it, --keep_last of them in all
out/kept/pretrain_512_resume_step900/   what a state with --sharded_state names, see trainer/sharded.py
out/kept/pretrain_512_step1000.pth      weights, every --keep_every steps, with their .json
"""

import os
import re
import shutil

from trainer import sharded
from trainer.checkpoint import load_file, resume_path
from trainer.parallel import finite, from_main

FOLDER = "kept"


def older(path, age):
    """Where the state before the newest (age 1), and those before that, of checkpoint `path` lie."""
    return path.parent / FOLDER / f"{path.stem}_resume_{age}.pth"


def states(path):
    """The files that a run can be continued from: {age: file}, the newest (age 0) first."""
    ages = {0: resume_path(path)}
    stem, pattern = f"{path.stem}_resume_", re.compile(r"\d+")
    for file in (path.parent / FOLDER).glob(f"{stem}*.pth"):
        if pattern.fullmatch(file.stem.removeprefix(stem)):
            ages[int(file.stem.removeprefix(stem))] = file
    return {age: file for age, file in sorted(ages.items()) if file.is_file()}


def make_newest(path, taken_from, passed_over):
    """Makes the state that a run goes on from the newest again, and removes those that it passed over."""
    if taken_from is not None and taken_from != resume_path(path):
        os.replace(taken_from, resume_path(path))
    for file in passed_over:
        if file != resume_path(path) or taken_from is None:
            file.unlink(missing_ok=True)


def make_room(path, keep_last):
    """Moves each state one place back before a new one is written, and removes those beyond keep_last.

    The newest stays in its place under a second name, so that at any moment there is a whole one.
    """
    for age, file in reversed(states(path).items()):
        if age + 1 >= keep_last:
            if age > 0:
                file.unlink()
            continue
        target = older(path, age + 1)
        target.parent.mkdir(exist_ok=True)
        if age > 0:
            os.replace(file, target)
        else:
            same_file(file, target)


def same_file(source, target):
    """Puts `source` under a second name, or copies it where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        partial = target.with_name(f".{target.name}.tmp")
        try:
            shutil.copy2(source, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def keep_weights(path, step):
    """Keeps the checkpoint as it is now, and its description, under the number of its step."""
    for suffix in (".pth", ".json"):
        target = path.parent / FOLDER / f"{path.stem}_step{step}{suffix}"
        target.parent.mkdir(exist_ok=True)
        same_file(path.with_suffix(suffix), target)
    adapter = path.with_suffix("")  # of a LoRA run, beside the merged weights
    if adapter.is_dir():
        shutil.copytree(adapter, path.parent / FOLDER / f"{path.stem}_step{step}", dirs_exist_ok=True)


def forget(path):
    """Removes all states: they belong to a run that is started over."""
    for file in states(path).values():
        file.unlink(missing_ok=True)
    remove_unused_shards(path)


def newest_usable(path, device, say, up_to=None):
    """The newest state that can be continued from.

    Args:
        path: of the checkpoint.
        device: where its tensors go.
        say: called with a line about each file that is damaged.
        up_to: only states of at most this step, with finite weights.
    Returns:
        (file, state, the files passed over), or (None, None, …) if there is none.
    Raises:
        ValueError: there are files, and all of them are damaged; the newest one's error.
    """
    passed, damage = [], None
    for file in states(path).values():
        try:
            state = load_file(file, device)
        except ValueError as error:
            damage = damage or error
            say(f"damaged   {file} is not a whole checkpoint")
            passed.append(file)
            continue
        folder = shards_folder(path, state)
        if harm := folder and sharded.harm_to(folder, state["shards"]):
            say(f"damaged   {file}, because {harm}")
            damage = damage or ValueError(f"{file} cannot be continued: {harm}, or delete the file to start over")
        elif up_to is None or (state["progress"]["step"] <= up_to and is_finite(state)):
            return file, state, passed
        passed.append(file)
    if damage and up_to is None:
        raise damage
    return None, None, passed


def is_finite(state):
    """Whether the weights of a saved state are; those in parts were looked at when they were written."""
    return state["shards"]["finite"] if "shards" in state else finite(state["model"])


def shards_folder(path, state):
    """Where the tensors of a state lie, or None if they are in its file."""
    return path.parent / FOLDER / state["shards"]["folder"] if "shards" in state else None


def new_shards_folder(path, step, runtime):
    """A folder for tensors that is not there yet, the same on every rank: a step may be saved twice."""
    folder = path.parent / FOLDER / f"{path.stem}_resume_step{step}"
    if runtime.is_main:
        remove_unused_shards(path)  # what a save that was killed has left takes the room of this one
        while folder.exists():
            folder = folder.with_name(f"{folder.name}_")
    return folder.with_name(from_main(folder.name, runtime))


def remove_unused_shards(path):
    """Removes the folders of tensors that no state names any more, or none yet because its save was killed."""
    folders = set((path.parent / FOLDER).glob(f"{path.stem}_resume_step*"))
    for file in states(path).values() if folders else ():
        try:
            folders.discard(shards_folder(path, load_file(file, mmap=True)))
        except ValueError:  # which folder it names cannot be known now
            return
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
