"""The demo's facts and the wordings they are told in, from the tables in dataset/demo/."""

import csv
import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "dataset" / "demo"
ANSWER_LINE = "\n答案："  # the exam prompt is a question and this; the option text follows
PLACEHOLDER = re.compile(r"\{[sxa]\}")
UNSEEN_SHARE = 0.15  # of the facts occur in pretraining text alone: chat answers about them show what carries over


@dataclass(frozen=True)
class Relation:
    """One kind of fact and its wordings; templates hold {s} subject, {a} answer and, for sums and units, {x}."""

    name: str
    exam_subject: str
    statements: tuple
    questions: tuple
    exam: tuple  # wordings that no training text may contain


@dataclass(frozen=True)
class Fact:
    """`also` holds answers that may be true as well, so they are never offered as wrong options."""

    relation: str
    subject: str
    answer: str
    x: str = ""
    also: tuple = ()

    def fill(self, template):
        return template.format(s=self.subject, a=self.answer, x=self.x)


def computed_rows(table):
    """Rows of a table that needs no file, or None."""
    if table == "square":
        return [{"base": str(n), "result": str(n * n)} for n in range(1, 21)]
    sums = {"addition": (2, 10, int.__add__), "multiplication": (2, 9, int.__mul__)}
    if table not in sums:
        return None
    low, high, operate = sums[table]
    pairs = [(m, n) for m in range(low, high + 1) for n in range(m, high + 1)]
    return [{"left": str(m), "right": str(n), "result": str(operate(m, n))} for m, n in pairs]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def load_relations(folder=DEMO_FOLDER):
    """The relations of relations.json, in file order."""
    return [
        Relation(r["name"], r["exam_subject"], tuple(r["statements"]), tuple(r["questions"]), tuple(r["exam"]))
        for r in read_json(Path(folder) / "relations.json")
    ]


def load_facts(folder=DEMO_FOLDER):
    """All facts in file order; an empty cell means "no such fact".

    Raises:
        ValueError: two rows of a relation share a subject, or a relation has fewer than 4 different answers.
    """
    folder, facts = Path(folder), []
    for entry in read_json(folder / "relations.json"):
        rows = computed_rows(entry["table"])
        if rows is None:
            with open(folder / f"{entry['table']}.csv", encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        columns = (entry["s"], entry["a"], entry.get("x"), entry.get("also"))
        cells = [[row[column] if column else "" for column in columns] for row in rows]
        name = entry["name"]
        found = [Fact(name, s, a, x, tuple(filter(None, also.split("|")))) for s, a, x, also in cells if s and a]
        check_relation(name, found)
        facts += found
    return facts


def check_relation(name, facts):
    """One answer per subject and at least 4 answers, or four options could not have exactly one right."""
    subject, count = Counter((f.subject, f.x) for f in facts).most_common(1)[0]
    if count > 1:
        raise ValueError(f"relation {name} answers {subject} {count} times; keep one row")
    if (answers := len({f.answer for f in facts})) < 4:
        raise ValueError(f"relation {name} has {answers} different answers; four options need at least 4")


def long_phrases(relations, facts):
    """What a tokenizer should not make tokens of: runs of four or more characters of the wordings.

    They repeat for every fact, so BPE joins "的首都是哪里" before it joins most names, and a wording that the model has
    not seen falls into pieces that it has not seen either.
    """
    names = "\n".join({name for f in facts for name in (f.subject, f.answer, f.x)})
    wordings = "\n".join(PLACEHOLDER.sub("\n", t) for r in relations for t in r.statements + r.questions)
    phrases = set()
    for run in set(re.findall(r"[\u4e00-\u9fff]{4,}", wordings)):
        phrases |= {run[i:j] for i in range(len(run)) for j in range(i + 4, len(run) + 1)}
    return sorted(phrase for phrase in phrases if phrase not in names)


def share(seed, *parts):
    """A number in [0, 1) that depends on nothing but its arguments (Python's hash() is salted)."""
    digest = hashlib.blake2b("\t".join([str(seed), *parts]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_unseen(fact, seed):
    """Whether the chat data leave this fact out; fixed by the seed and the fact alone."""
    return share(seed, "unseen", fact.relation, fact.subject, fact.x) < UNSEEN_SHARE


def wrong_answers(fact, pool, rng, count=3):
    """`count` other answers of the relation, those nearest in length first, so that length gives nothing away."""
    others = sorted(set(pool) - {fact.subject, fact.answer, *fact.also})
    rng.shuffle(others)
    return sorted(others, key=lambda other: abs(len(other) - len(fact.answer)))[:count]


def arrange(fact, pool, letter, rng):
    """Four options, the right one at `letter`."""
    options = wrong_answers(fact, pool, rng)
    options.insert("ABCD".index(letter), fact.answer)
    return options


def answer_pools(facts):
    """{relation name: its answers}"""
    pools = defaultdict(list)
    for fact in facts:
        pools[fact.relation].append(fact.answer)
    return pools
