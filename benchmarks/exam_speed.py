"""How fast an exam is taken, against one forward pass per text, and whether any choice changes: one table.

    python benchmarks/exam_speed.py --data_dir dataset/ceval-exam --model out/pretrain_512.pth

The baseline runs each prompt (letter, few-shot) or each prompt with each option (cloze) through the model alone, in
fp32. Every way takes its turn in each round, so that a busy machine slows all of them; the best round counts.
--max_seq_len lets five solved examples fit; the speed does not depend on what a model has learnt.
"""

import datetime
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

import torch

from evaluation.exams import read_exam, solved_examples
from evaluation.multiple_choice import Prompts, score_cloze, score_letter
from evaluation.reader import Reader
from trainer import args
from trainer.checkpoint import open_checkpoint
from trainer.runtime import choose_device, has_bf16


class OneByOne(Reader):
    """The baseline: every text in a forward pass of its own, logits at every position."""

    branching = False

    def read(self, trunks, branches, places, beginning=None):
        found = {}
        for b, (trunk, own) in enumerate(zip(trunks, branches)):
            row = torch.tensor([trunk + [i for branch in own for i in branch]], device=self.device)
            found[b] = self.model(row).logits[0]
        return torch.stack([found[b][position] for b, position in places]).float()


def main(argv=None):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data_dir", required=True, help="the exam's folder")
    args.add_flag(parser, "split", default="val", help="default: val")
    args.add_flag(parser, "model", required=True, help="checkpoint")
    args.add_flag(parser, "limit", type=int, help="only so many questions")
    args.add_flag(parser, "rounds", type=int, default=2, help="default: 2")
    args.add_flag(parser, "shots", type=int, default=5, help="solved examples of the last rows (default: 5)")
    args.add_flag(parser, "max_seq_len", type=int, help="another context than the checkpoint's")
    args.add_flag(parser, "device", default="cpu", help="default: cpu")
    typed = parser.parse_args(argv)
    device = choose_device(typed.device)
    changes = {"max_seq_len": typed.max_seq_len} if typed.max_seq_len else {}
    fresh = lambda: open_checkpoint(typed.model, device, **changes)  # noqa: E731
    tokenizer = fresh()[1]
    exam = read_exam(typed.data_dir, typed.split)
    exam.questions = exam.questions[: typed.limit]
    prompts = Prompts(exam.english, examples=solved_examples(typed.data_dir))
    readers = {"one by one, fp32": OneByOne(fresh()[0]), "fp32": Reader(fresh()[0])}
    if has_bf16(device):
        readers["bf16"] = Reader(fresh()[0], torch.bfloat16)
    tasks = {
        "letter": lambda reader: score_letter(reader, tokenizer, exam, prompts, 0),
        "cloze": lambda reader: score_cloze(reader, tokenizer, exam, prompts, 0),
        f"letter, {typed.shots} shots": lambda reader: score_letter(reader, tokenizer, exam, prompts, typed.shots),
    }
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {datetime.date.today()}")
    print("| scoring | way | questions/s | x | choices changed |\n|---|---|---:|---:|---:|")
    for task, run in tasks.items():
        seconds, choices = {name: [] for name in readers}, {}
        for _ in range(typed.rounds):
            for name, reader in readers.items():
                start = time.perf_counter()
                scores, _ = run(reader)
                seconds[name].append(time.perf_counter() - start)
                choices[name] = next(iter(scores.values())).argmax(1)
        base = "one by one, fp32"
        for name, taken in seconds.items():
            changed = int((choices[name] != choices[base]).sum())
            ratio = max(b / t for b, t in zip(seconds[base], taken))
            rate = len(exam.questions) / min(taken)
            print(f"| {task} | {name} | {rate:.1f} | {ratio:.2f} | {changed} of {len(exam.questions)} |", flush=True)


if __name__ == "__main__":
    args.run(main)
