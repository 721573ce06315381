"""Preference losses against trl and the papers, log-probs against a loop, and the reference kept on the disk."""

import math

import numpy as np
import pytest
import torch

from model.batch import collate_pairs
from model.chat import DEFAULT_TOKENIZER
from model.dataset import DPODataset
from model.labels import IGNORE
from model.LMConfig import LMConfig
from model.model import Transformer
from tests.oracles import stock_llama
from tests.test_chat import turns_of, write
from trainer.config import PreferenceConfig
from trainer.preference import (
    dpo_loss,
    ipo_loss,
    log_probs,
    orpo_loss,
    preference_loss,
    reference_log_probs,
    simpo_loss,
)
from trainer.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 160}


def transformer(tokenizer, seed, **shape):
    torch.manual_seed(seed)
    model = Transformer(LMConfig(**{**SHAPE, **shape}, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far from uniform, so that log-probs differ
    return model


@pytest.fixture(scope="module")
def dataset(tokenizer, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    words = ["春天", "北京", "好", "天气", "上海", "我"]
    sentence = lambda n: "".join(rng.choice(words, rng.integers(1, n)))  # noqa: E731
    records = [
        {"conversations": turns_of([sentence(4)]), "chosen": sentence(6) + "甲", "rejected": sentence(3) + "乙"}
        for _ in range(24)
    ]
    return DPODataset(write(folder / "a.jsonl", records), SHAPE["max_seq_len"], tokenizer, folder)


def side_log_probs(model, dataset, row, side):
    """Log-probs of each answer of one row, each document run through the model alone."""
    sums, counts = [], []
    for entry in dataset._entries(row):
        start, length = entry[2 * side : 2 * side + 2]
        ids = torch.from_numpy(dataset.ids[start : start + length].astype(np.int64))
        scored = torch.from_numpy(dataset.labels[start : start + length] != IGNORE)[1:]
        chosen = model(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        sums.append(chosen[scored].sum())
        counts.append(scored.sum())
    return torch.stack(sums), torch.stack(counts)


# ---- formulas ------------------------------------------------------------------------------------------------------
def test_dpo_is_log_2_while_the_policy_is_the_reference():
    x = -torch.rand(2, 50) * 30
    assert torch.allclose(dpo_loss(x, x, 0.3), torch.full((50,), math.log(2)))
    assert torch.allclose(dpo_loss(x, x, 0.3, 0.2), torch.full((50,), math.log(2)))


def test_the_formulas_are_those_of_the_papers():
    rng = np.random.default_rng(0)
    policy, reference = -rng.uniform(0.05, 4, (2, 2, 40))
    w, l = policy
    rw, rl = reference
    sigma = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    beta, gamma, eps = 0.7, 0.4, 0.1
    log_ratio = np.log((np.exp(w) / np.exp(rw)) / (np.exp(l) / np.exp(rl)))
    odds = lambda x: np.exp(x) / (1 - np.exp(x))  # noqa: E731
    expected = {
        "dpo": -np.log(sigma(beta * log_ratio)),
        "cdpo": -(1 - eps) * np.log(sigma(beta * log_ratio)) - eps * np.log(sigma(-beta * log_ratio)),
        "ipo": (log_ratio - 1 / (2 * beta)) ** 2,
        "simpo": -np.log(sigma(beta * w - beta * l - gamma)),
        "orpo": -w - beta * np.log(sigma(np.log(odds(w) / odds(l)))),
    }
    p, r = torch.from_numpy(policy), torch.from_numpy(reference)
    found = {
        "dpo": dpo_loss(p, r, beta),
        "cdpo": dpo_loss(p, r, beta, eps),
        "ipo": ipo_loss(p, r, beta),
        "simpo": simpo_loss(p, beta, gamma),
        "orpo": orpo_loss(p, beta),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-9, err_msg=name)


def test_orpo_survives_a_certain_answer():
    p = torch.tensor([[-1e-9, 0.0], [-2.0, -3.0]], requires_grad=True)
    orpo_loss(p, 0.1).sum().backward()
    assert p.grad.isfinite().all()


# ---- log-probs -----------------------------------------------------------------------------------------------------
def test_packed_log_probs_are_those_of_each_answer_alone(tokenizer, dataset):
    model = transformer(tokenizer, 1)
    with torch.no_grad():
        batch = collate_pairs([dataset[i] for i in range(len(dataset))])
        logits = model(batch.ids, docs=batch.docs).logits
        sums, counts = log_probs(logits, batch.labels, batch.docs, dataset.most_pairs)
        for row in range(len(dataset)):
            for side in (0, 1):
                alone, lengths = side_log_probs(model, dataset, row, side)
                n = len(alone)
                assert (sums[row + side * len(dataset), :n] - alone).abs().max() < 1e-4
                assert counts[row + side * len(dataset), :n].tolist() == lengths.tolist()
                assert not sums[row + side * len(dataset), n:].any()
    assert dataset.most_pairs > 1  # or nothing is packed


@pytest.mark.parametrize(
    ("loss", "trl_loss", "extra"),
    [
        ("sigmoid", "sigmoid", {}),
        ("sigmoid", "sigmoid_norm", {"length_normalised": True}),
        ("ipo", "ipo", {}),
    ],
    ids=["sigmoid", "length-normalised", "ipo"],
)
def test_loss_and_gradient_are_trls(tokenizer, dataset, tmp_path, loss, trl_loss, extra):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = transformer(tokenizer, 1), transformer(tokenizer, 2)
    cfg = PreferenceConfig(loss=loss, beta=0.3, **extra)
    dataset.reference = reference_log_probs(reference, dataset, CPU, 4, tmp_path)
    batch = collate_pairs([dataset[i] for i in range(len(dataset))])
    dataset.reference = None
    ours = preference_loss(policy, batch, cfg)
    (ours.loss / batch.units).backward()

    entries = [dataset._entries(row) for row in range(len(dataset))]
    spans = [(e[2 * side], e[2 * side + 1]) for side in (0, 1) for row in entries for e in row]
    longest = max(length for _, length in spans)
    ids = torch.zeros(len(spans), longest, dtype=torch.long)
    mask, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (start, length) in enumerate(spans):
        ids[i, :length] = torch.from_numpy(dataset.ids[start : start + length].astype(np.int64))
        mask[i, :length] = 1
        completion[i, :length] = torch.from_numpy((dataset.labels[start : start + length] != IGNORE).astype(np.int64))
    from transformers import AutoTokenizer

    theirs = stock_llama(policy)
    trainer = DPOTrainer(
        theirs,
        stock_llama(reference),
        DPOConfig(
            str(tmp_path),
            loss_type=trl_loss,
            beta=0.3,
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            disable_dropout=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(DEFAULT_TOKENIZER),
    )
    theirs.train()
    expected = trainer._compute_loss(
        theirs, {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}, False
    )
    expected.backward()
    assert ours.loss.item() / batch.units == pytest.approx(expected.item(), abs=1e-5)
    for name, stock in (
        ("tok_embeddings", theirs.model.embed_tokens),
        ("layers.0.feed_forward.w2", theirs.model.layers[0].mlp.down_proj),
        ("layers.1.attention.wv", theirs.model.layers[1].self_attn.v_proj),
    ):
        own = policy.get_submodule(name).weight.grad
        assert (own - stock.weight.grad).abs().max() < 1e-5 and own.abs().max() > 1e-3, name
    rewards = trainer._metrics["train"]
    if loss == "sigmoid" and not extra:
        assert ours.facts["margin"].item() / batch.units == pytest.approx(rewards["rewards/margins"][0], abs=1e-4)
        assert ours.facts["accuracy"].item() / batch.units == pytest.approx(rewards["rewards/accuracies"][0], abs=1e-6)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_reference_free_losses_use_log_probs_per_token(tokenizer, dataset, loss):
    model, cfg = transformer(tokenizer, 1), PreferenceConfig(loss=loss)
    batch = collate_pairs([dataset[i] for i in range(len(dataset))])
    means = [[], []]
    for row in range(len(dataset)):
        for side in (0, 1):
            sums, counts = side_log_probs(model, dataset, row, side)
            means[side].append(sums / counts)
    means = torch.stack([torch.cat(side) for side in means])
    expected = simpo_loss(means, 2.0, 1.0) if loss == "simpo" else orpo_loss(means, 0.1)
    assert preference_loss(model, batch, cfg).loss.item() == pytest.approx(expected.sum().item(), rel=1e-5)


def test_the_reference_is_computed_once_and_belongs_to_its_weights_and_data(tokenizer, dataset, tmp_path):
    model = transformer(tokenizer, 1)
    first = reference_log_probs(model, dataset, CPU, 3, tmp_path)
    [file] = tmp_path.glob("reference_*.npy")
    stamp = file.stat().st_mtime_ns
    again = reference_log_probs(model, dataset, CPU, 5, tmp_path)
    assert np.array_equal(first, again) and file.stat().st_mtime_ns == stamp
    reference_log_probs(transformer(tokenizer, 2), dataset, CPU, 3, tmp_path)
    assert len(list(tmp_path.glob("reference_*.npy"))) == 2
    dataset.reference = first
    batch = collate_pairs([dataset[i] for i in range(len(dataset))])
    dataset.reference = None
    start = preference_loss(model, batch, PreferenceConfig())
    assert start.loss.item() / batch.units == pytest.approx(math.log(2), abs=1e-5)
    assert abs(start.facts["margin"].item()) / batch.units < 1e-4
    assert (batch.labels != IGNORE).sum() > batch.units  # or nothing was scored


def test_a_gpu_that_is_too_small_for_the_reference_is_told_with_the_flag_that_helps(tokenizer, dataset, tmp_path):
    model = transformer(tokenizer, 1)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(full)
    with pytest.raises(MemoryError, match="cpu is too small for --batch_size 3"):
        reference_log_probs(model, dataset, CPU, 3, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("beta", 0), ("beta", -1), ("label_smoothing", 0.5), ("rank", 0), ("lora_dropout", 1), ("doc_mask", False)],
        *[("beta", math.inf), ("alpha", math.nan), ("gamma", math.nan), ("targets", " "), ("loss", "dpo")],
    ],
)
def test_impossible_preferences_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"--{field} "):
        PreferenceConfig(**{field: value})
