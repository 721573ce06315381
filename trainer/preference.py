"""Learning from pairs of answers: DPO, IPO, SimPO, ORPO, each beside its formula.

Shapes: N pairs; row 0 of a (2, N) tensor is the chosen answer, row 1 the rejected one. Log-probs are in nats.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from model.batch import collate_pairs
from model.chat_data import chunks
from model.files import save_array
from model.labels import IGNORE
from model.lora import weights_fingerprint
from trainer import parallel
from trainer.losses import Losses

REFERENCE_FREE = ("simpo", "orpo")


def log_probs(logits, labels, docs, most):
    """Log-probability of each document's scored ids.

    Args:
        logits: (R, T, V); labels, docs: (R, T), IGNORE and document numbers; most: M, the documents a row may hold.
    Returns:
        sums: (R, M) nats; counts: (R, M) scored ids; both 0 where there is no document.
    """
    token = -F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    token, at = token.view_as(labels), docs.clamp(min=0)  # padding is not scored, so document 0 gains nothing from it
    zeros = token.new_zeros(len(labels), most)
    return zeros.scatter_add(1, at, token), zeros.scatter_add(1, at, (labels != IGNORE).float())


def dpo_loss(policy, reference, beta, label_smoothing=0.0):
    """Direct preference loss, one value per pair.

    Args:
        policy, reference: (2, N) log-probs of the answers.
        beta: how far the policy may move from the reference; larger is tighter.
        label_smoothing: chance that a pair is labelled the wrong way round (conservative DPO).
    Returns:
        (N,) losses >= 0; exactly log 2 while policy == reference.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    chosen, rejected = policy - reference
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo_loss(policy, reference, beta):
    """Identity preference loss: the margin is drawn to 1 / (2 beta) instead of to infinity; (N,).

    Args:
        policy, reference: (2, N) log-probs per token (the mean over each answer), as the authors meant them.
        beta: tau of the paper.
    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    chosen, rejected = policy - reference
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def simpo_loss(policy, beta, gamma):
    """Simple preference loss, without a reference; (N,).

    Args:
        policy: (2, N) log-probs per token.
        beta: scale of the reward; gamma: margin by which the chosen answer should win.
    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    chosen, rejected = beta * policy
    return -F.logsigmoid(chosen - rejected - gamma)


def orpo_loss(policy, beta):
    """Odds-ratio preference loss: likelihood of the chosen answer, and its odds against the rejected; (N,).

    Args:
        policy: (2, N) log-probs per token, each < 0.
        beta: weight of the odds ratio, lambda of the paper.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    """
    odds = policy - torch.log1p(-torch.exp(policy.clamp(max=-1e-6)))  # log(p / (1 - p))
    return -policy[0] - beta * F.logsigmoid(odds[0] - odds[1])


def preference_loss(model, batch, cfg):
    """The loss of cfg.loss over a PairBatch.

    Args:
        model: called as model(ids, docs=…, counted=…) → Output.
        batch: a PairBatch of 2 B rows.
        cfg: has loss, beta, gamma, label_smoothing, length_normalised.
    Returns:
        Losses; the facts are sums over the pairs: rewards (nats), margin, accuracy (a tie counts one half), and
        prefers, how often the chosen answer is the likelier one.
    """
    out = model(batch.ids, docs=batch.docs, counted=(batch.labels != IGNORE).any(1))
    most = batch.reference.shape[1] * 2 // len(batch.ids)
    sums, counts = log_probs(out.logits, batch.labels, batch.docs, most)
    sums, counts = (x.view(2, -1)[:, batch.pairs] for x in (sums, counts))  # (2, N)
    reference = batch.reference[:, batch.pairs]
    means, reference_means = sums / counts, reference / counts
    if cfg.loss == "sigmoid":
        policy, reference = (means, reference_means) if cfg.length_normalised else (sums, reference)
        losses = dpo_loss(policy, reference, cfg.beta, cfg.label_smoothing)
        rewards = cfg.beta * (policy - reference)
    elif cfg.loss == "ipo":
        losses = ipo_loss(means, reference_means, cfg.beta)
        rewards = cfg.beta * (means - reference_means)
    else:
        losses = simpo_loss(means, cfg.beta, cfg.gamma) if cfg.loss == "simpo" else orpo_loss(means, cfg.beta)
        rewards = cfg.beta * means
    return Losses(losses.sum(), out.balance, out.load, preference_facts(rewards.detach(), sums.detach()))


def preference_facts(rewards, sums):
    """Sums over pairs for the log, from (2, N) rewards and summed log-probs."""
    wins = lambda x: ((x[0] > x[1]).float() + 0.5 * (x[0] == x[1]).float()).sum()  # noqa: E731
    return {
        "chosen_reward": rewards[0].sum(),
        "rejected_reward": rewards[1].sum(),
        "margin": (rewards[0] - rewards[1]).sum(),
        "accuracy": wins(rewards),
        "prefers": wins(sums),
    }


@torch.no_grad()
def reference_log_probs(model, dataset, runtime, batch_size, cache_dir):
    """Summed log-probs of every answer under `model`, computed once and kept on the disk.

    The reference model is then needed no more, which halves the memory of training.

    Args:
        model: the reference, which is the policy before its first step.
        dataset: a DPODataset.
        runtime: of this rank; each scores its share of the rows, and every rank must call this.
        batch_size: pair rows at once.
        cache_dir: where the table is kept; its name tells the weights, the data and the number format.
    Returns:
        (rows, 2, M) float32, memory-mapped.
    """
    dtype = str(runtime.dtype).removeprefix("torch.")
    file = Path(cache_dir, f"reference_{weights_fingerprint(model)}_{dataset.key}_{dtype}.npy")
    if any(parallel.summed([not file.is_file()], runtime)):  # one answer for all ranks, whatever each of them sees
        runtime.say(f"reference {len(dataset):,} rows of pairs are scored once, then kept in {file}")
        table = parallel.added_up(score_rows(model, dataset, runtime, batch_size), runtime)
        with parallel.main_first(runtime):
            if runtime.is_main:
                save_array(file, table.numpy())
    return np.load(file, mmap_mode="r")


def score_rows(model, dataset, runtime, batch_size):
    """(rows, 2, M) float32 log-probs of this rank's rows of a DPODataset, every world-th; 0 for those of the others."""
    table = torch.zeros(len(dataset), 2, dataset.most_pairs)
    own = range(runtime.rank, len(dataset), runtime.world)
    loader = DataLoader(dataset, batch_sampler=list(chunks(own, batch_size)), collate_fn=collate_pairs)
    was_training = model.training
    model.to(runtime.device).eval()
    for batch in progress(loader, runtime):
        rows = batch.rows
        batch = batch.to(runtime.device)
        with runtime.memory_for(batch_size), runtime.autocast():
            logits = model(batch.ids, docs=batch.docs).logits
        sums, _ = log_probs(logits, batch.labels, batch.docs, dataset.most_pairs)  # (2 B, M)
        table[rows] = sums.view(2, -1, dataset.most_pairs).transpose(0, 1).cpu()
    model.train(was_training)
    return table


def progress(loader, runtime):
    """A bar on a terminal, elsewhere a line every minute; on the main rank."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(loader, desc="reference", disable=not runtime.is_main)
    return lines_of_progress(loader, runtime)


def lines_of_progress(loader, runtime):
    """Yields the batches of `loader`; says every minute how many have been scored."""
    told = time.monotonic()
    for number, batch in enumerate(loader):
        if time.monotonic() - told > 60:
            told = time.monotonic()
            runtime.say(f"reference {number / len(loader):.0%} scored")
        yield batch
