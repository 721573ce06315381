"""The slot cache, batches that change between steps, stop strings, sampling by row: each against the plain way."""

import random

import pytest
import torch

from inference.engine import Engine, Sampling, generate, stream_text
from inference.request import Request
from inference.text import TextStream
from model.kv_cache import KVCache, SlotCache
from model.LMConfig import LMConfig
from model.model import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")


def large(vocab_size, moe=False, context=48):
    """A model with large random weights: its likeliest id is far ahead, so that rounding cannot change it."""
    torch.manual_seed(5)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "max_seq_len": context}
    model = Transformer(LMConfig(**shape, vocab_size=vocab_size, use_moe=moe)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def model(request, tokenizer):
    return large(tokenizer.vocab_size, request.param)


def greedy(count=12, **changes):
    return Sampling(**{"temperature": 0, "max_new_tokens": count, "overflow": "stop", **changes})


class Heard:
    """A request with what it was told."""

    def __init__(self, ids, sampling, top_logprobs=None):
        self.events = []
        self.request = Request(ids, sampling, self.events.append, top_logprobs)

    @property
    def text(self):
        return "".join(e.text for e in self.events)

    @property
    def finish(self):
        assert all(e.finish is None for e in self.events[:-1])
        return self.events[-1].finish if self.events else None

    @property
    def ids(self):
        return self.request.text[len(self.request.ids) :]


def finished(engine, heard):
    for h in heard:
        engine.submit(h.request)
    while engine.step():
        pass
    return heard


def prompts(count, vocab_size, seed=0):
    chance = random.Random(seed)
    return [[1, *(chance.randrange(3, vocab_size) for _ in range(chance.randrange(1, 20)))] for _ in range(count)]


# ---- the cache -----------------------------------------------------------------------------------------------------
@torch.inference_mode()
def test_each_row_equals_its_conversation_alone_also_in_slots_that_were_used_before(model):
    cache = SlotCache(model.cfg, 3)
    alone = {}

    def feed(first, ids):
        tokens, rows = cache.rows(first, ids)
        logits = model.output(model.states(tokens, cache=rows, tree=rows)[0])
        for row, (slot, new) in enumerate(zip(range(first, first + len(ids)), ids)):
            expected = model(torch.tensor([new]), cache=alone[slot]).logits[0]
            torch.testing.assert_close(logits[row], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)

    for generation in range(2):  # the second in slots full of the first
        for slot, text in enumerate(prompts(3, model.cfg.vocab_size, generation)):
            alone[slot] = KVCache(model.cfg)
            assert cache.begin(slot, text, reuse=False) == 0
            feed(slot, [text])  # lengths differ from here on
        for step in range(8):
            feed(0, [[3 + step], [200 - step], [50]])
        feed(1, [[7, 8, 9], [10, 11, 12]])  # several ids at once, for some of the slots
        cache.swap(0, 2)
        alone[0], alone[2] = alone[2], alone[0]
        feed(0, [[5], [6]])


@torch.inference_mode()
def test_a_shared_beginning_is_taken_over_from_idle_and_from_running_slots(model):
    cache = SlotCache(model.cfg, 3)
    text = prompts(1, model.cfg.vocab_size)[0] + [9, 8, 7]
    tokens, rows = cache.rows(0, [text])
    model.states(tokens, cache=rows, tree=rows)
    for slot, end in ((1, [4, 5]), (0, [6, 3])):  # from the running slot 0; from the idle slot 0 or 1
        assert cache.begin(slot, [*text, *end]) == len(text)
        tokens, rows = cache.rows(slot, [end])
        logits = model.output(model.states(tokens, cache=rows, tree=rows)[0])
        expected = model(torch.tensor([[*text, *end]])).logits[:, -2:]
        torch.testing.assert_close(logits, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert cache.begin(2, text) == len(text) - 1  # one id is left to read


@torch.inference_mode()
def test_what_a_slot_held_is_gone_even_if_it_was_not_a_number(model):
    cache = SlotCache(model.cfg, 2)
    for keys, values in zip(cache.keys, cache.values):
        keys.fill_(1.0), values.fill_(float("nan"))
    for slot, text in ((0, [1, 5]), (1, [1, 5, 9, 4])):
        cache.begin(slot, text)
        tokens, rows = cache.rows(slot, [text])
        model.states(tokens, cache=rows, tree=rows)
    tokens, rows = cache.rows(0, [[3], [3]])
    assert model.states(tokens, cache=rows, tree=rows)[0].isfinite().all()


@torch.inference_mode()
def test_lists_of_ids_that_are_padded_leave_what_each_leaves_alone(model):
    texts = [[1, *range(5, 5 + n)] for n in (3, 17, 9, 1)]
    held = [[], [4, 8, 15], list(range(3, 30)), list(range(100, 146))]  # the last: no room for all of its padding
    caches = [SlotCache(model.cfg, 4, capacity=48) for _ in range(2)]
    for cache in caches:
        for slot, text in enumerate(held):
            if text:
                tokens, rows = cache.rows(slot, [text])
                model.states(tokens, cache=rows, tree=rows)
    together, alone = caches
    texts[3] = [9]
    tokens, rows = together.rows(0, texts)
    model.states(tokens, cache=rows, tree=rows)
    for slot, text in enumerate(texts):
        tokens, rows = alone.rows(slot, [text])
        model.states(tokens, cache=rows, tree=rows)
    assert together.texts == alone.texts
    for slot, text in enumerate(together.texts):
        for a, b in zip((*together.keys, *together.values), (*alone.keys, *alone.values)):
            torch.testing.assert_close(a[slot, :, : len(text)], b[slot, :, : len(text)], atol=2e-4, rtol=1e-4)
    logits = []
    for cache in caches:
        tokens, rows = cache.rows(0, [[7]] * 4)
        logits.append(model.output(model.states(tokens, cache=rows, tree=rows)[0]))
    torch.testing.assert_close(*logits, atol=1e-5 * float(logits[1].abs().max()), rtol=0)


def test_a_full_slot_has_no_room_for_padding(model):
    cache = SlotCache(model.cfg, 2, capacity=4)
    with pytest.raises(ValueError, match="holds 4 positions; 5 do not fit"):
        cache.texts[0] = [1, 2, 3]
        cache.rows(0, [[4], [5, 6]])


def test_more_than_the_capacity_is_refused(model):
    cache = SlotCache(model.cfg, 1, capacity=4)
    with pytest.raises(ValueError, match="holds 4 positions; 5"):
        cache.rows(0, [[1, 2, 3, 4, 5]])
    assert cache.texts == [[]]


# ---- the engine ----------------------------------------------------------------------------------------------------
def test_prompts_of_similar_length_are_read_together(model, tokenizer, monkeypatch):
    passes, states = [], model.states

    def counted(tokens, *more, **given):
        passes.append(tuple(tokens.shape))
        return states(tokens, *more, **given)

    monkeypatch.setattr(model, "states", counted)
    texts = [[1, *[5 + n] * size] for n, size in enumerate((4, 5, 4, 40, 41, 3, 1))]
    heard = finished(Engine(model, tokenizer, slots=8, reuse=False), [Heard(ids, greedy(1)) for ids in texts])
    assert passes[:3] == [(3, 5), (2, 41), (2, 3)] and passes[3] == (7, 1)
    for h in heard:
        assert h.ids == list(generate(model, h.request.ids, h.request.sampling, (tokenizer.eos_id,)))


def test_a_long_beginning_that_two_new_prompts_share_is_read_once(model, tokenizer):
    shared = [1, *range(5, 40)]
    heard = [Heard([*shared, 3, 4], greedy(4)), Heard([*shared, 9], greedy(4)), Heard([1, 7], greedy(4))]
    engine = Engine(model, tokenizer, slots=4)
    read = []
    add = engine.prefill.add
    engine.prefill.add = lambda *given: read.append(add(*given)) or read[-1]
    for h in finished(engine, heard):
        assert h.ids == list(generate(model, h.request.ids, h.request.sampling, (tokenizer.eos_id,)))
    assert read == [37, 0, 0]  # of the third the one id in front of the last is in a slot, too


@pytest.mark.parametrize("reuse", [True, False])
def test_requests_that_join_and_leave_get_what_they_get_alone(model, tokenizer, reuse):
    texts = prompts(20, tokenizer.vocab_size)
    texts[7] = texts[3] + [4]  # begins like another
    heard = [Heard(ids, greedy(3 + n)) for n, ids in enumerate(texts)]
    engine = Engine(model, tokenizer, slots=5, reuse=reuse)
    chance = random.Random(1)
    waiting = list(heard)
    while waiting or engine.running or engine.waiting:
        for _ in range(chance.randrange(3)):
            if waiting:
                engine.submit(waiting.pop(0).request)
        engine.step()
        assert len(engine.running) <= 5
    for h in heard:
        alone = list(generate(model, h.request.ids, h.request.sampling, (tokenizer.eos_id,)))
        assert h.ids == alone
        assert h.text == "".join(stream_text(tokenizer, alone))
        assert h.finish == ("length" if len(alone) == h.request.sampling.max_new_tokens else "stop")


def test_a_seed_repeats_alone_and_among_others(model, tokenizer):
    warm = {"temperature": 1.3, "top_p": 0.95, "max_new_tokens": 10}
    texts = prompts(6, tokenizer.vocab_size)
    alone = [finished(Engine(model, tokenizer), [Heard(t, Sampling(**warm, seed=n))])[0] for n, t in enumerate(texts)]
    others = [Heard(t, Sampling(**warm, top_k=3, seed=50)) for t in texts]
    together = finished(
        Engine(model, tokenizer, slots=9), [*others, *(Heard(t, Sampling(**warm, seed=n)) for n, t in enumerate(texts))]
    )
    assert [h.ids for h in together[6:]] == [h.ids for h in alone]
    [another] = finished(Engine(model, tokenizer), [Heard(texts[0], Sampling(**warm, seed=11))])
    [again] = finished(Engine(model, tokenizer), [Heard(texts[0], Sampling(**warm, seed=1))])
    assert another.ids != again.ids


def test_past_the_context_it_slides_as_generate_does_or_ends(model, tokenizer):
    long = prompts(1, tokenizer.vocab_size)[0] * 20
    sampling = greedy(120, overflow="slide")
    slid = finished(Engine(model, tokenizer), [Heard([1, 9], sampling), Heard(long, sampling)])
    for h in slid:
        assert h.ids == list(generate(model, h.request.ids, sampling, (tokenizer.eos_id,)))
    ended = finished(Engine(model, tokenizer), [Heard([1, 9], greedy(120))])[0]
    assert ended.ids == list(generate(model, [1, 9], greedy(120), (tokenizer.eos_id,)))
    assert len(ended.ids) == 47 and ended.finish == "length"
    with pytest.raises(ValueError, match="the context holds 48"):
        Engine(model, tokenizer).submit(Heard(long, greedy()).request)
    with pytest.raises(ValueError, match="no tokens"):
        Engine(model, tokenizer).submit(Heard([], greedy()).request)


def test_a_cancelled_request_leaves_at_the_next_step_and_the_others_do_not_notice(model, tokenizer):
    texts = prompts(4, tokenizer.vocab_size)
    heard = [Heard(t, greedy(20)) for t in texts]
    engine = Engine(model, tokenizer, slots=3)
    for h in heard:
        engine.submit(h.request)
    for _ in range(4):
        engine.step()
    engine.cancel(heard[0].request)
    engine.cancel(heard[3].request)  # still waiting
    engine.step()
    assert heard[0].finish == heard[3].finish == "cancelled" and len(engine.running) == 2
    while engine.step():
        pass
    for h in heard[1:3]:
        assert h.ids == list(generate(model, h.request.ids, h.request.sampling, (tokenizer.eos_id,)))


def test_penalties_are_those_of_a_loop_without_a_cache(model, tokenizer):
    sampling = greedy(15, repetition_penalty=1.3, presence_penalty=7.0, frequency_penalty=9.0)
    prompt = [1, *range(3, 40)]  # counted as repeated, not as written

    def loop(repetition, presence, frequency):
        text = list(prompt)
        while len(text) < len(prompt) + 10 and tokenizer.eos_id not in text:
            z = model(torch.tensor([text])).logits[0, -1]
            for i in set(text):  # the formulas, id by id
                z[i] = z[i] / repetition if z[i] > 0 else z[i] * repetition
            written = text[len(prompt) :]
            for i in set(written):
                z[i] -= presence + frequency * written.count(i)
            text.append(int(z.argmax()))
        return [i for i in text[len(prompt) :] if i != tokenizer.eos_id]

    with torch.no_grad():
        for values in ((1.3, 7.0, 9.0), (1.0, 30.0, 0.0), (1.0, 0.0, 30.0), (3.0, 0.0, 0.0)):
            expected = loop(*values)
            names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
            sampling = greedy(10, **dict(zip(names, values)))
            [heard] = finished(Engine(model, tokenizer), [Heard(prompt, sampling)])
            assert heard.ids == expected == list(generate(model, prompt, sampling, (tokenizer.eos_id,)))


def test_log_probabilities_are_the_models_own(model, tokenizer):
    prompt = prompts(1, tokenizer.vocab_size)[0]
    sampling = Sampling(temperature=1.7, top_k=50, max_new_tokens=8, seed=3, presence_penalty=1.0)
    [heard] = finished(Engine(model, tokenizer), [Heard(prompt, sampling, top_logprobs=4)])
    tokens = [token for event in heard.events for _, token in event.tokens]
    assert [t.id for t in tokens] == heard.ids
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + heard.ids])).logits[0, len(prompt) - 1 :].log_softmax(-1)
    for row, token in zip(logprobs, tokens):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        values, ids = row.topk(4)
        assert [i for i, _ in token.top] == ids.tolist()
        assert [v for _, v in token.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_the_offsets_of_tokens_are_their_places_in_the_text(model, tokenizer):
    [heard] = finished(Engine(model, tokenizer), [Heard([1, 9], greedy(20), top_logprobs=0)])
    marks = [mark for event in heard.events for mark in event.tokens]
    stream = TextStream(tokenizer)
    for n, (offset, token) in enumerate(marks):  # the characters that were whole before this id
        assert offset == sum(len(stream.push(t.id)[0]) for _, t in marks[n - 1 : n]) + (marks[n - 1][0] if n else 0)
        assert token.id == heard.ids[n]


def test_a_stop_string_ends_the_text_before_it(model, tokenizer):
    [whole] = finished(Engine(model, tokenizer), [Heard([1, 9], greedy(30))])
    stop = whole.text[5:8]
    [cut] = finished(Engine(model, tokenizer), [Heard([1, 9], greedy(30, stop=stop), top_logprobs=0)])
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish == "stop"
    assert all(offset < len(cut.text) for event in cut.events for offset, _ in event.tokens)


def test_whoever_waits_is_told_when_the_engine_ends(model, tokenizer):
    engine, heard = Engine(model, tokenizer), Heard([1, 9], greedy())
    engine.submit(heard.request)
    engine.close()
    engine.run()
    assert heard.finish == "error"


def test_the_benchmark_prints_its_table(monkeypatch, capsys, tmp_path):
    from benchmarks import decode_speed

    flags = "--preset tiny --batch 1 2 --prompt 5 --new 4 --rounds 1 --threads 1 --device cpu --eager --json".split()
    decode_speed.main([*flags, str(tmp_path / "speed.json")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    fp32 = [row for row in rows if "fp32" in row]
    assert len(fp32) == 6 and all(row.endswith("| 100.0% |") for row in fp32)
    with pytest.raises(ValueError, match="fit into 256"):
        decode_speed.main(["--preset", "tiny", "--new", "600", "--device", "cpu"])
