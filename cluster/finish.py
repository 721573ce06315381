"""The last step of a pipeline: what the tasks wrote → the folder that was asked for."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep

from cleaning.binfile import BinWriter, is_number, remove_bin, sidecar_of, val_path_of
from cluster.steps import numbered

TABLE = f"{'documents':>11} {'tokens':>14} {'characters':>14}"
COUNTED = ("format", "version", "tokens", "documents", "text_bytes", "characters", "sha256")  # by the writer of a .bin


class Finish(PipelineStep):
    """The shards of all tasks → the output; one task. A shard has the number of the task that made it.

    Args:
        folder: that of all tasks; nothing but its logs is left of it.
        output: folder of the shards; the validation part is beside it.
        tasks: how many there were.
    """

    type, name = "FINISH", "moves everything to its place"

    def __init__(self, folder, output, tasks):
        super().__init__()
        self.folder, self.output, self.tasks = Path(folder), Path(output), tasks

    def run(self, data=None, rank=0, world_size=1):
        made = self.folder / "bin"
        if not made.is_dir():  # an earlier attempt came to its end
            return
        shards = [numbered(self.folder, "bin", r, ".bin") for r in range(self.tasks)]
        about = [json.loads(sidecar_of(shard).read_text(encoding="utf-8")) for shard in shards]
        totals = {name: total(about, name) for name in ("dropped", "changed")}
        if not any(own["documents"] for own in about):
            raise ValueError(f"no text is left to train on; nothing written. Dropped: {totals['dropped']}")
        self.write_val(shards, about, totals)
        self.output.mkdir(parents=True, exist_ok=True)
        for old in self.output.glob("*.bin"):
            if is_number(old.stem) and (int(old.stem) >= self.tasks or not about[int(old.stem)]["documents"]):
                remove_bin(old)
        for shard, own in zip(shards, about):
            if own["documents"]:
                self.move(shard)
        print(self.told(about, totals), flush=True)
        for name in ("parts", "lines", "keys", "repeats", "near"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        os.replace(made, self.folder / "done")
        shutil.rmtree(self.folder / "done")

    def write_val(self, shards, about, totals):
        """Joins the validation parts; where no text is held out, an old one goes."""
        target = val_path_of(self.output)
        parts = [val_path_of(shard) for shard in shards]
        descriptions = [json.loads(sidecar_of(part).read_text(encoding="utf-8")) for part in parts]
        if not any(own["documents"] for own in descriptions):
            remove_bin(target)
            return
        with BinWriter(target) as writer:
            for part, own in zip(parts, descriptions):
                ids = np.fromfile(part, "<u2")
                writer.add(ids, np.empty(own["documents"]), own["characters"], own["text_bytes"])
            common = {name: value for name, value in descriptions[0].items() if name not in COUNTED}
            sources = [one for own in about for one in own["sources"]]
            writer.prepare(**common | totals | {"sources": sources})
            writer.commit()

    def move(self, shard):
        """Moves a shard; its description is copied, so that a second attempt finds it again."""
        target = self.output / shard.name
        if shard.is_file():
            os.replace(shard, target)
        temporary = Path(f"{sidecar_of(target)}.tmp")
        shutil.copyfile(sidecar_of(shard), temporary)
        os.replace(temporary, sidecar_of(target))

    def told(self, about, totals):
        """The table that is printed at the end."""
        rows = [f"\n{'file':<16} {TABLE}"]
        for number, own in enumerate(about):
            if own["documents"]:
                rows.append(f"{number:05d}.bin{own['documents']:>19,} {own['tokens']:>14,} {own['characters']:>14,}")
        for what, counts in totals.items():
            rows += [f"{count:>11,}  {what}: {reason}" for reason, count in counts.items()]
        return "\n".join([*rows, f"written to {self.output}"])


def total(about, name):
    """The sum of what all descriptions count under one name, as a dict."""
    counts = Counter()
    for own in about:
        counts.update(own[name])
    return dict(sorted(counts.items()))
