"""Scores → probabilities that can be taken at their word: of the texts called 80 % good, 80 % are."""

import numpy as np

from cleaning.ngrams import library


def calibrate(logits, classes, weights):
    """The scale and the shifts that make softmax(scale · logits + shifts) fit texts the classifier has not learnt from.

    Args:
        logits: (N, K - 1) for K = 2, else (N, K); see cleaning.scorer.probabilities_of.
        classes: (N,) int, 0 to K - 1, each present.
        weights: (N,) how much each text counts.
    Returns:
        (scale >= 0, shifts), one shift per column of `logits`. For two classes this is Platt's method, the targets
        included, and gives what scikit-learn's CalibratedClassifierCV gives with method="sigmoid"; for more it is
        temperature scaling with a shift per class. Scale and shifts go into the weights, so applying stays one product.
    Source: Platt 1999, "Probabilistic outputs for support vector machines"; Guo et al. 2017, arXiv:1706.04599.
    """
    special, optimize = library("scipy.special"), library("scipy.optimize")
    pair = logits.shape[1] == 1
    K = 2 if pair else logits.shape[1]
    # A class of n texts asks for (n + 1) / (n + 2) instead of 1: without it a set that is told apart perfectly would
    # drive the scale to infinity.
    mass = np.bincount(classes, weights=weights, minlength=K)
    targets = np.full((K, K), 1 / (K - 1)) / (mass + 2)[:, None]
    np.fill_diagonal(targets, (mass + 1) / (mass + 2))
    wanted, total = targets[classes], weights.sum()
    zero = np.zeros((len(logits), 1))

    def loss(parameters):
        """(mean cross-entropy in nats, its gradient); convex, so there is one minimum."""
        z = parameters[0] * logits + parameters[1:]
        log_p = special.log_softmax(np.hstack([zero, z]) if pair else z, axis=1)
        slope = weights[:, None] * (np.exp(log_p) - wanted) / total
        slope = slope[:, 1:] if pair else slope
        return (
            -(weights[:, None] * wanted * log_p).sum() / total,
            np.concatenate([[(slope * logits).sum()], slope.sum(axis=0)]),
        )

    # a scale below 0 would turn a classifier that has learnt nothing upside down
    bounds = [(0, None)] + [(None, None)] * logits.shape[1]
    start = np.concatenate([[1.0], np.zeros(logits.shape[1])])
    found = optimize.minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15})
    return found.x[0], found.x[1:]
