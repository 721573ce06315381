"""An exam for any checkpoint: four options a question, in the CSV layouts of C-Eval, CMMLU and MMLU.

reads    --data_dir with dev/, val/ or test/ of CSV files; checkpoints of any stage (their shape comes from the file) or
         folders of Hugging Face's
writes   --results_dir: a CSV per subject with each question's scores, summary.json, submission.json (C-Eval's official
         form, for a split without answers); with several models comparison.json and a folder for each

    python ceval_eval.py --data_dir dataset/ceval-exam --split val --shots 0 --scoring both --model out/pretrain_512.pth
    python ceval_eval.py --data_dir dataset/ceval-exam --compare out/pretrain_512.pth out/full_sft_512.pth

cloze: which option's text is the likeliest answer; works for base models. letter: which of A-D follows the question
with its options; small models score at chance there. Guessing gives 25 %: the last lines say whether this is more.
"""

import time
from pathlib import Path

from evaluation import exam_results
from evaluation.comparison import compare, write_samples
from evaluation.exams import read_exam, solved_examples
from evaluation.multiple_choice import SCORINGS, STANDARD_INSTRUCTIONS, Prompts, score_exam
from evaluation.reader import open_reader
from inference.opening import add_model_flags
from trainer import args
from trainer.checkpoint import is_chat_stage, prepare_out_dir, provenance
from trainer.runtime import choose_device, choose_dtype


def parse(argv):
    """The command line → namespace."""
    parser = args.make_parser(__doc__)
    flag = lambda name, help, **kwargs: args.add_flag(parser, name, help=help, **kwargs)  # noqa: E731
    flag("data_dir", "the exam's folder (default: dataset/ceval-exam)", default="dataset/ceval-exam")
    flag("split", "dev, val or test, or what the folder has (default: val)", default="val")
    flag("shots", "solved examples of dev before each question (default: 0)", type=int, default=0)
    flag("scoring", "default: both", default="both", choices=["cloze", "letter", "both"])
    add_model_flags(parser, "a checkpoint, or a folder of Hugging Face's")
    flag("compare", "several, with a paired test", nargs="+", metavar="MODEL", default=[])
    flag("prompt", "auto: letters as a chat where the model was trained on chats, texts plain", default="auto",
         choices=["auto", "plain", "chat"])  # fmt: skip
    flag("instruction", "what stands before the examples, {subject} replaced; 'standard': the authors'", default="")
    flag("rotations", "orders of the options in letter scoring, 1 to 4 (default: 2)", type=int, default=2)
    flag("submit", "the scoring of submission.json (default: letter, or cloze_sum)", choices=[*SCORINGS])
    flag("results_dir", "folder for the results (default: out/ceval)", default="out/ceval")
    flag("dtype", "of the layers (default: float32; scores are always float32)", default="float32",
         choices=["float32", "bfloat16", "float16"])  # fmt: skip
    typed = parser.parse_args(argv)
    if typed.shots < 0 or not 1 <= typed.rotations <= 4:
        raise ValueError(f"--shots {typed.shots} must be 0 or more, --rotations {typed.rotations} 1 to 4")
    if typed.model and typed.compare:
        raise ValueError("give either --model or --compare, which takes several")
    if len(typed.compare) == 1:
        raise ValueError(f"--compare needs at least two models, not {typed.compare[0]} alone; for one use --model")
    scored = [name for name in SCORINGS if typed.scoring == "both" or name.startswith(typed.scoring)]
    typed.submit = typed.submit or ("letter" if "letter" in scored else "cloze_sum")
    if typed.submit not in scored:
        raise ValueError(
            f"--submit {typed.submit} is not among what --scoring {typed.scoring} gives: {', '.join(scored)}"
        )
    return typed


def prompts_for(typed, exam, chats):
    """{"cloze", "letter": Prompts}: how a model is asked that was trained on chats, or was not.

    A chat model answers in sentences, so even its knowledge of an option's bare text shows best in plain text.
    """
    examples = solved_examples(typed.data_dir) if typed.shots else {}
    without = sorted(set(exam.names) - set(examples))
    if typed.shots and without:
        raise ValueError(f"--shots {typed.shots}: dev has no solved example of {', '.join(without[:5])}")
    chat = {"plain": (False, False), "chat": (True, True), "auto": (False, chats)}[typed.prompt]
    instruction = STANDARD_INSTRUCTIONS[exam.english] if typed.instruction == "standard" else typed.instruction
    prompts = {kind: Prompts(exam.english, c, instruction, examples) for kind, c in zip(("cloze", "letter"), chat)}
    return {kind: p for kind, p in prompts.items() if typed.scoring in (kind, "both")}


def take(typed, exam, path, folder):
    """One model takes the exam: its results are shown and saved; → ({scoring: (N, 4)}, samples of its text)."""
    device = choose_device(typed.device)
    dtype, _ = choose_dtype(typed.dtype, device)
    reader, tokenizer, about, path = open_reader(path, device, dtype, typed.tokenizer, typed.lora, typed.out_dir)
    chats = is_chat_stage(about["stage"]) or bool(typed.lora)
    prompts = prompts_for(typed, exam, chats)
    style = {kind: "chat" if p.chat else "plain" for kind, p in prompts.items()}
    how = ", ".join(f"{kind} in {words} prompts" for kind, words in style.items())
    print(f"\n{path}: {len(exam.questions)} questions of {typed.data_dir} ({typed.split}), {how}, {typed.dtype}")
    start = time.perf_counter()
    scores, turned, used = score_exam(reader, tokenizer, exam, prompts, typed.shots, typed.rotations)
    seconds = time.perf_counter() - start
    if min(used) < typed.shots:
        fewer, mean = sum(k < typed.shots for k in used), sum(used) / len(used)
        print(
            f"{fewer} questions with fewer than {typed.shots} examples ({mean:.1f}): {reader.limit} tokens of context"
        )
    summary = exam_results.summarise(exam, scores, turned)
    facts = {"model": str(path), "stage": about["stage"], "lora": typed.lora, "data_dir": str(typed.data_dir),
             "split": typed.split, "shots": typed.shots, "prompt": style, "instruction": typed.instruction,
             "dtype": typed.dtype, "seconds": seconds, **provenance()}  # fmt: skip
    secret = all(q.answer is None for q in exam.questions)
    aside = exam_results.save(folder, exam, scores, summary, facts, typed.submit if secret else None)
    for line in exam_results.show(summary):
        print(line)
    print(f"{len(exam.questions) / seconds:.1f} questions/s; details in {folder}")
    if aside:
        print(f"the results that lay there are of another model or exam: moved to {aside}")
    return scores, write_samples(reader, tokenizer, chats) if typed.compare else {}


def main(argv=None):
    typed = parse(argv)
    prepare_out_dir(typed.results_dir, "results_dir")
    exam = read_exam(typed.data_dir, typed.split)
    if exam.problems:
        print("\n".join(["problems in the exam's files:", *exam.report()]))
    models = typed.compare or [typed.model]
    if not typed.compare:
        take(typed, exam, models[0], typed.results_dir)
        return
    stems = [Path(model).stem for model in models]
    alike = len(set(stems)) < len(stems)
    folders = [Path(typed.results_dir, f"{i}_{stem}" if alike else stem) for i, stem in enumerate(stems, 1)]
    taken = {model: take(typed, exam, model, folder) for model, folder in zip(models, folders)}
    scores, samples = ({model: own[i] for model, own in taken.items()} for i in (0, 1))
    compare(exam, scores, samples, typed.results_dir)


if __name__ == "__main__":
    args.run(main)
