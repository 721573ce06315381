"""Scoring texts behind contexts: fast ways must give what one forward per text gives, and what lm-eval gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.likelihood import Request, log_probs
from evaluation.multiple_choice import encode
from evaluation.reader import HuggingFaceReader, HuggingFaceTokenizer, Reader, open_reader
from inference.export import save_hugging_face
from model.attention import attend, with_log_sum, written_out_with_log_sum
from model.chat import load_tokenizer
from model.kv_cache import KVCache
from model.LMConfig import LMConfig
from model.model import Transformer
from model.tree import lay_out
from tests.oracles import stock_llama, stock_qwen2_moe

V, T = 300, 48
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": V, "max_seq_len": T}


def make_model(**changes):
    torch.manual_seed(0)
    model = Transformer(LMConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():  # large weights: a wrong mask or position then changes the logits a lot
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0.0, 0.2)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def model(request):
    return make_model(use_moe=request.param)


def one_by_one(model, requests):
    """The definition: a forward pass per text, the last max_seq_len + 1 ids of it, the continuation's nats summed."""
    found = []
    for request in requests:
        for continuation in request.continuations:
            ids = torch.tensor([(request.context + continuation)[-(model.cfg.max_seq_len + 1) :]])
            with torch.no_grad():
                nats = model(ids[:, :-1]).logits[0].log_softmax(-1)
            n = min(len(continuation), ids.shape[1] - 1)
            found.append(nats[-n:].gather(1, ids[0, -n:, None]).sum().item())
    return torch.tensor(found, dtype=torch.float64)


ids = st.lists(st.integers(0, V - 1), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(
    shared=st.lists(st.integers(0, V - 1), min_size=0, max_size=30),
    requests=st.lists(st.tuples(ids, st.lists(ids, min_size=1, max_size=4), st.sampled_from("ab")), max_size=6),
    long=st.integers(0, 60),
)
def test_branches_batches_and_a_shared_beginning_change_nothing(model, shared, requests, long):
    asked = [Request(shared + context, own, group) for context, own, group in requests]
    asked.append(Request([7] * (1 + long), [[1, 2, 3], [4] * 20, [5]], "a"))  # may be longer than the context
    found, expected = log_probs(Reader(model), asked), one_by_one(model, asked)
    assert torch.allclose(found, expected, atol=2e-4, rtol=0), (found - expected).abs().max()


def test_a_branch_sees_the_trunk_and_itself_alone(model):
    trunk, first, second = [5, 6, 7], [8, 9], [10, 11, 12]
    row, tree = lay_out([trunk, [1]], [[first, second], []], padding_id=0)
    states, _, _ = model.states(row, tree=tree)
    logits = model.output(states)[0]
    for branch, at in ((first, 3), (second, 5)):
        alone = model(torch.tensor([trunk + branch])).logits[0, 3:]
        assert torch.allclose(logits[at : at + len(branch)], alone, atol=1e-5)
    cache = KVCache(model.cfg, 2, T)  # the same behind a cached beginning
    beginning = torch.tensor([[20, 21, 22, 23]] * 2)
    model.states(beginning, cache=cache)
    states, _, _ = model.states(row, cache=cache, tree=tree)
    alone = model(torch.tensor([[20, 21, 22, 23, *trunk, *second]])).logits[0, 7:]
    assert torch.allclose(model.output(states)[0, 5:8], alone, atol=1e-5)


@pytest.mark.parametrize("own", [None, "tree"])
@pytest.mark.parametrize("T", [1, 9])
def test_a_beginning_that_all_rows_share_is_attended_as_if_each_had_its_own(own, T):
    q, k, v = torch.randn(3, 4, T, 8), torch.randn(3, 2, T, 8), torch.randn(3, 2, T, 8)
    first_k, first_v = torch.randn(1, 2, 13, 8), torch.randn(1, 2, 13, 8)
    seen = torch.ones(3, 1, T, T, dtype=torch.bool).tril()
    if own:
        seen = seen & (torch.rand(3, 1, T, T) < 0.6) | torch.eye(T, dtype=torch.bool)
    whole = [torch.cat([a.expand(3, -1, -1, -1), b], 2) for a, b in ((first_k, k), (first_v, v))]
    expected = attend(q, *whole, torch.cat([seen.new_ones(3, 1, T, 13), seen], -1), 0.0, False)
    found = attend(q, k, v, seen if own else None, 0.0, True, (first_k, first_v))
    torch.testing.assert_close(found, expected)


def test_the_log_of_the_sum_is_the_same_written_out():  # the way of devices whose kernel does not tell it
    q, k, v = torch.randn(3, 4, 9, 8), torch.randn(3, 4, 9, 8), torch.randn(3, 4, 9, 8)
    mask = torch.eye(9, dtype=torch.bool) | (torch.rand(3, 1, 9, 9) < 0.5)
    for arguments in ((None, True), (None, False), (mask, False)):
        for found, expected in zip(written_out_with_log_sum(q, k, v, *arguments), with_log_sum(q, k, v, *arguments)):
            torch.testing.assert_close(found, expected)


def test_a_tree_longer_than_the_context_is_refused_by_its_positions(model):
    row, tree = lay_out([[1] * 30], [[[2] * 15] * 3], padding_id=0)
    model.states(row, tree=tree)  # 75 ids, but none stands behind position 44
    row, tree = lay_out([[1] * 40], [[[2] * 15]], padding_id=0)
    with pytest.raises(ValueError, match="55 positions do not fit into max_seq_len 48"):
        model.states(row, tree=tree)


def test_half_precision_keeps_scores_in_full(model):
    asked = [Request([1, 2, 3], [[4, 5], [6]])]
    found = log_probs(Reader(make_model(), torch.bfloat16), asked)
    expected = one_by_one(make_model(), asked)
    assert found.dtype == torch.float64 and torch.allclose(found, expected, rtol=0.05)


# ---- folders of Hugging Face's ---------------------------------------------------------------------------------------
SHAPES = {
    "dense": {},
    "yarn": {"rope_scaling": "yarn:4"},
    "ntk": {"rope_scaling": "ntk:2"},
    "moe": {"use_moe": True},
    "moe, raw weights": {"use_moe": True, "n_routed_experts": 3, "norm_topk_prob": False},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_exported_folder_computes_what_an_independent_conversion_computes(shape, tmp_path):
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer()
    ours = make_model(**shape, vocab_size=tokenizer.vocab_size)
    assert save_hugging_face(ours, tokenizer, tmp_path).logits < 1e-5
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, trust_remote_code=False).eval()
    oracle = stock_qwen2_moe(ours) if ours.cfg.use_moe else stock_llama(ours)
    row = torch.randint(3, 6400, (2, T), generator=torch.manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(stock(row).logits, oracle(row).logits, atol=1e-5)
        assert torch.allclose(stock(row).logits, ours(row).logits, atol=1e-4)


@pytest.mark.parametrize("shape", [{"n_shared_experts": False}, {"num_experts_per_tok": 1}], ids=str)
def test_rare_kinds_of_experts_are_exported_too(shape, tmp_path):
    ours = make_model(use_moe=True, **shape, vocab_size=6400)
    assert save_hugging_face(ours, load_tokenizer(), tmp_path).logits < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model of the project's tokenizer, and the same as a folder."""
    path = tmp_path_factory.mktemp("stock")
    ours = make_model(vocab_size=6400)
    save_hugging_face(ours, load_tokenizer(), path)
    return ours, path


def test_a_folder_is_scored_as_the_checkpoint_is(folder):
    ours, path = folder
    reader, tokenizer, about, _ = open_reader(path, torch.device("cpu"))
    assert isinstance(reader, HuggingFaceReader) and reader.limit == T and about["stage"] == "huggingface"
    asked = [Request([1, 5 + i], [[7, 8, 9], [10], [11, 12]], "g") for i in range(5)] + [Request([1] * 60, [[3, 4]])]
    assert torch.allclose(log_probs(reader, asked), log_probs(Reader(ours), asked), atol=1e-4)
    assert tokenizer.bos_id == load_tokenizer().bos_id
    turns = [{"role": "user", "content": "你好"}]
    assert tokenizer.encode_prompt(turns) == load_tokenizer().encode_prompt(turns)
    assert tokenizer.encode_batch(["你好 A"]) == load_tokenizer().encode_batch(["你好 A"])


TEXTS = [
    (
        "水的化学式是____。\n答案：",
        ["H2O", " A", "《诗》", "（1）", "，", "12", "“绿动未来”活动开展以来", "“全面建设”的目标"],
    ),
    ("Question: 1+1\nAnswer:", [" 2", "\n2", ":", "：：", "an old house"]),
    ("很长的题目" * 30, ["甲", "丙丁" * 4]),
]


def test_lm_eval_gives_the_same_numbers_from_the_folder(folder):
    """Joint encoding, texts that grow together at the seam, texts longer than the context."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    ours, path = folder
    lm = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=3, add_bos_token=True)
    pairs = [(text, answer) for text, answers in TEXTS for answer in answers]
    pairs = [pair for pair in pairs if lm._encode_pair(*pair)[1]]  # where nothing is left, lm-eval stops
    assert len(pairs) >= 10
    theirs = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)], True)
    encoded = encode(load_tokenizer(), [text for text, _ in pairs], [[answer] for _, answer in pairs])
    asked = [Request(context, [own]) for [(context, own)] in encoded]
    expected = torch.tensor([nats for nats, _ in theirs], dtype=torch.float64)
    assert torch.allclose(log_probs(Reader(ours), asked), expected, atol=1e-4)


def test_a_continuation_never_loses_all_its_ids():
    """Where a text and what follows are one token together, something is left to score."""
    [pairs] = encode(load_tokenizer(), ["春天："], [["：", "：：：", " "]])
    assert all(len(own) >= 1 and len(context) >= 1 for context, own in pairs)


def test_a_folder_without_a_template_cannot_chat(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder[1])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        HuggingFaceTokenizer(tokenizer).encode_prompt([{"role": "user", "content": "你好"}])


def test_a_folder_that_is_no_model_says_what_is_there(tmp_path):
    (tmp_path / "pretrain_512.pth").touch()
    with pytest.raises(ValueError, match=r"without config.json.*pretrain_512\.pth"):
        open_reader(tmp_path, torch.device("cpu"))
