"""Sampling formulas, generation through the cache, and whole characters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine import Sampling, generate, stream_text
from inference.sampling import keep_top_k, keep_top_p, penalise_repeats, pick
from model.chat import ChatTokenizer
from model.LMConfig import LMConfig
from model.model import Transformer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Transformer(LMConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=320, max_seq_len=32)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return made


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return ChatTokenizer(tokenizer_dir)


def write(model, ids, stop_ids=(), **changes):
    return list(generate(model, ids, Sampling(**{"temperature": 0, "max_new_tokens": 20, **changes}), stop_ids))


# ---- sampling ------------------------------------------------------------------------------------------------------
def test_repeats_become_less_likely_whatever_the_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    assert penalise_repeats(logits, torch.tensor([[0, 1, 1]]), 2.0).tolist() == [[1.0, -4.0, 1.0, -1.0]]
    assert penalise_repeats(logits, torch.tensor([[0, 1]]), 1.0) is logits


def test_top_k_keeps_the_k_highest():
    logits = torch.tensor([[0.1, 3.0, 2.0, -1.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, False]]
    assert keep_top_k(logits, 0) is logits and keep_top_k(logits, 4) is logits


def test_top_p_keeps_the_fewest_ids_that_reach_the_mass():
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    assert keep_top_p(logits, 0.45).isfinite().tolist() == [[False, True, False, False]]
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[False, True, True, False]]
    assert keep_top_p(logits, 1e-9).isfinite().sum() == 1 and keep_top_p(logits, 1.0) is logits


def test_samples_follow_the_probabilities():
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    share = torch.bincount(pick(logits, generator=generator), minlength=3) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)
    hot = torch.bincount(pick(logits, temperature=100.0, generator=generator), minlength=3) / 20_000
    torch.testing.assert_close(hot, torch.full((3,), 1 / 3), atol=0.015, rtol=0)


def test_temperature_zero_is_greedy():
    assert pick(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0).tolist() == [1]


# ---- generation ----------------------------------------------------------------------------------------------------
def test_greedy_equals_argmax_without_a_cache_and_counts_new_tokens(model):
    ids = [1, 5, 9]
    written = write(model, ids, max_new_tokens=12)
    expected = list(ids)
    with torch.no_grad():
        for _ in range(12):
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert ids + written == expected


def test_a_seed_repeats_and_another_does_not(model):
    a, b, c = (write(model, [1, 5], temperature=1.5, seed=s, top_p=1.0) for s in (1, 1, 2))
    assert a == b != c


def test_it_ends_at_a_stop_id_without_showing_it(model):
    written = write(model, [1, 5, 9])
    assert write(model, [1, 5, 9], stop_ids=(written[3],)) == written[: written.index(written[3])]


def test_past_the_context_it_slides_or_stops(model):
    assert len(write(model, [1] * 10, max_new_tokens=100)) == 100
    assert len(write(model, [1] * 10, max_new_tokens=100, overflow="stop")) == 23  # 32 positions read, one id beyond
    assert len(write(model, [1] * 500, max_new_tokens=3)) == 3


def test_two_conversations_do_not_touch(model):
    streams = [generate(model, ids, Sampling(temperature=0, max_new_tokens=10)) for ids in ([1, 5], [1, 200, 7])]
    both = list(zip(*streams))
    assert [list(x) for x in zip(*both)] == [write(model, ids, max_new_tokens=10) for ids in ([1, 5], [1, 200, 7])]


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(ValueError, match="no tokens"):
        write(model, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("top_p", 0), ("top_k", -1), ("max_new_tokens", 0), ("repetition_penalty", 0)],
)
def test_impossible_sampling_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"--{field} is {value}"):
        Sampling(**{field: value})


# ---- characters ----------------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_a_stream_is_made_of_whole_characters(tokenizer, text):
    pieces = list(stream_text(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert all("\ufffd" not in p or "\ufffd" in text for p in pieces)


def test_a_character_cut_off_at_the_end_is_shown_as_such(tokenizer):
    ids = tokenizer.encode("龘")
    assert list(stream_text(tokenizer, ids[:-1])) == ["\ufffd"]
