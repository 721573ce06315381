"""The step that writes, compiled and recorded, against the step as it is."""

import functools

import pytest
import torch

from inference.engine import Engine, generate, next_logits
from inference.graphs import Recorded
from tests.test_engine import Heard, finished, greedy, large, prompts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def model(request, tokenizer):
    return large(tokenizer.vocab_size, request.param)


@pytest.mark.no_cover
def test_a_compiled_engine_writes_what_an_eager_one_writes(tokenizer, monkeypatch):
    # traced for changing shapes and made functional, not translated: C++ would take half a minute
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model, texts = large(tokenizer.vocab_size), [[1, 9], [1, 9, 4, 7, 30]]
    [alone] = finished(Engine(model, tokenizer), [Heard(texts[0], greedy(20))])
    together = finished(Engine(model, tokenizer), [Heard(text, greedy(20)) for text in texts])
    engine = Engine(model, tokenizer, slots=2, reuse=False, compiled=True)
    engine.warm_up()
    assert finished(engine, [Heard(texts[0], greedy(20))])[0].text == alone.text
    assert [h.text for h in finished(engine, [Heard(t, greedy(20)) for t in texts])] == [h.text for h in together]


def replayed(run):
    """As record_cuda, on any device: the same memory is written anew."""
    found = run()
    return lambda: found.copy_(run()), found


@pytest.mark.parametrize("slots", [1, 5, 8])
def test_a_recorded_step_writes_what_the_step_writes(model, tokenizer, slots):
    engine, texts = Engine(model, tokenizer, slots=slots), prompts(12, tokenizer.vocab_size)
    texts[7] = texts[3] + [4]  # begins like another, which sits in a slot that padding used
    engine.next_logits = recorded = Recorded(engine.next_logits, engine.cache, replayed)
    heard = [Heard(ids, greedy(3 + 2 * n)) for n, ids in enumerate(texts)]
    for h in finished(engine, heard):
        assert h.ids == list(generate(model, h.request.ids, h.request.sampling, (tokenizer.eos_id,)))
    assert {rows for rows, _ in recorded.kept} <= {1, 2, 4, min(8, slots)}
    assert {longest for _, longest in recorded.kept} == {48}  # the model's whole context, less than a span


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_warming_up_compiles_all_that_will_be_asked(tokenizer, moe):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    engine = Engine(large(tokenizer.vocab_size, moe, context=64), tokenizer, slots=6)
    engine.next_logits = torch.compile(next_logits, dynamic=True, backend=count)
    engine.warm_up()
    known = len(graphs)
    for texts in (1, 2, 3, 6, 1):
        finished(engine, [Heard([1, 5 + n], greedy(40)) for n in range(texts)])
    assert known and len(graphs) == known


def test_few_shapes_are_recorded_as_texts_grow(tokenizer):
    model = large(tokenizer.vocab_size, context=300)
    engine = Engine(model, tokenizer, slots=3)
    engine.next_logits = recorded = Recorded(engine.next_logits, engine.cache, replayed)
    [heard] = finished(engine, [Heard([1, 9], greedy(290))])
    assert heard.ids == list(generate(model, [1, 9], greedy(290), (tokenizer.eos_id,)))
    assert [*recorded.kept] == [(1, 128), (1, 256), (1, 300)][: 1 + (len(heard.ids) + 2 > 128) + (len(heard.ids) > 254)]


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(model, tokenizer):
    def refused(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = Engine(model, tokenizer, slots=3)
    engine.next_logits = Recorded(engine.next_logits, engine.cache, refused)
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph .operation not permitted"):
        [heard] = finished(engine, [Heard([1, 9], greedy(9))])
    assert heard.ids == list(generate(model, [1, 9], greedy(9), (tokenizer.eos_id,)))
