"""Whether ceval_eval.py chooses what lm-eval chooses: the same prompts, question by question, one table.

    pip install -r requirements-dev.txt
    python benchmarks/exam_parity.py --data_dir dataset/ceval-exam --model out/pretrain_512.pth [MODEL...]

Each checkpoint is written as a stock Hugging Face folder; lm-eval's own model class reads it with stock transformers,
encodes the prompts with the folder's tokenizer and scores every continuation. A tie is a question where the two best
options lie closer together than --tie nats (per token, per byte); only there may the choices differ.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import torch

from evaluation.exams import LETTERS, read_exam, solved_examples
from evaluation.multiple_choice import Prompts, score_cloze, score_letter
from evaluation.reader import Reader
from inference.export import save_hugging_face
from trainer import args
from trainer.checkpoint import open_checkpoint

RUNS = {"letter": ("letter", 0), "letter5": ("letter", 5), "cloze": ("cloze", 0)}  # scoring, examples shown


def lm_eval_scores(lm, pairs, shape):
    """lm-eval's summed log-probabilities and token counts of (context, continuation) texts."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    nats = [nats for nats, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    tokens = [max(len(lm._encode_pair(*pair)[1]), 1) for pair in pairs]
    return (torch.tensor(column, dtype=torch.float64).view(shape) for column in (nats, tokens))


def compare(name, ours, theirs, tie):
    """One row: how often the choices agree, and the largest difference of scores."""
    same = ours.argmax(1) == theirs.argmax(1)
    best = theirs.topk(2, dim=1).values
    tied = best[:, 0] - best[:, 1] < tie
    verdict = "equal" if bool((same | tied).all()) else "DIFFERENT"
    worst = float((ours - theirs).abs().max())
    return f"| {name} | {len(same)} | {int(same.sum())} | {int((~same & tied).sum())} | {worst:.1e} | {verdict} |"


def main(argv=None):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data_dir", required=True, help="the exam's folder")
    args.add_flag(parser, "split", default="val", help="default: val")
    args.add_flag(parser, "model", nargs="+", required=True, help="checkpoints")
    args.add_flag(parser, "limit", type=int, help="only so many questions")
    args.add_flag(parser, "tie", type=float, default=1e-4, help="nats between options that count as a tie")
    args.add_flag(parser, "runs", nargs="+", choices=list(RUNS), default=list(RUNS), help="only these (default: all)")
    typed = parser.parse_args(argv)
    from lm_eval.models.huggingface import HFLM

    exam = read_exam(typed.data_dir, typed.split)
    exam.questions = exam.questions[: typed.limit]
    prompts, shape = Prompts(exam.english, examples=solved_examples(typed.data_dir)), (len(exam.questions), 4)
    print("| model, scoring, shots | questions | same choice | ties that differ | largest difference, nats | |")
    print("|---|---:|---:|---:|---:|---|")
    for path in typed.model:
        model, tokenizer, _ = open_checkpoint(path)
        with tempfile.TemporaryDirectory() as folder:
            save_hugging_face(model, tokenizer, folder)
            lm = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=16, add_bos_token=True)
        for kind, shots in map(RUNS.get, typed.runs):
            start = time.perf_counter()
            run = score_letter if kind == "letter" else score_cloze
            found, used = run(Reader(model), tokenizer, exam, prompts, shots)
            middle = time.perf_counter()
            texts = [prompts.write(kind, q, exam.names[q.subject], k) for q, k in zip(exam.questions, used)]
            answers = [list(LETTERS) if kind == "letter" else q.options for q in exam.questions]
            gap = prompts.gap if kind == "cloze" else ""
            pairs = [(text, gap + answer) for text, own in zip(texts, answers) for answer in own]
            nats, tokens = lm_eval_scores(lm, pairs, shape)
            seconds = time.perf_counter() - middle
            size = torch.tensor([[len(o.encode()) for o in q.options] for q in exam.questions])
            theirs = {
                "letter": nats,
                "cloze_sum": nats,
                "cloze_per_token": nats / tokens,
                "cloze_per_byte": nats / size,
            }
            for name in [n for n in found if n in theirs]:
                print(compare(f"{path}, {name}, {shots}", found[name], theirs[name], typed.tie), flush=True)
            print(f"  {kind}, {shots} shots: {middle - start:.1f} s, lm-eval {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    args.run(main)
