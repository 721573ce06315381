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

import shlex
import sys
import unicodedata
from collections import Counter
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cleaning.files import prepare_file
from cleaning.grams import finders, normalised, runs_of
from evaluation.exams import read_exam
from evaluation.intervals import wilson
from evaluation.texts import Text, bin_documents, data_files, groups, text_documents
from model.bin_data import tokenizer_for
from trainer import args
from trainer.checkpoint import provenance, save_json

BATCH = 1 << 20  # bytes of text that are searched together
BETWEEN = "\0"  # stands between documents; no normalised text holds it


class Hit(NamedTuple):
    """Where a run of characters was first found: file, and number of the document in it, from 0."""

    file: str
    document: int


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
        prepare_file(typed.output, ".json", (b"{\n", b"[\n"), files)
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
