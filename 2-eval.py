"""Stage 2: see what a model has learnt. A base model continues text, a chat model answers.

reads    any checkpoint in out/ (its shape and stage come from the file; the newest one if none is named), and with
         --lora NAME the adapter out/lora_NAME_<dim>/ on the base it was trained on
writes   nothing; with --out, one JSON line per prompt

    python 2-eval.py                                          on a terminal: chat, or the standard prompts
    python 2-eval.py --lora persona --history 3 --system 你是一个助手。
    python 2-eval.py --model out/full_sft_512.pth --prompts questions.txt --out answers.jsonl --temperature 0

--prompts takes lines of text, or .jsonl with a "prompt" each. In a chat, /help shows what else can be typed.
"""

import json
import sys
from dataclasses import asdict

from cleaning.files import prepare_file
from inference.chat import Conversation
from inference.engine import Sampling, continued
from inference.opening import add_int8_flag, add_model_flags, open_typed, told
from inference.terminal import BEGINNINGS, QUESTIONS, asked, converse, read_prompts, show, typed_lines
from model.int8 import to_int8
from trainer import args
from trainer.checkpoint import is_chat_stage, write_atomically


def parse(argv):
    """The command line → (namespace, Sampling)."""
    parser = args.make_parser(__doc__)
    add_model_flags(parser)
    add_int8_flag(parser)
    args.add_flag(parser, "prompts", help="a prompt per line, or .jsonl (default: the standard prompts)")
    args.add_flag(parser, "out", help="write the answers to this .jsonl file")
    args.add_flag(parser, "mode", choices=["auto", "chat", "complete"], default="auto", help="auto: by the stage")
    args.add_flag(parser, "system", default="", help="system prompt of the chat")
    args.add_flag(parser, "history", type=int, default=10, help="earlier exchanges the model is shown (default: 10)")
    args.add_fields(parser.add_argument_group("sampling"), Sampling)
    typed = parser.parse_args(argv)
    if typed.history < 0:
        raise ValueError(f"--history is {typed.history}; it must be 0 or more")
    return typed, Sampling(**args.split(vars(typed), Sampling)[0])


def opened(typed):
    """(model, tokenizer, its path as shown, whether it chats), with the adapter on if one was asked for."""
    model, tokenizer, about, path, adapter = open_typed(typed)
    chats = bool(adapter) or is_chat_stage(about.get("stage", path.stem))
    chats = typed.mode == "chat" or (typed.mode == "auto" and chats)
    print(told(model, about, path, adapter))
    return to_int8(model) if typed.int8 else model, tokenizer, path, chats


def main(argv=None):
    typed, sampling = parse(argv)
    if typed.out:  # before minutes of writing
        prepare_file(typed.out, ".jsonl", (b'{"prompt": ',), filter(None, [typed.prompts]), "out")
    prompts = read_prompts(typed.prompts) if typed.prompts else None
    model, tokenizer, path, chats = opened(typed)
    conversation = Conversation(model, tokenizer, sampling, typed.system, typed.history)
    if prompts is None and sys.stdin.isatty() and not typed.out:
        kind = "chat" if chats else "type the beginning of a text"
        if asked(f"[0] standard prompts  [1] {kind}: ") == "1":
            if chats:
                return converse(conversation, typed.out_dir)
            prompts = typed_lines("type the beginning of a text (ctrl-D ends)")
    records = []
    try:
        for prompt in prompts or (QUESTIONS if chats else BEGINNINGS):
            print(f"\n» {prompt}" if chats else f"\n{prompt}", end="\n" if chats else "", flush=True)
            conversation.turns.clear()  # each prompt stands alone
            record = {"prompt": prompt, "model": str(path), "sampling": asdict(sampling)}
            try:
                pieces = conversation.ask(prompt) if chats else continued(model, tokenizer, prompt, sampling)
                records.append({**record, "answer": show(pieces)})
            except ValueError as error:  # one prompt that is too long does not cost the others their answers
                print(f"error: {error}")
                records.append({**record, "answer": "", "error": str(error)})
    finally:  # ctrl-C keeps what has been answered
        if typed.out and records:
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            write_atomically(typed.out, lambda f: f.write("".join(lines).encode("utf-8")))
            print(f"\nsaved {len(records)} answers in {typed.out}")


if __name__ == "__main__":
    args.run(main)
