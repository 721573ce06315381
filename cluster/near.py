"""Near-duplicates over many machines: datatrove's MinHash steps, on this project's band keys and similarity.

Signatures of all tasks → pairs that agree in a band (one task per band) → of those the pairs that are similar →
clusters (one task) → of each cluster one document stays. A band's rows are joined to one number already, see
cleaning/minhash.py, so for datatrove a band is a bucket with one hash.
"""

import functools
import itertools
import struct
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig

from cleaning.corpus import Documents
from cleaning.minhash import band_keys, bands_and_rows
from cleaning.near_duplicates import set_reader
from cleaning.shingles import jaccard
from cluster.steps import TOGETHER, column_of, kept_of, parts_of

MEMORY = 64 << 20  # bytes of shingles that are remembered while pairs are compared
BLOCK = 32  # pairs are taken so that they lie in the parts of so many tasks and so many others: 28 bytes per document


def minhash_config(near):
    """datatrove's description of the bands of NearDuplicates."""
    bands, _ = bands_and_rows(near.similarity)
    return MinhashConfig(near.shingle, bands, 1, hash_config=HashConfig(64, "sha1"))


class BandSignature(MinhashDedupSignature):
    """datatrove's first step, with the keys of cleaning/minhash.py: runs of characters instead of runs of words."""

    def __init__(self, output_folder, near):
        # the parent's own __init__ loads a tokenizer of words, for which it wants spaCy
        PipelineStep.__init__(self)
        self.output_folder, self.config = get_datafolder(output_folder), minhash_config(near)
        self.near, self.skip_existing_sigs = near, False

    def run(self, data, rank=0, world_size=1):
        super().run(self.with_keys(data), rank, world_size)

    def with_keys(self, data):
        """Documents → Documents with their band keys for a text, because a thousand at a time are made much faster."""
        data = iter(data)
        while batch := list(itertools.islice(data, TOGETHER)):
            for document, keys in zip(batch, band_keys([own.text for own in batch], self.near)):
                yield Document(keys, document.id)

    def get_shingles(self, keys):
        """What the parent makes a signature of; nothing for a text with nothing to compare."""
        return keys[keys > 0]

    def get_signature(self, keys):
        """A list of one number per band, below 2^61: the next step takes none above."""
        return [[key] for key in (keys >> np.uint64(3)).tolist()]


class SimilarPairs(PipelineStep):
    """The pairs that this task of MinhashDedupBuckets found → those whose texts are similar indeed.

    Args:
        job: Job, with `near`.
        pairs, output: folders of .dups files: (task, document, task, document) of each pair, 16 bytes.
        tasks: how many made parts.
    """

    type, name = "NEAR", "exact similarity"

    def __init__(self, job, pairs, output, tasks):
        super().__init__()
        self.job, self.pairs, self.output, self.tasks = job, Path(pairs), Path(output), tasks

    def run(self, data=None, rank=0, world_size=1):
        self.output.mkdir(parents=True, exist_ok=True)
        tokenizer = self.job.load_tokenizer(self.job.tokenizer)

        @functools.lru_cache(maxsize=2 * BLOCK)
        def opened(task):
            own = Documents(parts_of(self.job.folder, task))
            return own, np.flatnonzero(kept_of(self.job.folder, task, self.tasks))

        def text_of(place):
            documents, numbers = opened(place[0])
            return tokenizer.decode(documents.ids(numbers[place[1]])[1:-1].tolist())

        set_of = set_reader(text_of, self.job.near.shingle, MEMORY)
        for file in sorted(self.pairs.glob(f"{rank:05d}_*.dups")):
            found = np.fromfile(file, "<u4").reshape(-1, 4)
            found = found[np.lexsort((found[:, 2] // BLOCK, found[:, 0] // BLOCK))]
            with open(self.output / file.name, "wb") as similar:
                for a, b, c, d in found.tolist():
                    if jaccard(set_of((a, b)), set_of((c, d))) >= self.job.near.similarity:
                        similar.write(struct.pack("<4I", a, b, c, d))
                        self.stat_update("pairs")


class KeepBest(PipelineStep):
    """datatrove's clusters → lists of all documents of each but the best one, or the first; one task.

    Args:
        job: Job.
        clusters: folder of NNNNNN.clusters, (document, cluster) for each document of a task, where NNNNNN.remove goes.
        tasks: how many made parts.
    """

    type, name = "NEAR", "one of each cluster"

    def __init__(self, job, clusters, tasks):
        super().__init__()
        self.job, self.clusters, self.tasks = job, Path(clusters), tasks

    def run(self, data=None, rank=0, world_size=1):
        found = [np.empty((0, 4))]  # cluster, -score, task, document
        for task in range(self.tasks):
            file = self.clusters / f"{task:06d}.clusters"
            if not file.is_file():
                continue
            document, cluster = np.fromfile(file, "<u4").reshape(-1, 2).T
            scores = np.zeros(len(document))
            if self.job.quality:
                kept = np.flatnonzero(kept_of(self.job.folder, task, self.tasks))
                scores = column_of(parts_of(self.job.folder, task), "quality")[kept[document]]
            found.append(np.stack([cluster, -scores, np.full(len(document), task), document], axis=1))
        found = np.concatenate(found)
        found = found[np.lexsort(found.T[::-1])]
        goes = found[1:][found[1:, 0] == found[:-1, 0]]
        self.stat_update("near-duplicates", value=len(goes))
        for task in range(self.tasks):
            own = np.sort(goes[goes[:, 2] == task, 3])
            (self.clusters / f"{task:06d}.remove").write_bytes(own.astype("<u4").tobytes())
