"""Whether near-duplicates are found, what is taken for one, and what it costs: planted pairs against exact Jaccard.

    python benchmarks/dedup_quality.py --data dataset/demo/generated             2,000 documents get an altered copy
    python benchmarks/dedup_quality.py --clusters FILE.jsonl                     the largest clusters of a real file

A copy differs in 1 to 30 % of its characters, in one kind of edit or several: characters replaced, put in or taken out,
one by one or in runs, and sentences moved. The oracle compares Python sets of strings; nothing in it is hashed.
"""

import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from cleaning.minhash import NearDuplicates, band_keys, bands_and_rows, chance_found, check_near_duplicates
from cleaning.near_duplicates import drop_mask
from cleaning.readers import Drops, expand_inputs, read_located
from cleaning.shingles import folded
from trainer.args import make_parser, run

BATCH = 500  # documents whose keys are made together
SHORTEST, LONGEST = 60, 10_000  # characters of a document that gets a copy: below, one edit is more than 1 %


def exact_jaccard(a, b, n):
    """Jaccard similarity of the runs of n compared characters, from strings and Python's sets."""
    sets = []
    for text in (a, b):
        codes = folded()[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        plain = codes[codes > 0].tobytes().decode("utf-32-le")
        sets.append({plain[i : i + n] for i in range(max(1, len(plain) - n + 1))} - {""})
    return len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1]))


def altered(text, rng, letters):
    """A copy of `text`, 1 to 30 % of its characters edited; inserted ones are drawn from `letters`."""
    budget = max(1, round(len(text) * 10 ** rng.uniform(-2, np.log10(0.3))))
    kinds, run = rng.permutation(["replace", "insert", "delete", "move"])[: rng.integers(1, 5)], rng.choice([1, 10, 40])
    while budget > 0:
        kind, size = rng.choice(kinds), int(min(run, budget))
        at = int(rng.integers(0, max(1, len(text) - size)))
        new = "".join(rng.choice(letters, size)) if kind in ("replace", "insert") else ""
        if kind == "move":  # a sentence goes to the end; it ends at the next full stop
            stop = next((i for i in range(at, len(text)) if text[i] in "。.！？\n"), len(text) - 1) + 1
            size, new = stop - at, ""
            text += text[at:stop]
        text = text[:at] + new + text[at if kind == "insert" else at + size :]
        budget -= size
    return text


def keys_of(texts, settings):
    """list of (n_i, bands) arrays, and the CPU seconds that they took."""
    band_keys(texts[:1], settings)  # the table of characters is made at the first call
    start = time.process_time()
    parts = [band_keys(texts[i : i + BATCH], settings) for i in range(0, len(texts), BATCH)]
    return parts, time.process_time() - start


def memory_per_document(settings, share, count=200_000):
    """Bytes of memory per document at the peak of drop_mask, where this share of them has a twin."""
    bands, rng, twins = bands_and_rows(settings.similarity)[0], np.random.default_rng(0), round(count * share / 2)
    keys = rng.integers(1, 1 << 63, (count, bands), dtype=np.uint64)
    keys[count - twins :] = keys[:twins]
    tracemalloc.start()
    drop, _ = drop_mask([keys], lambda i: f"text {i % (count - twins):09}", settings, memory=4 << 20)
    peak = tracemalloc.get_traced_memory()[1] / count
    tracemalloc.stop()
    assert drop.sum() == twins, "each second twin goes and nothing else"
    return peak


def table(pairs, parts, drop, settings, exact):
    """Prints what was found, by similarity.

    Args:
        pairs: (P, 2) numbers of documents; exact: (P,) their Jaccard similarities.
    """
    keys = np.concatenate(parts)
    shares = (keys[pairs[:, 0]] == keys[pairs[:, 1]]).any(axis=1)
    goes = drop[pairs].any(axis=1)
    shape = bands_and_rows(settings.similarity)
    print(f"{'Jaccard':<13} {'pairs':>7} {'share a key':>12} {'by formula':>11} {'one of them goes':>17}")
    for tenth in range(10):
        low, inside = tenth / 10, np.minimum((exact * 10 + 1e-9).astype(int), 9) == tenth
        if inside.any():
            formula = chance_found(exact[inside], *shape).mean()
            print(f"{low:.1f} to {low + 0.1:.1f}    {inside.sum():>7,} {shares[inside].mean():>12.2%}", end=" ")
            print(f"{formula:>11.2%} {goes[inside].mean():>17.2%}")
    wanted = exact >= settings.similarity
    print(f"recall at {settings.similarity} (share a key): {shares[wanted].mean():.3%} of {wanted.sum():,} pairs")
    print(f"recall at {settings.similarity} (one of them goes): {goes[wanted].mean():.3%}")


def planted(texts, settings, count, seed):
    """Gives `count` of the texts an altered copy and prints how many of the pairs are found."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("".join(texts[i] for i in rng.integers(0, len(texts), 200))))
    chosen = rng.permutation([i for i, text in enumerate(texts) if SHORTEST <= len(text) <= LONGEST])[:count]
    every = texts + [altered(texts[i], rng, letters) for i in chosen]
    parts, seconds = keys_of(every, settings)
    reads, start = Counter(), time.process_time()

    def text_of(i):
        reads[i] += 1
        return every[i]

    drop, kept = drop_mask(parts, text_of, settings)
    selecting = time.process_time() - start
    pairs = np.stack([chosen, len(texts) + np.arange(len(chosen))], axis=1)
    exact = np.array([exact_jaccard(every[a], every[b], settings.shingle) for a, b in pairs])
    print(f"{len(every):,} documents, {len(pairs):,} of them altered copies\n")
    table(pairs, parts, drop, settings, exact)
    gone = np.flatnonzero(drop)
    right = [exact_jaccard(every[i], every[kept[i]], settings.shingle) >= settings.similarity for i in gone]
    print(f"precision: {np.mean(right):.3%} of {len(gone):,} that go resemble the one that stays in their place")

    others = rng.integers(0, len(texts), (count, 2))
    others = others[others[:, 0] != others[:, 1]]
    exact = np.array([exact_jaccard(every[a], every[b], settings.shingle) for a, b in others])
    keys = np.concatenate(parts)
    shared = (keys[others[:, 0]] == keys[others[:, 1]]).any(axis=1).sum()
    print(f"{len(others):,} random pairs: Jaccard {exact.mean():.4f} on average, {exact.max():.3f} at most", end="; ")
    print(f"{shared} share a key\n")

    million = sum(map(len, every)) / 1e6
    print(f"keys: {len(every) / seconds:,.0f} documents, {million / seconds:.1f} million characters a CPU second")
    print(f"selection: {len(every) / selecting:,.0f} documents a CPU second", end="; ")
    print(f"{len(reads):,} were read, {reads.total():,} times in all")
    alone, twins = (memory_per_document(settings, share) for share in (0.0, 0.3))
    print(f"bytes per document: {keys.nbytes / len(keys):.0f} of keys on disk; memory while selecting", end=" ")
    print(f"{alone:.0f} where none shares a key, {twins:.0f} where 30 % have a twin")


def show_clusters(texts, settings, largest, excerpt):
    """Prints the largest clusters among the different texts of a file, the one that stays first."""
    given, texts = len(texts), list(dict.fromkeys(texts))
    print(f"{given - len(texts):,} of {given:,} documents are exact copies; the others are numbered from 0")
    drop, kept = drop_mask(keys_of(texts, settings)[0], texts.__getitem__, settings)
    sizes = Counter(kept[drop].tolist())
    print(f"{drop.sum():,} of {len(texts):,} others go, for {len(sizes):,} that stay")
    for leader, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:largest]:
        print(f"\n{size + 1} documents\n  stays {leader:>7}         {texts[leader][:excerpt]!r}")
        for i in np.flatnonzero(drop & (kept == leader))[:5]:
            same = exact_jaccard(texts[leader], texts[i], settings.shingle)
            at = next((k for k, (a, b) in enumerate(zip(texts[leader], texts[i])) if a != b), 0)
            begin = max(0, at - 20)
            print(f"  goes  {i:>7}  {same:.3f}  first difference: {texts[leader][begin : begin + excerpt]!r}")
            print(f"{'':<38} {texts[i][begin : begin + excerpt]!r}")


def main(argv=None):
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", help="files or folders of texts that get copies")
    source.add_argument("--clusters", nargs="+", help="files or folders whose largest clusters are shown")
    parser.add_argument("--planted", type=int, default=2000, help="documents that get a copy (default: 2000)")
    parser.add_argument("--similarity", type=float, default=0.8, help="threshold (default: 0.8)")
    parser.add_argument("--shingle", type=int, default=5, help="characters in a run (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--largest", type=int, default=20, help="clusters that are shown (default: 20)")
    parser.add_argument("--excerpt", type=int, default=60, help="characters shown of each text (default: 60)")
    cfg = parser.parse_args(argv)
    settings = NearDuplicates(similarity=cfg.similarity, shingle=cfg.shingle)
    check_near_duplicates(settings)
    texts = [text for _, _, text in read_located(expand_inputs(cfg.data or cfg.clusters), Drops())]
    if cfg.data:
        planted(texts, settings, cfg.planted, cfg.seed)
    else:
        show_clusters(texts, settings, cfg.largest, cfg.excerpt)


if __name__ == "__main__":
    run(main)
