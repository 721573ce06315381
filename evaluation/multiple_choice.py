"""Exams with four options: how likely a model finds each option's text, or its letter.

C-Eval's CSV layout: <data_dir>/<split>/<subject>_<split>.csv with columns id, question, A, B, C, D, answer (missing in
a test split), and subject_mapping.json: {subject: [English name, Chinese name, category]}.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch

LETTERS = "ABCD"
ANSWER = "\n答案："
BATCH_TOKENS = 8192  # positions scored at once


@dataclass
class Question:
    """One question; `options` in the order A-D, `answer` 0-3 or None where the exam keeps it secret."""

    subject: str
    id: str
    text: str
    options: list
    answer: int | None


def read_exam(data_dir, split):
    """All questions of a split, by subject; FileNotFoundError or ValueError names what is missing."""
    files = sorted(Path(data_dir, split).glob(f"*_{split}.csv"))
    if not files:
        raise FileNotFoundError(f"no {split}/<subject>_{split}.csv in {data_dir}; it should look like C-Eval's folder")
    return [q for file in files for q in read_subject(file, file.stem.removesuffix(f"_{split}"))]


def read_subject(file, subject):
    """The questions of one CSV file; a row without a question or with an empty option is an error naming the line."""
    with open(file, encoding="utf-8-sig", newline="") as f:
        reader = csv.DictReader(f)
        missing = {"question", *LETTERS} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{file} has no column {', '.join(sorted(missing))}; C-Eval's are id, question, A, B, C, D, answer"
            )
        questions = []
        for row in reader:
            if not row["question"] or not all(row[letter] for letter in LETTERS):
                raise ValueError(f"{file} line {reader.line_num}: the question or an option is empty")
            answer = LETTERS.find((row.get("answer") or "").strip() or "?")
            options = [row[letter] for letter in LETTERS]
            questions.append(
                Question(
                    subject,
                    row.get("id") or str(len(questions)),
                    row["question"],
                    options,
                    answer if answer >= 0 else None,
                )
            )
    return questions


def cloze_prompt(question):
    """The question as plain text; the option's text follows."""
    return question.text + ANSWER


def letter_prompt(question):
    """The question with its options; a letter follows."""
    return question.text + "".join(f"\n{letter}. {o}" for letter, o in zip(LETTERS, question.options)) + ANSWER


def few_shot_prefix(examples, prompt, answer_of):
    """Solved examples that stand before a question."""
    return "".join(prompt(e) + answer_of(e) + "\n\n" for e in examples)


@torch.inference_mode()
def continuation_log_probs(model, tokenizer, pairs, progress=lambda n: None):
    """log p(continuation | context) for many pairs, longest first so that batches hold rows of one length.

    Args:
        model: a Transformer in eval mode.
        pairs: (context, continuation) strings; scored are the joined string's tokens behind the context's (as lm-eval).
        progress: called with the number of pairs done.
    Returns:
        nats: (N,) float64 summed log-probabilities; tokens: (N,) their number.
    """
    rows = []
    for number, (context, continuation) in enumerate(pairs):
        before, ids = ([tokenizer.bos_id, *tokenizer.encode(t)] for t in (context, context + continuation))
        # usually len(before); less where the continuation's first character merged with the context's last
        start = next((i for i, (a, b) in enumerate(zip(before, ids)) if a != b), len(before))
        limit = model.cfg.max_seq_len + 1
        if len(ids) > limit:  # keep the end: the question is nearer to the answer than the examples are
            start, ids = max(start - (len(ids) - limit), 1), ids[-limit:]
        rows.append((len(ids), number, start, ids))
    rows.sort(key=lambda r: (-r[0], r[1]))
    nats = torch.zeros(len(rows), dtype=torch.float64)
    tokens = torch.zeros(len(rows), dtype=torch.int64)
    at = 0
    while at < len(rows):
        batch = rows[at : at + max(1, BATCH_TOKENS // rows[at][0])]
        at += len(batch)
        ids = torch.full((len(batch), batch[0][0]), tokenizer.eos_id)
        scored = torch.zeros(ids.shape, dtype=torch.bool)
        for i, (length, _, start, row) in enumerate(batch):
            ids[i, :length] = torch.tensor(row)
            scored[i, start:length] = True
        ids, scored = ids.to(model.rope_cos.device), scored[:, 1:].to(model.rope_cos.device)
        logits = model(ids[:, :-1]).logits
        picked = logits[scored].float().log_softmax(-1).gather(1, ids[:, 1:][scored][:, None]).squeeze(1)
        sums = (
            torch.zeros(scored.shape, dtype=torch.float64, device=ids.device)
            .masked_scatter(scored, picked.double())
            .sum(1)
        )
        where = torch.tensor([r[1] for r in batch])
        nats[where], tokens[where] = sums.cpu(), scored.sum(1).cpu()
        progress(len(batch))
    return nats, tokens


def score_cloze(model, tokenizer, questions, prefixes, progress=lambda n: None):
    """Likelihood of each option's text.

    Returns:
        {'sum', 'per_token', 'per_byte'}: (N, 4) scores; the highest is the choice.
    """
    pairs = [(prefixes[q.subject] + cloze_prompt(q), o) for q in questions for o in q.options]
    nats, tokens = continuation_log_probs(model, tokenizer, pairs, progress)
    size = torch.tensor([len(o.encode("utf-8")) for q in questions for o in q.options])
    return {
        "sum": nats.view(-1, 4),
        "per_token": (nats / tokens).view(-1, 4),
        "per_byte": (nats / size).view(-1, 4),
    }


def score_letter(model, tokenizer, questions, prefixes, progress=lambda n: None):
    """log p of each option's letter: (N, 4)."""
    pairs = [(prefixes[q.subject] + letter_prompt(q), letter) for q in questions for letter in LETTERS]
    nats, _ = continuation_log_probs(model, tokenizer, pairs, progress)
    return {"letter": nats.view(-1, 4)}


def wilson(right, n, z=1.959963984540054):
    """95 % interval of a share (Wilson 1927): (low, high)."""
    if n == 0:
        return 0.0, 1.0
    p, extra = right / n, z * z / n
    middle = (p + extra / 2) / (1 + extra)
    half = z * math.sqrt(p * (1 - p) / n + extra / (4 * n)) / (1 + extra)
    return middle - half, middle + half
