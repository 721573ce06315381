"""Preference data of every schema in use → one form.

{"conversations": [turns up to the question], "chosen": "…", "rejected": "…", "tools": […]}
"""

from cleaning.conversations import (
    Unusable,
    check_order,
    check_text,
    question_turns,
    said,
    tools_of,
    turn_of,
    with_system,
)


def pair_of(record):
    """A preference record of any schema → (pair, reason, notes).

    Returns:
        pair: {"conversations": turns up to the question, "chosen": str, "rejected": str, "tools": …} or None.
    """
    notes = []
    try:
        turns, chosen, rejected = sides_of(record, notes)
        if not turns or turns[-1]["role"] not in ("user", "tool"):
            raise Unusable("prompt does not end with a question" if turns else "no prompt")
        if chosen.strip() == rejected.strip():
            raise Unusable("chosen equals rejected")
        check_order(turns)
        answers = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
        check_text([*turns, *answers])
        tools = tools_of(record)
    except Unusable as reason:
        return None, str(reason), notes
    pair = {"conversations": turns, "chosen": chosen, "rejected": rejected}
    return {**pair, **({"tools": tools} if tools else {})}, None, notes


def sides_of(record, notes):
    """(prompt turns, chosen text, rejected text) of a preference record."""
    if "chosen" not in record and isinstance(record.get("output"), list):  # ranked answers, the best first
        ranked = record["output"]
        if len(ranked) < 2:
            raise Unusable("fewer than two ranked answers")
        turns = question_turns(record, "instruction", notes)
        return turns, said(ranked[0], "chosen answer"), said(ranked[-1], "rejected answer")
    if "question" in record and "response_chosen" in record:
        turns = question_turns(record, "question", notes)
        sides = record["response_chosen"], record.get("response_rejected")
    elif "chosen" not in record or "rejected" not in record:
        if "chosen" in record or "rejected" in record or "response_rejected" in record:
            raise Unusable("chosen or rejected is missing")
        chat = isinstance(record.get("conversations", record.get("messages")), list)
        raise Unusable("a conversation, not a preference pair" if chat else "unknown schema")
    elif isinstance(record["chosen"], list) and all(isinstance(m, dict) for m in record["chosen"]):
        return message_sides(record, notes)
    else:
        sides = record["chosen"], record["rejected"]
        if "conversations" in record or "messages" in record:
            messages = record.get("conversations", record.get("messages"))
            if not isinstance(messages, list):
                raise Unusable("conversations is not a list of turns")
            turns = with_system(record, [*map(turn_of, messages)])
        elif "instruction" in record:
            turns = question_turns(record, "instruction", notes)
        else:
            prompt = record.get("prompt", record.get("question"))
            if isinstance(prompt, list):
                turns = with_system(record, [*map(turn_of, prompt)])
            else:
                turns = question_turns({**record, "prompt": prompt}, "prompt", notes)
    names = ("chosen answer", "rejected answer")
    return turns, *(said(answer_text(side), name) for side, name in zip(sides, names))


def answer_text(side):
    """A side that is one message → its text; anything else as it is."""
    if not isinstance(side, dict):
        return side
    refuse_more_than_text(turn_of(side if "role" in side or "from" in side else {**side, "role": "assistant"}))
    return side.get("content", side.get("value"))


def refuse_more_than_text(answer):
    """Unusable for an assistant turn that says more than the text of a pair's side can hold."""
    if answer.get("reasoning_content") or answer.get("tool_calls"):
        raise Unusable("answer with reasoning or calls")


def message_sides(record, notes):
    """Both sides as whole message lists that share all but the last turn."""
    if not isinstance(record["rejected"], list):
        raise Unusable("chosen and rejected differ in form")
    chosen, rejected = ([*map(turn_of, record[side])] for side in ("chosen", "rejected"))
    if not chosen or not rejected or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Unusable("a side does not end with an answer")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("the sides have different prompts")
    for answer in (chosen[-1], rejected[-1]):
        refuse_more_than_text(answer)
    turns, given = chosen[:-1], record.get("prompt")
    if isinstance(given, list):  # trl's form keeps the prompt apart, with or without a copy of it in the sides
        prompt = [*map(turn_of, given)]
        if turns[: len(prompt)] != prompt:
            turns = prompt if turns and prompt[-len(turns) :] == turns else [*prompt, *turns]
    elif all(turn["role"] == "system" for turn in turns):
        asked = question_turns({**record, "prompt": given}, "prompt", notes)
        turns = [*turns, *(turn for turn in asked if not turns or turn["role"] != "system")]
    turns = with_system(record, turns)
    return turns, said(chosen[-1]["content"], "chosen answer"), said(rejected[-1]["content"], "rejected answer")
