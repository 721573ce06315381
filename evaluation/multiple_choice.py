"""Questions with four options → prompts → scores: how likely a model finds each option's text, or its letter.

Plain prompts are those of C-Eval's and MMLU's authors, the text and its continuation encoded together, as lm-eval does;
chat prompts are the user's turn, the option the assistant's. The highest score is the choice.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from tqdm import tqdm

from evaluation.exams import LETTERS
from evaluation.likelihood import Request, log_probs

SCORINGS = {
    "cloze_sum": "log-probability of the option's text",
    "cloze_per_token": "the same, per token",
    "cloze_per_byte": "the same, per UTF-8 byte",
    "cloze_prior": "the same, less its log-probability without a question (Brown et al. 2020, arXiv:2005.14165)",
    "letter": "log-probability of the option's letter",
    "letter_space": "the same with a space before the letter",
}
OPTIONS_PER_ROW = 8  # that share the few ids of a prompt without a question
STANDARD_INSTRUCTIONS = {
    False: "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n",
    True: "The following are multiple choice questions (with answers) about {subject}.\n\n",
}


@dataclass
class Prompts:
    """How questions are put.

    Attributes:
        english: English or Chinese words around the question.
        chat: as turns of a conversation; needs a model that was trained on them.
        instruction: what stands before the examples; {subject} is replaced.
        examples: {subject: solved Questions}, the first of which are shown before each question.
    """

    english: bool = False
    chat: bool = False
    instruction: str = ""
    examples: dict = None

    @property
    def answer_line(self):
        """What stands between a question and its answer."""
        return "\nAnswer:" if self.english else "\n答案："

    @property
    def gap(self):
        """What stands between the answer line and an option's text."""
        return " " if self.english else ""

    def ask(self, kind, question, options=None):
        """The text of one question for scoring `kind`; options in another order than the question's if given."""
        lines = "".join(f"\n{a}. {o}" for a, o in zip(LETTERS, options or question.options)) if kind == "letter" else ""
        if self.chat and kind == "cloze":
            return question.text
        return question.text + lines + self.answer_line

    def reply(self, kind, question):
        """The right answer to an example."""
        return LETTERS[question.answer] if kind == "letter" else question.options[question.answer]

    def write(self, kind, question, name, shots, options=None):
        """A question behind `shots` examples: a str, or a list of turns in a chat."""
        examples = (self.examples or {}).get(question.subject, [])[:shots]
        instruction = self.instruction.replace("{subject}", name)
        if self.chat:
            turns = [{"role": "system", "content": instruction.strip()}] if instruction else []
            for e in examples:
                turns.append({"role": "user", "content": self.ask(kind, e)})
                turns.append({"role": "assistant", "content": self.reply(kind, e)})
            return [*turns, {"role": "user", "content": self.ask(kind, question, options)}]
        solved = "".join(f"{self.ask(kind, e)}{self.gap}{self.reply(kind, e)}\n\n" for e in examples)
        return instruction + solved + self.ask(kind, question, options)


def encode(tokenizer, prompts, continuations):
    """Prompts (str, or turns of a chat) and what may follow each → [(context ids, [continuation ids])].

    A plain text is encoded alone and together with each continuation, of which the ids behind the text's length are
    scored, behind the text's own ids: lm-eval's rule, so that scores are its scores. Where the two grow together at the
    seam (as "：" and "“" may) the rule loses a character; where nothing would be left, the last id is scored.
    """
    if prompts and not isinstance(prompts[0], str):
        answers = iter(tokenizer.encode_batch([c for own in continuations for c in own]))
        return [
            [(tokenizer.encode_prompt(turns), next(answers)) for _ in own] for turns, own in zip(prompts, continuations)
        ]
    alone = tokenizer.encode_batch(prompts)
    together = iter(tokenizer.encode_batch([p + c for p, own in zip(prompts, continuations) for c in own]))
    encoded = []
    for text, own in zip(alone, continuations):
        pairs = []
        for _ in own:
            ids = [tokenizer.bos_id, *next(together)]
            before, after = [tokenizer.bos_id, *text], ids[1 + len(text) :]
            pairs.append((before, after) if after else (ids[:-1], ids[-1:]))
        encoded.append(pairs)
    return encoded


def fit_examples(tokenizer, limit, questions, shots, write, continuations):
    """Encodes every question behind as many of its examples as the context holds, at most `shots`.

    Args:
        write: (question, shots) → prompt.
        continuations: per question, what may follow.
    Returns:
        encoded: as `encode` returns; used: (N,) list, the number of examples of each question.
    """
    encoded, used = [None] * len(questions), [shots] * len(questions)
    waiting = list(range(len(questions)))
    while waiting:
        found = encode(tokenizer, [write(questions[i], used[i]) for i in waiting], [continuations[i] for i in waiting])
        for i, pairs in zip(waiting, found):
            encoded[i] = pairs
        too_long = lambda i: max(len(c) + len(o) for c, o in encoded[i]) > limit + 1  # noqa: E731
        waiting = [i for i in waiting if used[i] and too_long(i)]
        for i in waiting:
            used[i] -= 1
    return encoded, used


def score(reader, encoded, groups, progress=lambda n: None):
    """Encoded questions → (nats, tokens), each (N, options) float64; questions of one group may begin alike."""
    requests, sizes, places = [], [], []  # places: of each result among the options of all questions
    for pairs, group in zip(encoded, groups):
        by_context = defaultdict(list)
        for context, continuation in pairs:
            by_context[tuple(context)].append((len(sizes), continuation))
            sizes.append(len(continuation))
        for context, own in by_context.items():
            requests.append(Request(list(context), [continuation for _, continuation in own], group))
            places += [place for place, _ in own]
    nats = torch.zeros(len(sizes), dtype=torch.float64)
    nats[places] = log_probs(reader, requests, progress)
    return nats.view(len(encoded), -1), torch.tensor(sizes, dtype=torch.float64).view(len(encoded), -1)


def option_texts(exam, prompts):
    """What a model may say: every option, with the space before it that its prompt leaves out."""
    return [[prompts.gap * (not prompts.chat) + o for o in q.options] for q in exam.questions]


def score_cloze(reader, tokenizer, exam, prompts, shots, progress=lambda n: None):
    """Likelihood of each option's text: ({"cloze_sum", "cloze_per_token", "cloze_per_byte": (N, 4)}, examples used)."""
    questions, texts = exam.questions, option_texts(exam, prompts)
    write = lambda q, k: prompts.write("cloze", q, exam.names[q.subject], k)  # noqa: E731
    encoded, used = fit_examples(tokenizer, reader.limit, questions, shots, write, texts)
    nats, tokens = score(reader, encoded, [f"{q.subject} {k}" for q, k in zip(questions, used)], progress)
    size = torch.tensor([[len(o.encode("utf-8")) for o in q.options] for q in questions])
    return {"cloze_sum": nats, "cloze_per_token": nats / tokens, "cloze_per_byte": nats / size}, used


def score_prior(reader, tokenizer, exam, prompts):
    """(N, 4): what the options' words are worth without a question; equal options are asked once."""
    texts = option_texts(exam, prompts)
    nothing = [{"role": "user", "content": ""}] if prompts.chat else prompts.answer_line.strip()
    different = list(dict.fromkeys(o for own in texts for o in own))
    [pairs] = encode(tokenizer, [nothing], [different])
    by_context = defaultdict(list)
    for option, (context, continuation) in zip(different, pairs):
        by_context[tuple(context)].append((continuation, option))
    requests, order = [], []
    for context, own in by_context.items():
        own.sort(key=lambda pair: len(pair[0]))  # rows of several options, alike in length
        order += [option for _, option in own]
        parts = [own[at : at + OPTIONS_PER_ROW] for at in range(0, len(own), OPTIONS_PER_ROW)]
        requests += [Request(list(context), [continuation for continuation, _ in part]) for part in parts]
    known = dict(zip(order, log_probs(reader, requests).tolist()))
    return torch.tensor([[known[o] for o in own] for own in texts], dtype=torch.float64)


def score_letter(reader, tokenizer, exam, prompts, shots, rotation=0, progress=lambda n: None):
    """log p of each option's letter: ({"letter", "letter_space": (N, 4)}, examples used).

    Args:
        rotation: places that the options move down, the last becoming the first; scores stay in the exam's order.
    """
    questions, order = exam.questions, [(i - rotation) % 4 for i in range(4)]

    def write(q, k):
        return prompts.write("letter", q, exam.names[q.subject], k, [q.options[i] for i in order])

    letters = [[space + letter for space in ("", " ") for letter in LETTERS]] * len(questions)
    encoded, used = fit_examples(tokenizer, reader.limit, questions, shots, write, letters)
    nats, _ = score(reader, encoded, [f"{q.subject} {k}" for q, k in zip(questions, used)], progress)
    at = [(i + rotation) % 4 for i in range(4)]  # where each of the exam's options stands now
    return {"letter": nats[:, :4][:, at], "letter_space": nats[:, 4:][:, at]}, used


def score_exam(reader, tokenizer, exam, prompts, shots, rotations=1):
    """A model takes an exam, with a progress bar.

    Args:
        prompts: {"cloze": Prompts, "letter": Prompts}, or one of them.
        rotations: in how many orders of the options letters are asked, 1 to 4; the first is the exam's.
    Returns:
        {scoring: (N, 4) scores}, {letter scoring: [(N, 4) per further order]}, [examples shown per question].
    """
    n, scores, turned, used = len(exam.questions), {}, {}, []
    if "cloze" in prompts:
        with tqdm(total=4 * n, desc="cloze", unit="options", disable=None) as bar:
            scores, used = score_cloze(reader, tokenizer, exam, prompts["cloze"], shots, bar.update)
            prior = score_prior(reader, tokenizer, exam, prompts["cloze"])
            scores["cloze_prior"] = scores["cloze_sum"] - prior
    if "letter" in prompts:
        with tqdm(total=8 * n * rotations, desc="letter", unit="letters", disable=None) as bar:
            rounds = [
                score_letter(reader, tokenizer, exam, prompts["letter"], shots, turn, bar.update)
                for turn in range(rotations)
            ]
        found, used = rounds[0]
        turned = {name: [other[name] for other, _ in rounds[1:]] for name in found}
        scores |= found
    return scores, turned, used
