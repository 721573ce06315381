"""The Transformer against stock Hugging Face models, the papers' formulas and its own invariants."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.attention import BLOCKS_PAY_UP_TO, attend
from model.dropout import dropout
from model.kv_cache import KVCache
from model.LMConfig import LMConfig, config_for
from model.model import RMSNorm, Transformer
from model.moe import balance_loss
from model.rope import apply_rope, rope_table
from tests.oracles import stock_llama, stock_qwen2_moe, v1_rope

SMALL = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 300, "max_seq_len": 64}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = Transformer(LMConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():  # spread the weights, so that a wrong permutation or a dropped norm shows in the logits
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def ids_for(model, rows=2, length=32, seed=1):
    return torch.randint(3, model.cfg.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[False, True], ids=["dense", "moe"])
def model(request):
    return make(use_moe=request.param)


def test_default_has_minimind_parameter_count():
    assert Transformer(LMConfig()).n_params() == 26_878_464


def test_presets_have_the_stated_parameter_counts():
    with torch.device("meta"):
        counts = {name: Transformer(config_for(name)).n_params() for name in ("tiny", "small", "base", "moe")}
    assert counts["base"] == 108_749_568
    assert round(counts["moe"] / 1e6, 1) == 96.1
    assert 4.5e6 < counts["tiny"] < 5.6e6


@pytest.mark.parametrize("scaling", [None, "ntk:2", "yarn:4"])
def test_dense_logits_equal_stock_llama(scaling):
    ours = make(rope_scaling=scaling)
    ids = ids_for(ours, length=64)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock_llama(ours)(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm_topk", [True, False])
def test_moe_logits_equal_stock_qwen2_moe(norm_topk):
    ours = make(use_moe=True, norm_topk_prob=norm_topk)
    ids = ids_for(ours, length=64)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock_qwen2_moe(ours)(ids).logits, atol=1e-5, rtol=0)


def test_gradients_equal_stock_llama():
    ours = make().train()
    llama = stock_llama(ours)
    ids = ids_for(ours)
    ours(ids[:, :-1], ids[:, 1:]).loss.backward()
    (llama(ids, labels=ids).loss * ids[:, 1:].numel()).backward()
    theirs = llama.model.layers[1].mlp.down_proj.weight.grad
    torch.testing.assert_close(ours.layers[1].feed_forward.w2.weight.grad, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        ours.tok_embeddings.weight.grad, llama.model.embed_tokens.weight.grad, atol=1e-4, rtol=1e-4
    )


def test_parameter_names_are_minimind_v1s():
    names = set(make(use_moe=True).state_dict())
    assert {"tok_embeddings.weight", "norm.weight", "output.weight", "layers.0.attention_norm.weight"} <= names
    assert {f"layers.2.attention.{w}.weight" for w in ("wq", "wk", "wv", "wo")} <= names
    assert {f"layers.1.feed_forward.experts.3.{w}.weight" for w in ("w1", "w2", "w3")} <= names
    assert {"layers.0.feed_forward.gate.weight", "layers.0.feed_forward.shared_experts.w1.weight"} <= names
    assert not any("rope" in n or "freq" in n for n in names)


def test_no_position_sees_the_future():
    ours = make()
    a = ids_for(ours)
    b = a.clone()
    b[:, 20] = (b[:, 20] + 7) % 290 + 3
    with torch.no_grad():
        x, y = ours(a).logits, ours(b).logits
    assert torch.equal(x[:, :20], y[:, :20])
    assert not torch.equal(x[:, 20:], y[:, 20:])


def test_no_position_of_a_moe_sees_the_future():
    ours = make(use_moe=True)
    a = ids_for(ours)
    b = a.clone()
    b[:, 20] = (b[:, 20] + 7) % 290 + 3
    with torch.no_grad():
        # experts get groups of other sizes, so the matrix products may round differently; nothing more
        torch.testing.assert_close(ours(a).logits[:, :20], ours(b).logits[:, :20], atol=1e-6, rtol=0)


def test_cached_equals_uncached_and_chunked_prefill_equals_whole(model):
    ids = ids_for(model)
    with torch.no_grad():
        whole = model(ids).logits
        for sizes in ([32], [1] * 32, [5, 20, 1, 6]):
            cache = KVCache(model.cfg, batch=2)
            parts = [model(part, cache=cache).logits for part in ids.split(sizes, dim=1)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
            assert cache.length == 32


def test_batch_equals_single(model):
    ids = ids_for(model, rows=4)
    with torch.no_grad():
        together = model(ids).logits
        alone = torch.cat([model(row[None]).logits for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_interleaved_caches_never_touch(model):
    a, b = ids_for(model, rows=1, seed=2), ids_for(model, rows=1, seed=3)
    with torch.no_grad():
        caches = KVCache(model.cfg), KVCache(model.cfg)
        got = {0: [], 1: []}
        for t in range(16):
            for which, ids in enumerate((a, b)):
                got[which].append(model(ids[:, t : t + 1], cache=caches[which]).logits)
        for which, ids in enumerate((a, b)):
            torch.testing.assert_close(torch.cat(got[which], 1), model(ids[:, :16]).logits, atol=1e-5, rtol=0)


def test_forward_leaves_nothing_behind(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = set(vars(model))
    model.train()
    model(ids_for(model), ids_for(model))
    assert model.training and all(m.training for m in model.modules())
    assert set(vars(model)) == names
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_document_masks_give_each_document_its_own_logits(model):
    ids = ids_for(model, rows=1)
    docs = torch.tensor([[0] * 10 + [1] * 15 + [2] * 7])
    with torch.no_grad():
        packed = model(ids, docs=docs).logits
        alone = torch.cat([model(part).logits for part in ids.split([10, 15, 7], dim=1)], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


def test_written_out_attention_equals_the_fused_one():
    ids = ids_for(make())
    with torch.no_grad():
        for docs in (None, (torch.arange(32) // 11).expand(2, -1)):
            plain, fused = make(flash_attn=False)(ids, docs=docs).logits, make()(ids, docs=docs).logits
            torch.testing.assert_close(plain, fused, atol=1e-5, rtol=0)


@pytest.mark.parametrize("T", [150, BLOCKS_PAY_UP_TO + 6])  # more than two blocks; longer than blocks are used for
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_is_the_papers_formula_with_repeated_heads_and_so_are_its_gradients(fused, packed, T):
    q, k, v = (torch.randn(2, heads, T, 8, requires_grad=True) for heads in (6, 3, 3))
    docs = torch.randint(0, 4, (2, T)).sort().values
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    if packed:
        mask = (mask & (docs[:, :, None] == docs[:, None])).unsqueeze(1)
    expected = torch.zeros_like(q)
    for h in range(6):
        scores = q[:, h] @ k[:, h // 2].transpose(1, 2) / math.sqrt(8)
        allowed = mask[:, 0] if packed else mask
        expected[:, h] = torch.where(allowed, scores, float("-inf")).softmax(-1) @ v[:, h // 2]
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask if packed else None, 0.0, fused), expected)
    trained = attend(q, k, v, mask if packed else None, 0.0, fused)
    torch.testing.assert_close(trained, expected)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    torch.testing.assert_close(torch.autograd.grad(trained, (q, k, v), upstream), wanted, atol=1e-5, rtol=1e-4)


def test_dropped_attention_is_right_on_average_and_blocked_or_not():
    q, k, v = torch.randn(1, 2, 70, 8), torch.randn(1, 1, 70, 8), torch.randn(1, 1, 70, 8)
    whole = attend(q, k, v, None, 0.0, True)
    for fused in (True, False):
        mean = sum(attend(q.requires_grad_(), k, v, None, 0.3, fused).detach() for _ in range(2000)) / 2000
        torch.testing.assert_close(mean, whole, atol=0.12, rtol=0)


@pytest.mark.parametrize("shape", [(7,), (64, 1001)])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_zeroes_its_share_keeps_the_mean_and_passes_gradients_through_the_same_mask(shape, p):
    x = torch.rand(shape, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, p)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p), atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, kept)
    if x.numel() > 1000:  # six standard deviations
        assert abs((~kept).double().mean() - p) < 6 * (p * (1 - p) / x.numel()) ** 0.5
        neighbours = (kept[:, 1:] == kept[:, :-1]).double().mean()  # the four parts of a draw are independent
        assert abs(neighbours - (p**2 + (1 - p) ** 2)) < 0.01
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), y)
    assert x.numel() < 1000 or not torch.equal(dropout(x, p), y)
    assert dropout(x, p, training=False) is x and dropout(x, 0.0) is x


def test_rope_equals_v1s_complex_formula_and_depends_on_distance_only():
    cfg = LMConfig(**SMALL)
    cos, sin = rope_table(cfg, 64)
    x = torch.randn(2, 64, 4, cfg.head_dim)
    torch.testing.assert_close(apply_rope(x, cos, sin), v1_rope(x), atol=1e-5, rtol=1e-5)
    q, k = torch.randn(1, 1, 1, 16).expand(1, 64, 1, 16), torch.randn(1, 1, 1, 16).expand(1, 64, 1, 16)
    scores = (apply_rope(q, cos, sin) * apply_rope(k, cos, sin).roll(5, 1)).sum(-1)[0, 5:, 0]
    torch.testing.assert_close(scores, scores[:1].expand_as(scores), atol=1e-4, rtol=1e-4)


def test_rope_stays_fp32_when_the_model_is_cast():
    cast = make().to(torch.bfloat16)
    assert cast.rope_cos.dtype == torch.float32
    assert torch.equal(cast.rope_cos, make().rope_cos)
    assert cast(ids_for(cast)).logits.dtype == torch.bfloat16


def test_rms_norm_is_its_formula():
    norm, x = RMSNorm(8, 1e-5), torch.randn(3, 8)
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight)


def test_first_loss_is_near_ln_vocabulary_and_is_a_sum():
    torch.manual_seed(0)
    fresh = Transformer(LMConfig(**SMALL))
    ids = ids_for(fresh, rows=4)
    loss = fresh(ids[:, :-1], ids[:, 1:]).loss / ids[:, 1:].numel()
    assert abs(loss.item() - math.log(300)) < 0.1


def test_loss_skips_unscored_positions():
    ours, ids = make(), ids_for(make())
    targets = ids.roll(-1, 1).clone()
    targets[:, ::2] = -100
    out = ours(ids, targets)
    expected = F.cross_entropy(out.logits[:, 1::2].flatten(0, 1), targets[:, 1::2].flatten(), reduction="sum")
    torch.testing.assert_close(out.loss, expected)
    assert ours(ids, torch.full_like(ids, -100)).loss == 0


def test_last_only_gives_the_last_logits(model):
    ids = ids_for(model)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, last_only=True).logits, model(ids).logits[:, -1:], atol=1e-6, rtol=0)


def test_initial_weights_are_scaled_on_the_residual_outputs_only():
    torch.manual_seed(0)
    fresh = Transformer(LMConfig(dim=256, n_layers=8, n_heads=4, n_kv_heads=2, vocab_size=1000))
    std = {name: p.std().item() for name, p in fresh.named_parameters() if p.dim() == 2}
    for name, value in std.items():
        expected = 0.02 / math.sqrt(16) if name.endswith(("wo.weight", "w2.weight")) else 0.02
        assert value == pytest.approx(expected, rel=0.05), name


def test_dropout_acts_in_training_only():
    ours, ids = make(dropout=0.5), ids_for(make())
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, ours(ids).logits)
        ours.train()
        assert not torch.equal(ours(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_half_precision_autocast_stays_near_fp32_and_has_gradients(dtype, moe):
    ours = make(use_moe=moe).train()
    ids = ids_for(ours)
    exact = ours(ids, ids.roll(-1, 1)).loss
    with torch.autocast("cpu", dtype=dtype):
        out = ours(ids, ids.roll(-1, 1))
    assert out.loss.dtype == torch.float32
    assert abs(out.loss - exact) / exact < 0.02
    (out.loss + out.balance).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.no_cover
def test_compiled_equals_eager():
    ours, ids = make(max_seq_len=100), ids_for(make(), length=100)  # a whole block of queries and a part of one
    eager = ours(ids, ids).loss
    gradients = torch.autograd.grad(eager, list(ours.parameters()))
    ours.compile()
    compiled = ours(ids, ids).loss
    torch.testing.assert_close(compiled, eager, atol=1e-3, rtol=1e-5)
    for ours_now, before in zip(torch.autograd.grad(compiled, list(ours.parameters())), gradients):
        torch.testing.assert_close(ours_now, before, atol=1e-3, rtol=1e-4)
    assert all(layer._compiled_call_impl is not None for layer in ours.layers)
    assert not any(k.startswith("_orig_mod") for k in ours.state_dict())


# ---- experts -------------------------------------------------------------------------------------------------------
def test_balance_loss_is_one_when_even_and_rises_when_experts_are_preferred():
    B, T, E, k = 3, 8, 4, 2
    even = torch.full((B, T, E), 1 / E)
    chosen = torch.stack([torch.arange(T) % E, (torch.arange(T) + 1) % E], -1).expand(B, -1, -1)
    everyone = torch.ones(B, dtype=torch.bool)
    for per_sequence in (True, False):
        assert balance_loss(even, chosen, everyone, per_sequence) == pytest.approx(1.0)
        skewed = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(B, T, E)
        to_first = torch.zeros(B, T, k, dtype=torch.long)
        assert balance_loss(skewed, to_first, everyone, per_sequence) == pytest.approx(0.7 * E)


def test_balance_loss_equals_v1s_formula():
    B, T, E, k = 3, 16, 4, 2
    scores = torch.randn(B, T, E).softmax(-1)
    chosen = scores.topk(k, -1).indices
    everyone = torch.ones(B, dtype=torch.bool)
    counts = torch.zeros(B, E).scatter_add_(1, chosen.view(B, -1), torch.ones(B, T * k)).div_(T * k / E)
    torch.testing.assert_close(balance_loss(scores, chosen, everyone, True), (counts * scores.mean(1)).sum(1).mean())
    share = F.one_hot(chosen.flatten(), E).float().mean(0) * E
    torch.testing.assert_close(balance_loss(scores, chosen, everyone, False), (share * scores.mean((0, 1))).sum())


def test_rows_that_only_fill_a_batch_do_not_change_the_balance_loss():
    ours = make(use_moe=True)
    ids = ids_for(ours, rows=4)
    targets = ids.roll(-1, 1).clone()
    targets[2:] = -100
    torch.testing.assert_close(ours(ids, targets).balance, ours(ids[:2], targets[:2]).balance)


def test_routing_equals_every_expert_on_every_token():
    block = make(use_moe=True).layers[0].feed_forward
    x = torch.randn(2, 16, 64)
    y, _, load = block(x, torch.ones(2, dtype=torch.bool))
    scores = (x @ block.gate.weight.T).softmax(-1)
    weights, chosen = scores.topk(2, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    dense = sum(e(x) * (weights * (chosen == i)).sum(-1, keepdim=True) for i, e in enumerate(block.experts))
    torch.testing.assert_close(y, dense + block.shared_experts(x), atol=1e-5, rtol=1e-5)
    assert load.sum() == 2 * 16 * 2
    assert torch.equal(load, torch.bincount(chosen.flatten(), minlength=4))


def test_balance_loss_teaches_the_router_and_unused_experts_get_zero_gradients():
    ours = make(use_moe=True, n_routed_experts=8).train()
    ids = ids_for(ours, rows=1, length=2)  # 2 tokens x 2 experts: most experts see nothing
    ours(ids, ids).balance.backward(retain_graph=False)
    assert all(layer.feed_forward.gate.weight.grad.abs().sum() > 0 for layer in ours.layers)
    ours(ids, ids).loss.backward()
    assert all(p.grad is not None for p in ours.parameters())  # DDP waits for every parameter


# ---- what a person can get wrong -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"dim": 100, "n_heads": 16}, ["dim 100", "n_heads 16", "--n_heads 10"]),
        ({"n_heads": 16, "n_kv_heads": 5}, ["n_heads 16", "n_kv_heads 5"]),
        ({"dim": 48, "n_heads": 16, "n_kv_heads": 16}, ["head size 3"]),
        ({"dropout": 1.0}, ["dropout is 1.0"]),
        ({"n_layers": 0}, ["n_layers is 0"]),
        ({"use_moe": True, "num_experts_per_tok": 9}, ["num_experts_per_tok is 9", "4"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "yarn:FACTOR"]),
        ({"rope_scaling": "linear:2"}, ["linear:2"]),
        ({"scoring_func": "sigmoid"}, ["sigmoid"]),
    ],
)
def test_impossible_shapes_are_refused_by_name(shape, words):
    with pytest.raises(ValueError) as error:
        LMConfig(**shape)
    assert all(w in str(error.value) for w in words)


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="'big'.*tiny, small, base, moe"):
        config_for("big")


def test_too_long_a_text_names_both_numbers():
    ours = make()
    with pytest.raises(ValueError, match="65 positions.*max_seq_len 64"):
        ours(torch.ones(1, 65, dtype=torch.long))
    cache = KVCache(ours.cfg, capacity=8)
    ours(torch.ones(1, 6, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match=r"holds 8 positions; 6 \+ 3"):
        ours(torch.ones(1, 3, dtype=torch.long), cache=cache)


def test_a_cache_of_another_batch_size_is_refused():
    ours = make()
    with pytest.raises(ValueError, match="1 sequences, not 2"):
        ours(torch.ones(2, 3, dtype=torch.long), cache=KVCache(ours.cfg, batch=1))


def test_documents_and_cache_exclude_each_other():
    ours = make()
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="docs and cache"):
        ours(ids, docs=ids, cache=KVCache(ours.cfg))


@pytest.mark.parametrize("kind", ["plain", "docs", "cache", "tree"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_reading_a_few_positions_gives_what_reading_all_gives(kind, moe):
    from model.tree import lay_out

    torch.manual_seed(5)
    model = Transformer(
        LMConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=99, max_seq_len=32, use_moe=moe)
    )
    model.eval()
    ids, tree = lay_out([[1, 2, 3, 4], [5, 6, 7]], [[[8, 9], [10, 11, 12]], [[13, 14]]], padding_id=0)
    given = {"docs": {"docs": (torch.arange(9) // 4).expand(2, 9)}, "tree": {"tree": tree}}.get(kind, {})
    at = torch.tensor([[8, 0, 3], [4, 4, 2]])

    def states(**more):
        cache = None
        if kind == "cache":
            cache = KVCache(model.cfg, 2)
            model.states(torch.tensor([[20, 21, 22], [23, 24, 25]]), cache=cache)
        return model.states(ids, cache=cache, **given, **more)[0]

    assert torch.allclose(states(at=at), states()[torch.arange(2)[:, None], at], atol=1e-5)
