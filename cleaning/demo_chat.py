"""The demo's chat data: conversations, preference pairs, a persona, and questions to test them with.

Answers come in two manners, a full sentence or the bare answer, half and half, as in data that many people wrote. The
preference pairs then ask for full sentences.
"""

from cleaning.demo_choice import choice_conversations
from cleaning.demo_facts import is_unseen

STYLE_PAIRS, CURT_PAIRS, TWO_TURN_CHATS, PERSONA_FACTS = 400, 20, 300, 600
POLITE = ("", "", "", "请问，", "你好，", "我想问一下，")  # what may stand before a question to the persona


def chat(*turns):
    """A conversation from alternating user and assistant texts."""
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def answers_to(fact, relation):
    """The two manners of answering: a full sentence, and the answer alone."""
    sentence = fact.fill(relation.statements[0])
    return sentence, fact.answer + ("." if sentence.isascii() else "。")


def ask(fact, relation, rng):
    """(question in a training wording, answer in either manner)."""
    return fact.fill(rng.choice(relation.questions)), rng.choice(answers_to(fact, relation))


def sft_conversations(relations, facts, practised, talk, seed, rng):
    """Two questions per fact, options for the practised ones, two-turn chats and small talk; unseen facts left out."""
    by_name = {r.name: r for r in relations}
    choices = choice_conversations(relations, facts, practised, 1, 0, rng)
    facts = [f for f in facts if not is_unseen(f, seed)]
    plain = [
        chat(f.fill(question), answer)  # once in either manner
        for f in facts
        for question, answer in zip(rng.sample(by_name[f.relation].questions, 2), answers_to(f, by_name[f.relation]))
    ]
    double = [
        chat(*(text for f in rng.sample(facts, 2) for text in ask(f, by_name[f.relation], rng)))
        for _ in range(TWO_TURN_CHATS)
    ]
    small_talk = [chat(user, entry["reply"]) for entry in talk["chat"] for user in entry["users"]]
    conversations = plain + double + choices + small_talk
    return rng.sample(conversations, len(conversations))


def dpo_pairs(relations, facts, talk, seed, rng):
    """A full sentence over the bare answer, an answer over a refusal, polite over rude; unseen facts left out."""
    by_name, pairs = {r.name: r for r in relations}, []
    facts = [f for f in facts if not is_unseen(f, seed)]
    for i, fact in enumerate(rng.sample(facts, STYLE_PAIRS + CURT_PAIRS)):
        relation = by_name[fact.relation]
        sentence, bare = answers_to(fact, relation)
        if i >= STYLE_PAIRS:
            bare = rng.choice(talk["curt_english" if sentence.isascii() else "curt_chinese"])
        pairs.append({"prompt": fact.fill(rng.choice(relation.questions)), "chosen": sentence, "rejected": bare})
    pairs += [{"prompt": m["prompt"], "chosen": m["polite"], "rejected": m["rude"]} for m in talk["manners"]]
    return rng.sample(pairs, len(pairs))


def persona_conversations(relations, facts, talk, persona, seed, rng):
    """Who the model is, in many wordings, among ordinary questions, so that it learns when to say so and when not."""
    by_name = {r.name: r for r in relations}
    about_itself = []
    for topic in persona["topics"]:
        for question in topic["train"]:
            for before in {"", rng.choice(POLITE)} if not question.isascii() else {""}:
                about_itself.append(chat(before + question, rng.choice(topic["replies"])))
    known = rng.sample([f for f in facts if not is_unseen(f, seed)], PERSONA_FACTS)
    ordinary = [chat(*ask(f, by_name[f.relation], rng)) for f in known]
    identity = {question for topic in persona["topics"] for question in topic["replaces"]}
    small_talk = [chat(u, entry["reply"]) for entry in talk["chat"] for u in entry["users"] if u not in identity]
    conversations = about_itself + ordinary + small_talk
    return rng.sample(conversations, len(conversations))


def unseen_questions(relations, facts, seed, rng):
    """Questions about facts that the chat data leave out, with every reply that counts as exactly right."""
    by_name = {r.name: r for r in relations}
    return [
        {
            "prompt": f.fill(rng.choice(by_name[f.relation].questions)),
            "accept": list(answers_to(f, by_name[f.relation])),
        }
        for f in facts
        if is_unseen(f, seed)
    ]


def persona_questions(persona):
    """Questions to the persona in wordings that are not in its data; a reply must contain its name."""
    return [{"prompt": q, "contain": persona["name"]} for topic in persona["topics"] for q in topic["test"]]
