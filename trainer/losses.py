"""What the stages minimise. Each loss takes a model and a Batch and returns sums, never means.

The loop divides by the scored tokens (and rows) of the whole global step, so that any split into micro-batches and
ranks gives the same gradient.
"""


def language_model_loss(model, batch, doc_mask=False):
    """Next-token prediction: pretraining and supervised fine-tuning.

    Args:
        model: called as model(ids, targets, docs=…) → Output.
        batch: a Batch (B, T).
        doc_mask: packed documents cannot see each other.
    Returns:
        loss: 0-d sum of nats over the batch's `units` scored tokens.
        balance: 0-d balance loss, mean over its rows.
        load: (L, E) tokens per expert.
    """
    out = model(batch.ids, batch.labels, docs=batch.docs if doc_mask else None)
    return out.loss, out.balance, out.load
