"""From logits to ids, and from ids to text: pure functions, each against its definition."""

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine import Sampling
from inference.sampling import (
    draw,
    keep_min_p,
    keep_rows,
    keep_top_k,
    keep_top_p,
    penalise,
    penalise_counts,
    pick,
    pick_rows,
)
from inference.text import Stops, TextStream, find_stop, until_stop
from model.chat import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- text ----------------------------------------------------------------------------------------------------------
LETTERS = st.text("ab。", max_size=12)
STOPS = st.lists(st.text("ab。", min_size=1, max_size=4), max_size=3)


def first_end(text, stops):
    """The text up to the stop string that is complete first, by trying every prefix."""
    for end in range(len(text) + 1):
        found = [end - len(s) for s in stops if text[:end].endswith(s)]
        if found:
            return text[: min(found)]
    return text


@settings(max_examples=300, deadline=None)
@given(st.lists(LETTERS, max_size=6), STOPS)
def test_a_stop_string_is_found_however_the_text_comes_in_pieces(pieces, stops):
    text = "".join(pieces)
    expected = first_end(text, stops)
    assert "".join(until_stop(pieces, stops)) == expected
    cut = find_stop(text, stops)
    assert (text if cut is None else text[:cut]) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), STOPS)
def test_a_stream_gives_whole_characters_and_every_mark_once(tokenizer, text, stops):
    stream, told, marks = TextStream(tokenizer, tuple(stops)), "", []
    for i in tokenizer.encode(text):
        piece, ready = stream.push(i, i)
        told, marks = told + piece, marks + ready
        if stream.stopped:
            break
    else:
        piece, ready = stream.finish()
        told, marks = told + piece, marks + ready
    assert told == first_end(text, stops)
    if told == text and not stream.stopped:
        assert [i for _, i in marks] == tokenizer.encode(text)
    assert [i for _, i in marks] == tokenizer.encode(text)[: len(marks)]


def test_stop_strings_come_as_text_or_as_a_list():
    assert Stops("a|b") == ("a|b",) and Stops('["\\n", "Q:"]') == ("\n", "Q:") and Stops("[end") == ("[end",)
    assert Stops(["", "x"]) == ("x",) and Stops("") == ()
    with pytest.raises(ValueError, match="JSON list"):
        Stops("[1]")
    assert dataclasses.asdict(Sampling(stop="x"))["stop"] == ("x",)


def test_tags_of_the_template_are_shown_and_ends_are_not():
    own = load_tokenizer()
    stream = TextStream(own)
    ids = [
        own.backend.token_to_id("<tool_call>"),
        *own.encode("好"),
        own.backend.token_to_id("</tool_call>"),
        own.bos_id,
    ]
    assert "".join(stream.push(i)[0] for i in ids) + stream.finish()[0] == "<tool_call>好</tool_call>"


# ---- sampling ------------------------------------------------------------------------------------------------------
def test_rows_with_their_own_limits_equal_the_single_functions():
    logits = torch.randn(40, 50, generator=torch.manual_seed(0)) * 3
    chance = random.Random(0)
    limits = [
        (chance.choice([0, 1, 5, 60]), chance.choice([1.0, 0.3, 0.9]), chance.choice([0.0, 0.05, 1.0])) for _ in logits
    ]
    kept = keep_rows(logits, *(torch.tensor(column).unsqueeze(1) for column in zip(*limits)))
    for row, (k, p, m), got in zip(logits, limits, kept):
        expected = keep_min_p(keep_top_p(keep_top_k(row.unsqueeze(0), k), p), m)[0]
        assert torch.equal(got, expected), (k, p, m)


def test_min_p_keeps_what_is_nearly_as_likely():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert keep_min_p(logits, 0.25).isfinite().tolist() == [[True, True, True, False]]
    assert keep_min_p(logits, 1.0).isfinite().sum() == 1 and keep_min_p(logits, 0.0) is logits


def test_counted_penalties():
    logits = torch.tensor([[1.0, 1.0, -1.0]])
    got = penalise_counts(logits, torch.tensor([[0, 0, 2]]), 0.5, 0.25)
    torch.testing.assert_close(got, torch.tensor([[0.0, 1.0, -1.75]]))
    assert penalise(logits, [0, 1], 1, Sampling()) is logits
    got = penalise(logits, [0, 1], 1, Sampling(presence_penalty=1.0))  # the prompt does not count
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.0, -1.0]]))


def test_next_to_temperature_0_the_likeliest_is_chosen():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert pick(logits, temperature=1e-42).tolist() == [1] == pick(logits * 1e4, temperature=1e-7).tolist()


def test_draws_follow_the_probabilities_and_never_take_what_is_excluded():
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    u = torch.linspace(0, 1, 10_001)[:-1].unsqueeze(1)
    share = torch.bincount(draw(p.log().expand(len(u), 4), u), minlength=4) / len(u)
    torch.testing.assert_close(share, p, atol=1e-3, rtol=0)
    assert draw(p.log()[None], torch.tensor([[1 - 2**-24]])).tolist() == [3]
    for u in (1 - 2**-30, 1.0):  # random() may give more digits than fp32 has
        hidden = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
        assert draw(hidden, torch.tensor([[u]], dtype=torch.float64)).tolist() == [1]


def test_extreme_settings_give_ids():
    rows = [Sampling(temperature=t) for t in (0, 1e-300, 1e-3, 2.0, 1e30)]
    chosen = pick_rows(torch.tensor([[0.0, 30.0, 1.0]]).expand(5, 3), rows, [0.5] * 5).tolist()
    assert chosen[:4] == [1, 1, 1, 1] and chosen[4] in (0, 1, 2)


@pytest.mark.parametrize(
    ("field", "value"), [("min_p", 2), ("presence_penalty", 1e9), ("frequency_penalty", float("nan"))]
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"--{field} is"):
        Sampling(**{field: value})
