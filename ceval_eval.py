"""An exam for any checkpoint: four options a question, in C-Eval's CSV layout.

reads    dataset/ceval-exam/{dev,val,test}/<subject>_<split>.csv, and any checkpoint (its shape comes from the file)
writes   out/ceval/<subject>.csv with each question's scores, and summary.json

    python ceval_eval.py --data_dir dataset/ceval-exam --split val --shots 0 --scoring both --model out/pretrain_512.pth

cloze: which option's text is the likeliest answer; works for base models. letter: which of A-D follows the question
with its options; small models score at chance there. Guessing gives 25 %: look at the interval before you cheer.
"""

import csv
import io
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from evaluation import multiple_choice as exam
from trainer import args
from trainer.checkpoint import newest, open_checkpoint, save_json, write_atomically
from trainer.runtime import choose_device


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    args.add_flag(
        parser, "data_dir", default="dataset/ceval-exam", help="the exam's folder (default: dataset/ceval-exam)"
    )
    args.add_flag(parser, "split", default="val", choices=["dev", "val", "test"], help="which part (default: val)")
    args.add_flag(parser, "shots", type=int, default=0, help="solved examples before each question (default: 0)")
    args.add_flag(parser, "scoring", default="both", choices=["cloze", "letter", "both"], help="default: both")
    args.add_flag(parser, "model", help="checkpoint (default: the newest in --out_dir)")
    args.add_flag(parser, "out_dir", default="out", help="where to look for checkpoints (default: out)")
    args.add_flag(parser, "results_dir", default="out/ceval", help="folder for the results (default: out/ceval)")
    args.add_flag(parser, "tokenizer", help="tokenizer folder (default: the one recorded in the checkpoint)")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    return parser.parse_args(argv)


def prefixes_for(typed, questions, prompt, answer_of):
    """{subject: its solved examples from the dev split as text}"""
    if typed.shots == 0:
        return defaultdict(str)
    examples = defaultdict(list)
    for q in exam.read_exam(typed.data_dir, "dev"):
        examples[q.subject].append(q)
    subjects = {q.subject for q in questions}
    return {s: exam.few_shot_prefix(examples[s][: typed.shots], prompt, answer_of) for s in subjects}


def score(typed, model, tokenizer, questions):
    """{name of the scoring: (N, 4) scores}"""
    scores = {}
    kinds = ["cloze", "letter"] if typed.scoring == "both" else [typed.scoring]
    for kind in kinds:
        with tqdm(total=4 * len(questions), desc=kind, unit="options", disable=None) as bar:
            if kind == "cloze":
                prefixes = prefixes_for(typed, questions, exam.cloze_prompt, lambda e: e.options[e.answer])
                found = exam.score_cloze(model, tokenizer, questions, prefixes, bar.update)
                scores.update({f"cloze_{name}": s for name, s in found.items()})
            else:
                prefixes = prefixes_for(typed, questions, exam.letter_prompt, lambda e: exam.LETTERS[e.answer])
                scores.update(exam.score_letter(model, tokenizer, questions, prefixes, bar.update))
    return scores


def summarise(questions, scores):
    """{scoring: {questions, answered, right, accuracy, interval, by subject}}"""
    summary = {}
    for name, table in scores.items():
        tally = defaultdict(lambda: [0, 0])
        for q, choice in zip(questions, table.argmax(1).tolist()):
            if q.answer is not None:
                tally[q.subject][0] += choice == q.answer
                tally[q.subject][1] += 1
        right, n = (sum(t[i] for t in tally.values()) for i in (0, 1))
        summary[name] = {
            "right": right,
            "answered": n,
            "accuracy": right / n if n else None,
            "interval_95": exam.wilson(right, n),
            "subjects": {s: {"right": r, "questions": k, "accuracy": r / k} for s, (r, k) in tally.items()},
        }
    return summary


def save(typed, questions, scores, summary, path):
    """One CSV per subject with each question's scores, and summary.json."""
    folder = Path(typed.results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for subject in sorted({q.subject for q in questions}):
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["id", "answer", *(f"{name}_{letter}" for name in scores for letter in exam.LETTERS)])
        for i, q in enumerate(questions):
            if q.subject == subject:
                letter = "" if q.answer is None else exam.LETTERS[q.answer]
                writer.writerow([q.id, letter, *(f"{v:.6f}" for s in scores.values() for v in s[i].tolist())])
        write_atomically(folder / f"{subject}.csv", lambda f, t=text: f.write(t.getvalue().encode("utf-8")))
    facts = {"model": str(path), "split": typed.split, "shots": typed.shots, "questions": len(questions)}
    save_json(folder / "summary.json", {**facts, "scorings": summary})


def main(argv=None):
    typed = parse(argv)
    questions = exam.read_exam(typed.data_dir, typed.split)
    path = Path(typed.model) if typed.model else newest(typed.out_dir)
    model, tokenizer, _ = open_checkpoint(path, choose_device(typed.device), typed.tokenizer)
    print(f"{path}: {len(questions)} questions of {typed.data_dir} ({typed.split}, {typed.shots} shots)")
    scores = score(typed, model, tokenizer, questions)
    summary = summarise(questions, scores)
    save(typed, questions, scores, summary, path)
    for name, s in summary.items():
        if s["answered"]:
            low, high = s["interval_95"]
            verdict = "above chance" if low > 0.25 else "below chance" if high < 0.25 else "no different from guessing"
            print(f"{name:<16} {s['right']}/{s['answered']}  {s['accuracy']:.1%}  [{low:.1%}, {high:.1%}]  {verdict}")
    print(f"details in {typed.results_dir}")


if __name__ == "__main__":
    args.run(main)
