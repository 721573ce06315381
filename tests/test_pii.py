"""Masks against strings whose personal data was marked by hand, before the patterns were written."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cleaning.pii import PLACEHOLDERS, find_personal, find_urls

HERE = Path(__file__).parent


def cases(name):
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def found_in(text):
    """What the rules `urls` and `pii` mask together, the first before the second."""
    urls = find_urls(text)
    inside = {at for url in urls for at in range(url.start, url.end)}
    return sorted([*urls, *(f for f in find_personal(text) if f.start not in inside)])


def counts_of(name):
    """Counter of (kind, 'right' | 'wrong' | 'missed'), and the cases that are not as marked."""
    counts, bad = Counter(), []
    for case in cases(name):
        wanted, got = {tuple(m) for m in case["masked"]}, {tuple(f) for f in found_in(case["text"])}
        for which, places in (("right", wanted & got), ("wrong", got - wanted), ("missed", wanted - got)):
            counts.update((kind, which) for _, _, kind in places)
        if wanted != got:
            bad.append((case["text"], sorted(wanted), sorted(got)))
    return counts, bad


@pytest.mark.parametrize("name", ["pii_cases.jsonl", "pii_held_out.jsonl"])
def test_what_is_marked_is_masked_and_nothing_else(name):
    counts, bad = counts_of(name)
    for kind in PLACEHOLDERS:
        print(
            f"{kind:<9} {counts[kind, 'right']:>4} right {counts[kind, 'wrong']:>3} wrong {counts[kind, 'missed']:>3} missed"
        )
    right, wrong, missed = (
        sum(n for (_, w), n in counts.items() if w == which) for which in ("right", "wrong", "missed")
    )
    print(f"precision {right / (right + wrong):.3f}, recall {right / (right + missed):.3f}")
    assert right / (right + wrong) >= 0.98 and right / (right + missed) >= 0.98, bad
