"""Exams with four options, as C-Eval, CMMLU and MMLU publish them: CSV files → questions, and what was wrong in them.

C-Eval  <split>/<subject>_<split>.csv   header id,question,A,B,C,D,answer (none in test; dev adds explanation)
CMMLU   <split>/<subject>.csv           header ,Question,A,B,C,D,Answer (an index column first)
MMLU    <split>/<subject>_<split>.csv   no header: question, four options, answer

subject_mapping.json beside the splits, {subject: [English name, Chinese name, category]}, names the categories; for
CMMLU's and MMLU's subjects they are known (evaluation/subjects.json).
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from cleaning.exam_files import LETTERS, columns_of, read_cells, to_answer

KNOWN_SUBJECTS = Path(__file__).parent / "subjects.json"


@dataclass
class Question:
    """One question; `options` in the order A-D, `answer` 0-3 or None where the exam keeps it secret."""

    subject: str
    id: str
    text: str
    options: list
    answer: int | None


@dataclass
class Exam:
    """What was read.

    Attributes:
        questions: list of Question, by subject.
        english: whether prompts are English (MMLU), else Chinese.
        categories: {subject: its categories}, a subject may count in several; names: {subject: name for people}.
        problems: {what: how often}; where: {what: the first place}.
    """

    questions: list = field(default_factory=list)
    english: bool = False
    categories: dict = field(default_factory=dict)
    names: dict = field(default_factory=dict)
    problems: Counter = field(default_factory=Counter)
    where: dict = field(default_factory=dict)

    def note(self, what, place):
        """Counts a problem and keeps its first place."""
        self.problems[what] += 1
        self.where.setdefault(what, place)

    def report(self):
        """The problems as lines for a person, the most frequent first."""
        return [f"  {n:>5}  {what}; first in {self.where[what]}" for what, n in self.problems.most_common()]


def read_exam(data_dir, split):
    """All questions of a split, by subject.

    Raises:
        FileNotFoundError, ValueError: no such split, no question that could be asked, or a file that is no exam.
    """
    folder = Path(data_dir, split)
    files = sorted(folder.glob("*.csv"))
    if not files:
        there = sorted(p.name for p in Path(data_dir).glob("*") if any(p.glob("*.csv")))
        found = f"it has {', '.join(there)}" if there else "it should hold <split>/<subject>_<split>.csv"
        raise FileNotFoundError(f"no {split}/*.csv in {data_dir}; {found}")
    exam = Exam()
    layouts = {read_subject(file, file.stem.removesuffix(f"_{split}"), exam) for file in files}
    exam.english = layouts == {"mmlu"}
    if not exam.questions:
        raise ValueError("\n".join([f"no question in {folder} can be asked:", *exam.report()]))
    name_subjects(exam, Path(data_dir, "subject_mapping.json"))
    return exam


def solved_examples(data_dir):
    """{subject: the Questions of dev whose answers are known}, for few-shot prompts."""
    examples = defaultdict(list)
    for question in read_exam(data_dir, "dev").questions:
        if question.answer is not None:
            examples[question.subject].append(question)
    return dict(examples)


def read_subject(file, subject, exam):
    """Adds the questions of one file to `exam`, counts what is wrong, and returns the file's layout."""
    rows = read_cells(file)
    if not rows:
        exam.note("file without a line: left out", file.name)
        return None
    layout, columns, has_header = columns_of(rows[0][1], file)
    width = len(rows[0][1])
    seen = set()
    for line, cells in rows[has_header:]:
        place = f"{file.name} line {line}"
        if len(cells) < width:
            exam.note("question with a column missing: left out", place)
            continue
        if len(cells) > width:
            exam.note("question with a column too many: the rest is ignored", place)
        options = [cells[columns[letter]].strip() for letter in LETTERS]
        text = cells[columns["question"]].strip()
        if not text or not all(options):
            exam.note("empty question or option: left out", place)
            continue
        answer = None
        if columns["answer"] is not None:
            given = cells[columns["answer"]]
            answer = to_answer(given)
            if not given.strip():
                exam.note("no answer: asked, but not scored", place)
            elif answer is None:
                exam.note("answer that is not one of A-D: left out", place)
                continue
            elif given != LETTERS[answer]:
                exam.note("answer written in another way: read as its letter", place)
        number = cells[columns["id"]].strip() if columns["id"] is not None else str(len(seen))
        if number in seen:
            exam.note("id that occurs twice: both are asked", place)
        seen.add(number)
        exam.questions.append(Question(subject, number, text, options, answer))
    return layout


def name_subjects(exam, mapping_file):
    """Fills in names and categories, from the exam's own mapping or the known ones."""
    subjects = list(dict.fromkeys(q.subject for q in exam.questions))
    if mapping_file.is_file():
        try:
            mapping = json.loads(mapping_file.read_text(encoding="utf-8"))
            known = {s: (names[1], [names[2]]) for s, names in mapping.items()}
        except (ValueError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{mapping_file} is not {{subject: [English name, Chinese name, category]}}: {error}"
            ) from error
    else:
        known = known_subjects("mmlu" if exam.english else "cmmlu")
    for subject in subjects:
        name, categories = known.get(subject, (subject, ["no category"]))
        exam.names[subject], exam.categories[subject] = name, categories


def known_subjects(benchmark):
    """{subject: (name, categories)} of CMMLU (Li et al. 2023) or MMLU (Hendrycks et al. 2021), from their own lists."""
    categories = defaultdict(list)
    for category, subjects in json.loads(KNOWN_SUBJECTS.read_text(encoding="utf-8"))[benchmark].items():
        for subject in subjects.split():
            categories[subject].append(category)
    return {subject: (subject.replace("_", " "), found) for subject, found in categories.items()}
