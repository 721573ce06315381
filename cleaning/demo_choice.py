"""The demo's practice in naming the right option by its letter, the hard part of an exam for a small model.

Trained on letters alone, a model of this size stayed at 25 %: nothing tells it which of the steps to a letter went
wrong. Here every option has an aside (see Piece in model/chat.py), 对 or 错, which the model learns to think of behind
it and which stands nowhere in the text. Half of the questions need no fact, because they name the word that is to be
found; in these it learns to compare and to look up.
"""

from cleaning.demo_facts import ANSWER_LINE, answer_pools, arrange

LETTERS = "ABCD"
RIGHT, WRONG = "对", "错"
WHICH = ("哪一项是{}？", "{}是哪一项？", "{}是哪一个选项？", "请找出{}。")


def choice_chat(question, options, letter):
    """A question with options in C-Eval's layout, each judged in an aside; the answer is the letter."""
    text, asides = question, []
    for name, option in zip(LETTERS, options):
        text += f"\n{name}. {option}"
        asides.append([len(text), RIGHT if name == letter else WRONG])
    asked = {"role": "user", "content": text + ANSWER_LINE, "asides": asides}
    return {"conversations": [asked, {"role": "assistant", "content": letter}]}


def fact_choice(fact, relation, pool, rng):
    """A practised fact in a training wording."""
    letter = rng.choice(LETTERS)
    return choice_chat(fact.fill(rng.choice(relation.questions)), arrange(fact, pool, letter, rng), letter)


def lookup(words, rng):
    """Which option is a given word; needs no fact."""
    options, letter = rng.sample(words, 4), rng.choice(LETTERS)
    return choice_chat(rng.choice(WHICH).format(options[LETTERS.index(letter)]), options, letter)


def wrong_pools(practised, facts):
    """{relation name: answers to draw wrong options from}, those of practised facts wherever they are enough for four.

    An answer that is only ever offered as a wrong option would be learnt to be one.
    """
    pools = answer_pools(facts)
    for name, own in answer_pools(practised).items():
        mine = [f for f in practised if f.relation == name]
        if all(len(set(own) - {f.subject, f.answer, *f.also}) >= 3 for f in mine):
            pools[name] = own
    return pools


def choice_conversations(relations, facts, practised, per_fact, lookups, rng):
    """Every practised fact `per_fact` times, each time in another wording and order, among `lookups` look-ups."""
    by_name, pools = {r.name: r for r in relations}, wrong_pools(practised, facts)
    words = [sorted(set(pool)) for pool in answer_pools(facts).values()]
    words += [sorted(set().union(*words))] * len(words)  # half of the lists are less alike
    chats = [fact_choice(f, by_name[f.relation], pools[f.relation], rng) for f in practised for _ in range(per_fact)]
    chats += [lookup(rng.choice(words), rng) for _ in range(lookups)]
    return rng.sample(chats, len(chats))
