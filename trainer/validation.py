"""The loss on held-out rows, while a model is trained."""

import contextlib
import math

import torch
from torch.utils.data import DataLoader

from model.labels import IGNORE
from trainer import parallel
from trainer.runtime import Interrupted
from trainer.sampler import RowOrder, StepSampler


@torch.no_grad()
def validate(run, stop=None):
    """The stage's loss over at most eval_batches batches of held-out rows, for the log; None without such rows.

    Raises:
        Interrupted: a signal was received.
    """
    if run.data.val is None:
        return None
    cfg, runtime = run.cfg, run.runtime
    order = RowOrder(run.data.val_rows, cfg.batch_size, 1, cfg.seed, runtime.rank, runtime.world)
    count = min(order.steps_per_epoch, max(1, cfg.eval_batches // runtime.world))
    bytes_of = torch.from_numpy(run.tokenizer.token_bytes)
    totals, facts = [0.0, 0, 0], {}
    run.model.eval()
    with run.shown_weights(), restored(run.model):
        for batch in DataLoader(run.data.val, batch_sampler=StepSampler(order, 0, count), collate_fn=run.data.collate):
            if stop is not None and parallel.asked_to_stop(stop, runtime):
                raise Interrupted
            with runtime.memory_for(cfg.batch_size), runtime.autocast():
                loss, _, _, found = run.loss_fn(run.model, batch.to(runtime.device))
            scored = int(bytes_of[batch.labels[batch.labels != IGNORE]].sum())
            totals = [x + y for x, y in zip(totals, (loss.item(), batch.units, scored))]
            facts = {name: facts.get(name, 0.0) + value.item() for name, value in found.items()}
    nats, units, text_bytes, *facts_summed = parallel.summed([*totals, *facts.values()], runtime)
    run.progress.val_loss, run.progress.val_step = nats / units, run.progress.step
    measured = {"val_loss": run.progress.val_loss}
    if not facts:  # a loss over tokens: the same text, counted in what does not depend on the tokenizer
        run.progress.val_bits_per_byte = nats / math.log(2) / max(text_bytes, 1)
        measured["val_bits_per_byte"] = run.progress.val_bits_per_byte
    run.progress.val_facts = {f"val_{name}": x / units for name, x in zip(facts, facts_summed)}
    return measured | run.progress.val_facts


@contextlib.contextmanager
def restored(model):
    """A context behind which a model that was validated is ready to be trained again, however it was left."""
    try:
        yield
    finally:
        parallel.reshard(model)
        model.train()
