"""The demo corpus: facts of our own, said in many ways, and an exam that asks for them in words never trained on.

Reads dataset/demo/ (a CSV per table, relations.json with the wordings, talk.json, subjects.json) and writes
pretrain.jsonl, sft.jsonl, dpo.jsonl, ceval-exam/ and counts.json. The same seed gives the same bytes.
"""

import csv
import hashlib
import io
import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from cleaning.files import write_files

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "dataset" / "demo"
ANSWER_LINE = "\n答案："  # the exam prompt is a question and this; the option text follows
CHOICE_SHARE = 0.7  # of the facts are practised as A-D questions; the exam shows what carries over to the others
VAL_SHARE = 0.4  # of each relation's facts, and at least 4
DEV_ROWS = 5  # per subject, as in C-Eval
RIGHT_PAIRS, CURT_PAIRS, TWO_TURN_CHATS = 320, 80, 300
# How many sentences share a document; several, so that BOS and EOS are a small part of what is trained on.
SENTENCES_PER_DOC, QUESTIONS_PER_DOC = (2, 3, 4, 5), (1, 2, 3, 4)


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


def share(seed, *parts):
    """A number in [0, 1) that depends on nothing but its arguments (Python's hash() is salted)."""
    digest = hashlib.blake2b("\t".join([str(seed), *parts]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def has_choice_practice(fact, seed):
    """Whether sft.jsonl asks for this fact with options A to D; fixed by the seed and the fact alone."""
    return share(seed, "choice", fact.relation, fact.subject, fact.x) < CHOICE_SHARE


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


def group(items, sizes, rng):
    """Cuts a list into runs whose lengths are drawn from `sizes`."""
    start = 0
    while start < len(items):
        end = start + rng.choice(sizes)
        yield items[start:end]
        start = end


def pretrain_documents(relations, facts, rng):
    """Every (fact, training wording) once; a document holds one sentence or a few of the same relation."""
    documents = []
    for relation in relations:
        own = [f for f in facts if f.relation == relation.name]
        said = [f.fill(template) for template in relation.statements for f in own]
        asked = [f.fill(question + ANSWER_LINE + "{a}") for question in relation.questions for f in own]
        rng.shuffle(said)
        rng.shuffle(asked)
        gap = " " if relation.statements[0].isascii() else ""
        documents += [{"text": gap.join(part)} for part in group(said, SENTENCES_PER_DOC, rng)]
        documents += [{"text": "\n".join(part)} for part in group(asked, QUESTIONS_PER_DOC, rng)]
    return rng.sample(documents, len(documents))


def chat(*turns):
    """A conversation from alternating user and assistant texts."""
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def ask(fact, relation, rng):
    """(question, full-sentence answer) in training wordings."""
    return fact.fill(rng.choice(relation.questions)), fact.fill(rng.choice(relation.statements))


def choice_chat(fact, relation, pool, rng):
    """The question with options A to D in C-Eval's layout; the answer is the letter."""
    letter = rng.choice("ABCD")
    options = arrange(fact, pool, letter, rng)
    lines = [f"{name}. {option}" for name, option in zip("ABCD", options)]
    return chat("\n".join([fact.fill(rng.choice(relation.questions)), *lines]) + ANSWER_LINE, letter)


def sft_conversations(relations, facts, talk, seed, rng):
    """One question per fact, options for the practised ones, two-turn chats and small talk."""
    by_name, pools = {r.name: r for r in relations}, answer_pools(facts)
    plain = [chat(*ask(f, by_name[f.relation], rng)) for f in facts]
    double = [
        chat(*(text for f in rng.sample(facts, 2) for text in ask(f, by_name[f.relation], rng)))
        for _ in range(TWO_TURN_CHATS)
    ]
    practised = [f for f in facts if has_choice_practice(f, seed)]
    choices = [choice_chat(f, by_name[f.relation], pools[f.relation], rng) for f in practised]
    small_talk = [chat(user, entry["reply"]) for entry in talk["chat"] for user in entry["users"]]
    conversations = plain + double + choices + small_talk
    return rng.sample(conversations, len(conversations))


def dpo_pairs(relations, facts, talk, rng):
    """Right over wrong, complete over curt, polite over rude."""
    by_name, pools, pairs = {r.name: r for r in relations}, answer_pools(facts), []
    for i, fact in enumerate(rng.sample(facts, RIGHT_PAIRS + CURT_PAIRS)):
        relation = by_name[fact.relation]
        question, template = fact.fill(rng.choice(relation.questions)), rng.choice(relation.statements)
        if i < RIGHT_PAIRS:
            [wrong] = wrong_answers(fact, pools[fact.relation], rng, count=1)
            rejected = template.format(s=fact.subject, a=wrong, x=fact.x)
        else:
            rejected = rng.choice(talk["curt_english" if template.isascii() else "curt_chinese"])
        pairs.append({"prompt": question, "chosen": fact.fill(template), "rejected": rejected})
    pairs += [{"prompt": m["prompt"], "chosen": m["polite"], "rejected": m["rude"]} for m in talk["manners"]]
    return rng.sample(pairs, len(pairs))


def exam_facts(relations, facts, rng):
    """{exam subject: (dev facts, val facts)}; val holds some of every relation, dev none of val's."""
    val, rest = defaultdict(list), defaultdict(list)
    for relation in relations:
        own = [f for f in facts if f.relation == relation.name]
        rng.shuffle(own)
        cut = max(4, round(VAL_SHARE * len(own)))
        val[relation.exam_subject] += own[:cut]
        rest[relation.exam_subject] += own[cut:]
    return {name: (rng.sample(rest[name], DEV_ROWS), rng.sample(val[name], len(val[name]))) for name in val}


def exam_rows(facts, relations, pools, rng, explain):
    """C-Eval rows: id, question, A, B, C, D, answer and, for dev, explanation; letters are used evenly."""
    by_name = {r.name: r for r in relations}
    start = rng.randrange(4)  # or A would be the commonest letter wherever a size is no multiple of 4
    letters = rng.sample(["ABCD"[(start + i) % 4] for i in range(len(facts))], len(facts))
    rows = []
    for i, (fact, letter) in enumerate(zip(facts, letters)):
        relation = by_name[fact.relation]
        row = [i, fact.fill(rng.choice(relation.exam)), *arrange(fact, pools[fact.relation], letter, rng), letter]
        rows.append([*row, fact.fill(relation.statements[0])] if explain else row)
    return rows


def to_jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def exam_files(relations, facts, subjects, rng):
    """{relative path: text} of the exam folder, and the number of questions per split."""
    texts, asked, pools = {}, Counter(), answer_pools(facts)
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    for subject, splits in exam_facts(relations, facts, rng).items():
        for split, chosen in zip(("dev", "val"), splits):
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow([*header, "explanation"] if split == "dev" else header)
            writer.writerows(exam_rows(chosen, relations, pools, rng, explain=split == "dev"))
            texts[f"ceval-exam/{split}/{subject}_{split}.csv"] = buffer.getvalue()
            asked[split] += len(chosen)
    mapping = {subject: subjects[subject] for subject in sorted({r.exam_subject for r in relations})}
    texts["ceval-exam/subject_mapping.json"] = json.dumps(mapping, ensure_ascii=False, indent=1) + "\n"
    return texts, asked


def generate(output_dir, seed=0):
    """Writes the whole corpus into `output_dir` and returns the counts that it also writes to counts.json."""
    relations, facts = load_relations(), load_facts()
    talk, subjects = read_json(DEMO_FOLDER / "talk.json"), read_json(DEMO_FOLDER / "subjects.json")
    # One generator per file, seeded by text, so that changing one file leaves the others as they were.
    documents = pretrain_documents(relations, facts, random.Random(f"pretrain {seed}"))
    conversations = sft_conversations(relations, facts, talk, seed, random.Random(f"sft {seed}"))
    pairs = dpo_pairs(relations, facts, talk, random.Random(f"dpo {seed}"))
    texts, asked = exam_files(relations, facts, subjects, random.Random(f"exam {seed}"))
    texts |= {"pretrain.jsonl": to_jsonl(documents), "sft.jsonl": to_jsonl(conversations), "dpo.jsonl": to_jsonl(pairs)}
    counts = {
        "seed": seed,
        "facts": len(facts),
        "relations": len(relations),
        "training_phrasings": sum(len(r.statements) + len(r.questions) for r in relations),
        "exam_phrasings": sum(len(r.exam) for r in relations),
        "pretrain_documents": len(documents),
        "pretrain_characters": sum(len(d["text"]) for d in documents),
        "pretrain_bytes": len(texts["pretrain.jsonl"].encode()),
        "sft_conversations": len(conversations),
        "sft_choice_questions": sum(has_choice_practice(f, seed) for f in facts),
        "dpo_pairs": len(pairs),
        "dev_questions": asked["dev"],
        "val_questions": asked["val"],
        "facts_per_relation": dict(Counter(f.relation for f in facts)),
    }
    texts["counts.json"] = json.dumps(counts, ensure_ascii=False, indent=1) + "\n"
    write_files(output_dir, texts)
    return counts
