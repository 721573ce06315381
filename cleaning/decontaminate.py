"""Documents that contain a question of an exam are left out, so that the exam measures something.

What counts as containing is the same as in evaluation/contamination.py, which measures it: n characters in a row, with
width, case, spaces and punctuation disregarded. A question of fewer than n characters is not looked for: it would be
found everywhere.
"""

import functools
from pathlib import Path

import numpy as np

from cleaning.exam_files import columns_of, read_cells
from cleaning.grams import finders, normalised, runs_of


def questions_of(folder):
    """The questions of all parts of an exam (dev, val, test) in the layout of C-Eval, CMMLU or MMLU: list of str.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that is no exam.
    """
    files = sorted(Path(folder).glob("*/*.csv"))
    if not files:
        raise FileNotFoundError(f"no exam in {folder}: it should hold <split>/<subject>_<split>.csv")
    questions = []
    for file in files:
        lines = read_cells(file)
        if lines:
            _, columns, has_header = columns_of(lines[0][1], file)
            at = columns["question"]
            questions += [cells[at] for _, cells in lines[has_header:] if len(cells) > at]
    return questions


def asked_in(questions, n):
    """Questions → list of Grams that find any n characters in a row of them."""
    texts = map(normalised, questions)
    return finders({run for text in texts if len(text) >= n for run in runs_of(text, n)})


@functools.cache  # once in a process: 1,606 questions of C-Eval take about half a second
def grams_of_exams(folders, n):
    """Tuple of exam folders → Grams; ValueError if no question is long enough."""
    grams = asked_in([question for folder in folders for question in questions_of(folder)], n)
    if not grams:
        raise ValueError(f"no question in {', '.join(folders)} has {n} characters; lower exam_run")
    return grams


def shared_with_questions(text, grams):
    """The passages that a text shares with questions, without what is not compared: list of str."""
    plain = normalised(text)
    shared = np.zeros(len(plain) + 2, bool)  # False before the first character and behind the last
    for each in grams:
        for at, _ in each.find(plain):
            shared[at + 1 : at + 1 + each.n] = True
    starts, ends = np.flatnonzero(shared[1:] != shared[:-1]).reshape(-1, 2).T
    return [plain[start:end] for start, end in zip(starts, ends)]


def without_questions(text, grams):
    """str → (str, None) or (None, reason), a rule."""
    plain = normalised(text)
    if any(True for each in grams for _ in each.find(plain)):
        return None, "contains an exam question"
    return text, None
