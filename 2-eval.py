"""Stage 2: see what a model has learnt. A base model continues text: the standard prompts, or what you type.

reads    any checkpoint in out/ (its shape comes from the file; the newest one if none is named)
writes   nothing; with --out, one JSON line per prompt

    python 2-eval.py                                          on a terminal: asks what to do
    python 2-eval.py --model out/pretrain_512.pth --prompts prompts.txt --out answers.jsonl --temperature 0
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from inference.engine import Sampling, generate, stream_text
from trainer import args
from trainer.checkpoint import newest, open_checkpoint, prepare_out_dir, write_atomically
from trainer.runtime import choose_device

STANDARD_PROMPTS = [
    "中国的首都是",
    "地球绕着",
    "水的化学式是",
    "人工智能",
    "从前有一座山",
    "长江是",
    "The capital of France is",
    "1 + 1 =",
]


def parse(argv):
    """The command line → (namespace, Sampling)."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "model", help="checkpoint (default: the newest in --out_dir)")
    args.add_flag(parser, "out_dir", default="out", help="where to look for checkpoints (default: out)")
    args.add_flag(parser, "tokenizer", help="tokenizer folder (default: the one recorded in the checkpoint)")
    args.add_flag(parser, "prompts", help="text file, one prompt per line (default: the standard prompts)")
    args.add_flag(parser, "out", help="write the answers to this .jsonl file")
    args.add_flag(parser, "device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    args.add_fields(parser.add_argument_group("sampling"), Sampling)
    typed = parser.parse_args(argv)
    return typed, Sampling(**args.split(vars(typed), Sampling)[0])


def continue_text(model, tokenizer, sampling, prompt, show):
    """Continues one prompt and returns the new text; `show` gets each whole piece as it comes."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    pieces = []
    for piece in stream_text(tokenizer, generate(model, ids, sampling, stop_ids=(tokenizer.eos_id,))):
        show(piece)
        pieces.append(piece)
    return "".join(pieces)


def read_prompts(path):
    """The lines of a prompt file that hold anything."""
    try:
        prompts = [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one per line")
    return prompts


def typed_prompts():
    """What a person types, until an empty line or ctrl-D."""
    print("type the beginning of a text (an empty line ends)")
    while True:
        try:
            prompt = input("» ")
        except EOFError:
            return
        if not prompt.strip():
            return
        yield prompt


def choose_prompts(typed):
    """From the file, or asked for on a terminal, or the standard ones."""
    if typed.prompts:
        return read_prompts(typed.prompts)
    if sys.stdin.isatty() and not typed.out:
        try:
            if input("[0] standard prompts  [1] type your own: ").strip() == "1":
                return typed_prompts()
        except EOFError:  # ctrl-D
            print()
    return STANDARD_PROMPTS


def main(argv=None):
    typed, sampling = parse(argv)
    if typed.out:
        prepare_out_dir(Path(typed.out).parent)  # before minutes of writing
    prompts = choose_prompts(typed)
    path = Path(typed.model) if typed.model else newest(typed.out_dir)
    model, tokenizer, about = open_checkpoint(path, choose_device(typed.device), typed.tokenizer)
    print(f"{path}: {about.get('stage', 'no description beside it')}, {model.n_params():,} parameters")
    records = []
    for prompt in prompts:
        print(f"\n{prompt}", end="", flush=True)
        answer = continue_text(model, tokenizer, sampling, prompt, lambda piece: print(piece, end="", flush=True))
        print()
        records.append({"prompt": prompt, "answer": answer})
    if typed.out:
        lines = [json.dumps({**r, "sampling": asdict(sampling)}, ensure_ascii=False) + "\n" for r in records]
        write_atomically(typed.out, lambda f: f.write("".join(lines).encode("utf-8")))
        print(f"\nsaved {len(records)} answers in {typed.out}")


if __name__ == "__main__":
    args.run(main)
