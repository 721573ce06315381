"""What rules would do to a corpus, before they do it: how many texts each takes or changes, and ten of them.

A rule that nobody looked at is a biased rule. Texts meet the rules in the order in which they run, each as the rules
before it left it, so the counts are those of a real run. The ten are the ones with the smallest hashes: an even draw.
"""

import heapq
import re
from collections import Counter
from functools import partial

from cleaning.cleaner import key_of
from cleaning.decontaminate import grams_of_exams, shared_with_questions
from cleaning.filters import blocked_in
from cleaning.readers import Drops
from cleaning.rules import rules_for
from cleaning.workers import in_order

SHOWN = 10
AROUND = 30  # characters shown before and behind a change
FEW = 3  # words or passages shown that a text was dropped for


class Tried:
    """What happened to the texts of one unit, or of many added up.

    Attributes:
        documents, dropped, changed: counts, the latter two {rule: documents}.
        examples: {(rule, 'dropped' or 'changed'): [(hash, line to show)]}, the smallest hashes.
        drops: Drops of what could not be read.
    """

    def __init__(self):
        self.documents, self.dropped, self.changed = 0, Counter(), Counter()
        self.examples, self.drops = {}, Drops()

    def note(self, rule, what, key, line):
        """Counts a text that a rule dropped or changed."""
        (self.dropped if what == "dropped" else self.changed)[rule] += 1
        self._keep((rule, what), [(key, line)])

    def _keep(self, name, examples):
        self.examples[name] = heapq.nsmallest(SHOWN, [*self.examples.get(name, []), *examples])

    def add(self, other):
        """Adds what happened to other texts."""
        self.documents += other.documents
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)
        self.drops.merge(other.drops)
        for name, examples in other.examples.items():
            self._keep(name, examples)


def shown(text):
    """One printable line of a text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def difference(before, after):
    """The first place where two texts differ, as 'before → after'."""
    at = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
    start = max(0, at - AROUND)
    return f"…{shown(before[start : at + AROUND])}… → …{shown(after[start : at + AROUND])}…"


def found_in(text, rule, limits):
    """What a rule found in a text that it dropped, and the text around the first; the beginning if it judges all."""
    found = []
    if rule == "exam":
        found = shared_with_questions(text, grams_of_exams(tuple(limits.exams), limits.exam_run))
    elif rule == "blocklist":
        found = list(dict.fromkeys(blocked_in(text, limits.blocklist)))
    if not found:
        return f": {shown(text[:80])}"
    more = f", {len(found) - FEW} more" if len(found) > FEW else ""
    # what is compared has no spaces and punctuation
    at = re.search(r"[\W_]*".join(map(re.escape, found[0])), text, re.IGNORECASE)
    start, end = (max(0, at.start() - AROUND), at.end() + AROUND) if at else (0, 80)
    return f" ({', '.join(map(shown, found[:FEW]))}{more}): {'…' if start else ''}{shown(text[start:end])}"


def try_rules(names, limits, field, unit):
    """A Unit → Tried."""
    tried, rules = Tried(), rules_for(names, limits)
    for line, text in unit.located(tried.drops, field):
        tried.documents += 1
        place, key = f"{unit.file}:{line}: ", key_of(text)
        for rule in rules:
            new, reason = rule.apply(text)
            if reason:
                tried.note(rule.name, "dropped", key, place + reason + found_in(text, rule.name, limits))
                break
            if new != text:
                tried.note(rule.name, "changed", key, place + difference(text, new))
            text = new
    return tried


def dry_run(units, names, limits, field=None, workers=0):
    """Applies rules to all units, prints what they would do, and returns the Tried of all of them.

    Args:
        names, limits: see cleaning.rules.rules_for; field: see text_of; workers: see in_order.
    """
    total = Tried()
    for _, tried in in_order(partial(try_rules, tuple(names), limits, field), units, workers):
        total.add(tried)
    if not total.documents:
        raise ValueError(f"no usable text\n{total.drops.table()}")
    print(f"{total.documents:,} texts would meet these rules, in this order:")
    for rule in rules_for(names, limits):
        took, changed = total.dropped[rule.name], total.changed[rule.name]
        print(f"\n{rule.name}: {rule.what}")
        for what, count in (("dropped", took), ("changed", changed)):
            print(f"  {what} {count:,} ({count / max(total.documents, 1):.2%})")
            for _, line in total.examples.get((rule.name, what), []):
                print(f"    {line}")
    left = total.documents - total.dropped.total()
    print(f"\n{left:,} texts would be left, before duplicates are looked for; nothing was written")
    if total.drops.counts:
        print(f"what no rule meets, because it cannot be used, is {total.drops.table()}")
    return total
