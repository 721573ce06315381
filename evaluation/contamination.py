"""How much of an exam occurs in the training data: questions that share n characters in a row with it.

reads    an exam in C-Eval's layout, and training data: .bin files (decoded with their tokenizer) or folders of them;
         .txt, .jsonl, .json, .csv, .parquet with a text column; plain or .gz
shows    by subject and in total, the share of the questions that are found, and what the first ten share with which
         document; with --output, all of them as JSON

    python -m evaluation.contamination --exam dataset/ceval-exam --data dataset/pretrain.bin
    python data_process.py inspect dataset/pretrain.bin 1234                  a document that was shown, counted from 0

Compared are the characters that are left without whitespace, punctuation and control characters, in Unicode's form NFKC
(full-width letters become plain ones) and lower case. A question is found if any n of its characters in a row, or all
where it has fewer, stand in one document. Options and answers are not looked at. Source: the 13-grams of Brown et al.
2020, arXiv:2005.14165, appendix C, which are of words; a Chinese word has about two characters, so these are stricter.
"""

import functools
import shlex
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from evaluation.exams import read_exam
from evaluation.intervals import wilson
from evaluation.texts import Text, bin_documents, data_files, groups, text_documents
from model.bin_data import tokenizer_for
from trainer import args
from trainer.checkpoint import prepare_out_dir, provenance, save_json

BATCH = 1 << 20  # bytes of text that are searched together
BETWEEN = "\0"  # stands between documents; no normalised text holds it
BASE = 0x9E3779B97F4A7C15  # odd, so that no product modulo 2^64 loses anything


class Hit(NamedTuple):
    """Where a run of characters was first found: file, and number of the document in it, from 0."""

    file: str
    document: int


@functools.cache
def kept_characters():
    """(0x110000,) bool: False for punctuation (P), separators (Z), control and format characters (Cc, Cf)."""
    kinds = (unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1))
    return np.array([kind[0] not in "PZ" and kind not in ("Cc", "Cf") for kind in kinds])


def codes_of(text):
    """str → its code points, (n,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def stripped(text):
    """`text` without the characters that are not compared."""
    codes = codes_of(text)
    return codes[kept_characters()[codes]].tobytes().decode("utf-32-le")


def normalised(text):
    """What is compared of a text; see the top of this file."""
    # stripped first: without full-width punctuation most text is in NFKC already, and is so eight times as fast
    return stripped(unicodedata.normalize("NFKC", stripped(text)).lower())


def rolling_hashes(codes, n):
    """A hash of every n code points in a row: (len(codes) - n + 1,) uint64, polynomials in BASE modulo 2^64.

    Put together from runs of 1, 2, 4, … characters: 5 products a character for n = 13, where one by one takes 12.
    """

    def joined(first, first_size, second, second_size):
        count = max(0, len(codes) - first_size - second_size + 1)
        return first[:count] * np.uint64(pow(BASE, second_size, 1 << 64)) + second[first_size : first_size + count]

    run, size = codes * np.uint64(BASE), 1
    whole, whole_size = None, 0
    while size <= n:
        if n & size:
            whole = run if whole is None else joined(whole, whole_size, run, size)
            whole_size += size
        run, size = joined(run, size, run, size), 2 * size
    return whole


class Grams:
    """Finds runs of n characters in long texts.

    Args:
        wanted: set of str, each of n characters.
    """

    def __init__(self, n, wanted):
        self.n, self.wanted = n, wanted
        self.shift = np.uint64(64 - max(16, (64 * len(wanted)).bit_length()))
        self.may_be = np.zeros(1 << (64 - int(self.shift)), dtype=bool)  # at most 1 hash in 64 passes by chance
        self.may_be[self._slots(codes_of("".join(wanted)))[::n]] = True

    def _slots(self, codes):
        return rolling_hashes(codes, self.n) >> self.shift

    def find(self, text):
        """Yields (position, run) for every run in `text` that is wanted, compared character by character."""
        for at in np.flatnonzero(self.may_be[self._slots(codes_of(text))]).tolist():
            run = text[at : at + self.n]
            if run in self.wanted:
                yield at, run


def runs_of(text, n):
    """All runs of n characters of a normalised text, in order, or the whole of a shorter one; none of an empty one."""
    return [text[i : i + n] for i in range(max(1, len(text) - n + 1))] if text else []


def finders(runs):
    """A list of Grams, one for each length in the set of runs."""
    return [Grams(n, {run for run in runs if len(run) == n}) for n in sorted({len(run) for run in runs})]


def texts_of(path, folder):
    """Yields a Text for each document of a file of training data."""
    if path.suffix != ".bin":
        yield from text_documents(path)
        return
    tokenizer = tokenizer_for(path, folder)
    for ids in bin_documents(path, tokenizer):
        data = tokenizer.to_bytes(ids.tolist())
        yield Text(data.decode("utf-8", "replace"), len(data), ids.nbytes)


def search(texts, grams, name, found, progress=lambda n: None):
    """Looks for runs in the documents of one file.

    Args:
        texts: the file's Texts.
        grams: a list of Grams.
        name: of the file, for the Hits.
        found: {run: its first Hit}, extended here.
        progress: called with the bytes of the file that were read.
    Returns:
        {"documents", "bytes"} that were searched.
    """
    searched = {"documents": 0, "bytes": 0}
    for part in groups(texts, BATCH, lambda text: text.size):
        parts = [normalised(text.text) for text in part]
        ends = np.cumsum([len(text) + len(BETWEEN) for text in parts])
        together = BETWEEN.join(parts)
        for at, run in (hit for each in grams for hit in each.find(together)):
            if run not in found:
                document = searched["documents"] + int(np.searchsorted(ends, at, side="right"))
                found[run] = Hit(str(name), document)
        searched["documents"] += len(part)
        searched["bytes"] += sum(text.size for text in part)
        progress(sum(text.read for text in part))
    return searched


def share_of(n_found, n):
    """{"questions", "found", "share", "interval_95"}"""
    return {"questions": n, "found": n_found, "share": n_found / n if n else None, "interval_95": wilson(n_found, n)}


def summarise(questions, n, found):
    """Questions and {run: Hit} → the part of --output that is about them."""
    total, dirty, hits, short = Counter(), Counter(), [], 0
    for q in questions:
        text = normalised(q.text)
        runs = runs_of(text, n)
        shared = [run for run in runs if run in found]
        total[q.subject] += bool(runs)
        short += 0 < len(text) < n
        if shared:
            dirty[q.subject] += 1
            where = found[shared[0]]._asdict()
            hits.append(
                {"subject": q.subject, "id": q.id, "run": shared[0], **where, "runs": len(runs), "found": len(shared)}
            )
    compared = total.total()
    return {
        **share_of(len(hits), compared),
        "compared_whole": short,
        "without_a_character": len(questions) - compared,
        "subjects": {subject: share_of(dirty[subject], count) for subject, count in total.items()},
        "hits": hits,
    }


def show(summary, n):
    """Prints the table and the first ten hits."""
    wide = max(len("subject"), *map(len, summary["subjects"]))
    print(f"{'subject':<{wide}}  questions   found   share  95 % interval")
    for name, s in [*summary["subjects"].items(), ("total", summary)]:
        low, high = s["interval_95"]
        share = f"{s['share']:>7.1%}" if s["questions"] else f"{'-':>7}"
        print(f"{name:<{wide}} {s['questions']:>10,} {s['found']:>7,} {share}  [{low:.1%}, {high:.1%}]")
    print(f"{summary['compared_whole']} questions have fewer than {n} characters and were compared whole", end="")
    print(f"; {summary['without_a_character']} have none and are not counted" * (summary["without_a_character"] > 0))
    for hit in summary["hits"][:10]:
        place = f"document {hit['document']} of {hit['file']}"
        print(f"  {hit['subject']} {hit['id']}: {hit['run']} ({hit['found']} of {hit['runs']} runs) in {place}")


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "exam", required=True, metavar="DIR", help="the exam's folder, such as dataset/ceval-exam")
    args.add_flag(parser, "split", default="val", choices=["dev", "val", "test"], help="which part (default: val)")
    args.add_flag(parser, "data", nargs="+", required=True, metavar="FILE", help=".bin files, folders of them, texts")
    args.add_flag(parser, "n", type=int, default=13, help="characters in a row that count as found (default: 13)")
    args.add_flag(parser, "tokenizer", metavar="DIR", help="of the .bin files (default: the one in their .json)")
    args.add_flag(parser, "output", metavar="FILE.json", help="write the figures and all hits to this file")
    return parser.parse_args(argv)


def main(argv=None):
    """Searches the data for the exam's questions and prints what was found."""
    typed = parse(argv)
    if typed.n < 1:
        raise ValueError(f"--n {typed.n}: at least one character has to be compared; 13 is usual")
    questions, files = read_exam(typed.exam, typed.split).questions, data_files(typed.data)
    for file in files:  # a wrong tokenizer is told before the first file is searched
        if file.suffix == ".bin":
            tokenizer_for(file, typed.tokenizer)
    if typed.output:
        prepare_out_dir(Path(typed.output).parent)
    grams = finders({run for q in questions for run in runs_of(normalised(q.text), typed.n)})
    searched, found = {}, {}
    for file in files:
        with tqdm(total=file.stat().st_size, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
            searched[str(file)] = search(texts_of(file, typed.tokenizer), grams, file, found, bar.update)
    summary = summarise(questions, typed.n, found)
    show(summary, typed.n)
    if typed.output:
        command = shlex.join(["python", "-m", "evaluation.contamination", *(sys.argv[1:] if argv is None else argv)])
        facts = {
            "exam": typed.exam,
            "split": typed.split,
            "n": typed.n,
            "unicode": unicodedata.unidata_version,
            "data": searched,
        }
        save_json(typed.output, {**facts, **summary, **provenance(), "command": command})
        print(f"written to {typed.output}")


if __name__ == "__main__":
    args.run(main)
