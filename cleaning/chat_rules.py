"""The rules of text that make sense in chats: each text that is said meets them, tools and their calls do not.

A rule that would drop a text drops the whole record. Not offered are those that judge a document as a whole: an answer
may be short, be code, or be a page of HTML that was asked for.
"""

from dataclasses import fields

from cleaning.rules import RuleSettings, apply_rules, check_limits, rules_for

CHAT_RULES = ("mojibake", "invisible", "width", "simplified", "urls", "pii", "blocklist", "exam")
ELSEWHERE = [f.name for f in fields(RuleSettings) if f.metadata["help"].partition(":")[0] not in CHAT_RULES]


def chat_rules(names, limits):
    """Rules in the order they run, none where none was asked for; raises as rules_for, and for rules not of chats."""
    if wrong := [name for name in names if name not in CHAT_RULES]:
        raise ValueError(f"no rule {', '.join(wrong)} for chats; there are {', '.join(CHAT_RULES)}")
    check_limits(names, limits)
    return rules_for(names, limits) if names else []


def ruled(record, rules):
    """A record of the one form, chat or pair, meets the rules.

    Returns:
        (record, None, changed) or (None, reason, changed); `changed` has the names of the rules that changed a text.
    """
    changed = []

    def said(holder, names):
        texts = {}
        for name in names:
            if holder.get(name, "").strip():
                texts[name], reason, own = apply_rules(holder[name], rules)
                changed.extend(own)
                if reason:
                    raise LeftOut(reason)
        asides = holder.get("asides", ())
        moved = asides and texts.get("content", holder["content"]) != holder["content"]  # asides are places in it
        if moved or any(apply_rules(text, rules)[0] != text for _, text in asides):
            raise LeftOut("a rule changes a text with asides, or an aside")
        return {**holder, **texts}

    try:
        new = said(record, ("chosen", "rejected"))
        new["conversations"] = [said(turn, ("content", "reasoning_content")) for turn in record["conversations"]]
        if "chosen" in new and new["chosen"].strip() == new["rejected"].strip():
            raise LeftOut("chosen equals rejected")
    except LeftOut as reason:
        return None, str(reason), sorted({*changed})
    return new, None, sorted({*changed})


class LeftOut(Exception):
    """Why a record is left out."""
