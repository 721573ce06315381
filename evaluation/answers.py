"""How often a chat model answers exactly right, by a file of questions that says what right is.

reads    a .jsonl file: {"prompt", "accept": [replies that are right]} or {"prompt", "contain": text a right one holds}
shows    the share that is right, with its 95 % interval, and the first wrong ones

    python -m evaluation.answers --questions dataset/demo/generated/questions_unseen.jsonl --model out/full_sft_512.pth
    python -m evaluation.answers --questions dataset/demo/generated/questions_persona.jsonl --model … --lora persona
"""

import json
from pathlib import Path

from evaluation.intervals import wilson
from inference.chat import Conversation
from inference.engine import Sampling
from inference.opening import add_model_flags, open_typed
from trainer import args


def is_right(question, reply):
    """Whether `reply` is one of question["accept"], or holds question["contain"]; no reply (None) is wrong."""
    if reply is None:
        return False
    if "accept" in question:
        return reply.strip() in question["accept"]
    return question["contain"] in reply


def replies(conversation, questions):
    """The model's reply to each question, each in a conversation of its own; None to one that is too long."""
    for question in questions:
        conversation.turns.clear()
        try:
            yield "".join(conversation.ask(question["prompt"]))
        except ValueError as error:
            print(f"  no reply: {question['prompt'][:40]} … {error}")
            yield None


def is_question(record):
    """Whether a record of a question file says what is asked and what is right."""
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        return False
    if "accept" in record:
        accept = record["accept"]
        return isinstance(accept, list) and bool(accept) and all(isinstance(a, str) for a in accept)
    return isinstance(record.get("contain"), str) and bool(record["contain"])


def read_questions(path):
    """The records of a question file; ValueError names a line that is none."""
    questions = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)
        except ValueError:
            question = None
        if not is_question(question):
            raise ValueError(f'{path}:{number} is not {{"prompt": …, "accept": […]}} or {{"prompt": …, "contain": …}}')
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def main(argv=None):
    """Asks every question greedily and prints the score."""
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "questions", required=True, metavar="FILE.jsonl", help="questions and what is right")
    add_model_flags(parser)
    args.add_flag(parser, "max_new_tokens", type=int, default=60, help="longest reply (default: 60)")
    cfg = parser.parse_args(argv)
    questions = read_questions(cfg.questions)
    model, tokenizer, _, path, _ = open_typed(cfg)
    conversation = Conversation(model, tokenizer, Sampling(temperature=0, max_new_tokens=cfg.max_new_tokens), history=0)
    answered = list(zip(questions, replies(conversation, questions)))
    wrong = [(q, reply) for q, reply in answered if not is_right(q, reply)]
    for question, reply in [(q, reply) for q, reply in wrong if reply is not None][:5]:
        print(f"  wrong: {question['prompt']} → {reply.strip()!r}")
    right, n = len(answered) - len(wrong), len(answered)
    low, high = wilson(right, n)
    name = f"{path} with {cfg.lora}" if cfg.lora else path
    print(f"{name}: {right}/{n} right, {right / n:.1%} [{low:.1%}, {high:.1%}] ({Path(cfg.questions).name})")


if __name__ == "__main__":
    args.run(main)
