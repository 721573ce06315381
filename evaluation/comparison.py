"""Two or more models of one exam: who answers what, whether the difference is luck, and what each of them writes."""

from itertools import combinations
from pathlib import Path

from evaluation.exams import LETTERS
from evaluation.intervals import mcnemar
from inference.chat import Conversation
from inference.engine import Sampling, continued
from inference.terminal import BEGINNINGS, QUESTIONS
from trainer.checkpoint import save_json, write_atomically

SAMPLE_TOKENS = 60  # longest text a model writes to a standard prompt


def pair(exam, scoring, first, second, choices):
    """One McNemar test: the record of comparison.json.

    Args:
        first, second: names of models; choices: {name: list of N options chosen under `scoring`}.
    """
    right = {name: [c == q.answer for q, c in zip(exam.questions, choices[name])] for name in (first, second)}
    known = [q.answer is not None for q in exam.questions]
    count = lambda a, b: sum(k and x == a and y == b for k, x, y in zip(known, right[first], right[second]))  # noqa: E731
    only_first, only_second = count(True, False), count(False, True)
    p = mcnemar(only_first, only_second)
    better, worse = (first, second) if only_first > only_second else (second, first)
    most, least = max(only_first, only_second), min(only_first, only_second)
    verdict = f"{better} answers {most} questions that {worse} does not, {least} the other way round: "
    verdict += f"{'better' if p < 0.05 else 'no more than luck'} (p = {p:.2g})"
    if most == least:
        verdict = f"no difference: each answers {most} questions that the other does not"
    return {"first": first, "second": second, "scoring": scoring, "only_first": only_first,
            "only_second": only_second, "both": count(True, True), "neither": count(False, False),
            "p_value": p, "verdict": verdict}  # fmt: skip


def flipped(exam, scoring, choices):
    """The questions that some models have right and others wrong, with what each chose."""
    for i, q in enumerate(exam.questions):
        chosen = {name: own[i] for name, own in choices.items()}
        if q.answer is not None and len({c == q.answer for c in chosen.values()}) == 2:
            yield {"scoring": scoring, "subject": q.subject, "id": q.id, "question": q.text, "options": q.options,
                   "answer": LETTERS[q.answer], "choices": {n: LETTERS[c] for n, c in chosen.items()}}  # fmt: skip


def write_samples(reader, tokenizer, chat):
    """{standard prompt: what the model writes}, greedily: a chat model answers, a base model continues the text."""
    prompts = QUESTIONS + BEGINNINGS
    if not reader.branching:
        return {prompt: reader.write(tokenizer, prompt, chat, SAMPLE_TOKENS) for prompt in prompts}
    sampling = Sampling(temperature=0, max_new_tokens=SAMPLE_TOKENS)
    conversation = Conversation(reader.model, tokenizer, sampling, history=0)
    write = conversation.ask if chat else lambda text: continued(reader.model, tokenizer, text, sampling)
    return {prompt: "".join(write(prompt)) for prompt in prompts}


def table_of_samples(samples):
    """{model: {prompt: text}} → a Markdown table with a column per model."""
    cell = lambda text: text.replace("|", "\\|").replace("\n", "<br>").strip() or "(nothing)"  # noqa: E731
    lines = ["| prompt | " + " | ".join(cell(str(name)) for name in samples) + " |", "|---" * (1 + len(samples)) + "|"]
    for prompt in next(iter(samples.values())):
        lines.append("| " + " | ".join(cell(t) for t in (prompt, *(own[prompt] for own in samples.values()))) + " |")
    return "\n".join(lines) + "\n"


def compare(exam, scores, samples, folder):
    """Shows and saves how models differ: comparison.json and samples.md.

    Args:
        scores: {model: {scoring: (N, 4)}}, at least two models.
        samples: {model: {prompt: text}}.
    """
    scorings = list(next(iter(scores.values())))
    choices = {s: {name: own[s].argmax(1).tolist() for name, own in scores.items()} for s in scorings}
    pairs = [pair(exam, s, *names, choices[s]) for s in scorings for names in combinations(scores, 2)]
    flips = [f for s in scorings for f in flipped(exam, s, choices[s])]
    record = {"models": list(scores), "pairs": pairs, "flipped": flips, "samples": samples}
    save_json(Path(folder, "comparison.json"), record)
    write_atomically(Path(folder, "samples.md"), lambda f: f.write(table_of_samples(samples).encode("utf-8")))
    print("\nthe same questions, paired (McNemar, exact):")
    for found in pairs:
        print(f"  {found['scoring']}: {found['verdict']}")
    for f in flips[:5]:
        chosen = ", ".join(f"{name} {letter}" for name, letter in f["choices"].items())
        print(f"  {f['scoring']} {f['subject']} {f['id']}: {f['question'][:40]!r} is {f['answer']}; {chosen}")
    print(f"{len(flips)} questions that models differ on: {folder}/comparison.json; what they write: samples.md")
