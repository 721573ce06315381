"""How sure a score is: intervals and tests, from scipy, whose import takes longer than most of what is asked here."""

import numpy as np

CONFIDENCE, RESAMPLES = 0.95, 10_000


def wilson(right, n):
    """95 % interval of a share: (low, high); (0, 1) of nothing. Source: Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    from scipy import stats

    interval = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def p_of_guessing(right, n, chance=0.25):
    """Two-sided exact p-value of `right` or something rarer under guessing (binomial test)."""
    from scipy import stats

    return float(stats.binomtest(right, n, chance).pvalue)


def macro_interval(accuracies, seed=0):
    """95 % percentile interval of the mean over subjects, drawn with replacement: (low, high)."""
    values = np.asarray(accuracies, dtype=float)
    if len(values) < 2:
        return 0.0, 1.0
    from scipy import stats

    rng = np.random.default_rng(seed)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=rng
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(only_first, only_second):
    """Exact p-value that two models of the same questions differ by luck alone. Source: McNemar 1947.

    Args:
        only_first, only_second: questions that one of them has right and the other wrong.
    """
    from scipy import stats

    n = only_first + only_second
    return float(stats.binomtest(only_first, n).pvalue) if n else 1.0
