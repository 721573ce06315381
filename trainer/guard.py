"""What happens after a step that went wrong: which steps those are, and how a run gets past them unattended.

A loss or gradient that is not finite never moves the weights; that step's data is skipped. Weights that are not finite,
or a loss that leapt up and stays there, cannot be mended by going on: the run returns to the newest saved state from
before, and leaves out the data that it met since the trouble began. (Chowdhery et al. 2022, arXiv:2204.02311, section
5.1, do the same by hand.) Everything is decided from numbers that all ranks share, so all ranks decide alike.
"""

import math
import statistics

from trainer import parallel

WINDOW, ENOUGH = 100, 20  # losses that a leap is judged by, and how many are needed to judge
SIGMAS, LEAP = 8.0, 0.5  # a leap is this many standard deviations, and at least this many nats, above the median
LASTING = 5  # losses in a row: a single odd batch says nothing about the weights
MOST_RETURNS = 10  # then the settings are at fault, not the data


class BadStep(FloatingPointError):
    """A step whose loss or gradient is not finite; nothing has moved but, in fp16, the factor of the loss."""


class LeapDetector:
    """Notices when the loss has leapt up and stays there. Its state is a plain dict, saved with the run."""

    def __init__(self, state=None):
        state = state or {"usual": [], "high": 0}
        self.usual, self.high = list(state["usual"]), state["high"]

    def state(self):
        """What LeapDetector(state) goes on from."""
        return {"usual": list(self.usual), "high": self.high}

    def began(self, at, noted):
        """The step (0-based) whose data began the trouble that was met at step `at`, whose loss is `noted` or not.

        A loss is measured before its step moves the weights, so a first high loss points to the step before it.
        """
        earlier = self.high - noted  # high losses before that of `at`
        return max(0, at - earlier - 1) if self.high else at

    def note(self, loss):
        """Takes in the loss of a step; returns how many steps ago a leap began that has now lasted, 0 for none."""
        if len(self.usual) >= ENOUGH:
            middle = statistics.median(self.usual)
            # the median distance from the median is 0.6745 standard deviations of a normal distribution
            spread = statistics.median(abs(x - middle) for x in self.usual) / 0.6745
            if loss - middle > max(SIGMAS * spread, LEAP):
                self.high += 1
                return self.high if self.high >= LASTING else 0
        self.high = 0
        self.usual = [*self.usual, loss][-WINDOW:]
        return 0


def get_past(run, trouble, first, last, moved):
    """Brings a run past the steps `first` to `last` (0-based), which went wrong: their data is not used again.

    Args:
        run: a Run whose progress stands one or two steps behind `last`.
        trouble: what went wrong, for the log.
        moved: the step `last` moved the weights.
    Returns:
        (whether the run went back to a saved state, the line for the screen).
    Raises:
        FloatingPointError: the settings say stop, it happened too often, or weights that are no numbers cannot be
            replaced by saved ones.
    """
    returns, known = run.progress.returns + 1, run.progress.skip
    kept = f"the checkpoint {run.path} is kept" if run.path.exists() else "nothing had been saved yet"
    advice = f"{kept}. Try a lower --learning_rate, --dtype float32, or look at those rows"
    if run.cfg.on_bad_step == "stop":
        raise FloatingPointError(f"{trouble}; {advice}")
    if returns > MOST_RETURNS:
        raise FloatingPointError(f"{trouble}: bad step {returns} of the run, so its settings are at fault; {advice}")
    (harmed,) = parallel.summed([not parallel.finite(run.model.state_dict())], run.runtime)  # on any rank
    back = bool(harmed or first < last or moved) and run.go_back(first)
    if harmed and not back:
        raise FloatingPointError(f"{trouble}. There is no saved state from before it, see --save_interval; {advice}")
    if not back:  # nothing was saved before: what can be left out is the step that has not been taken
        first = last if not moved else last + 1
    run.progress.skip = sorted({*known, *range(first, last + 1)})
    run.progress.returns = returns
    done = f"back to the state of step {run.progress.step}" if back else "going on"
    steps = f"step {first + 1}" if first == last else f"steps {first + 1} to {last + 1}"
    without = f" without the data of {steps}" if first <= last else ", no state from before it was saved"
    return back, f"bad step  {trouble}; {done}{without} ({returns} of at most {MOST_RETURNS})"


def describe_bad(at, mean, norm, losses, rows):
    """The words about a loss or gradient that is not finite, naming step and data: those of its micro-batches."""
    bad = [row for loss, own in zip(losses, rows) if not math.isfinite(loss) for row in own]
    where = f"rows {bad[:8]} of the training data" if bad else "another rank's rows, or the gradient alone"
    return f"step {at + 1}: loss {mean}, gradient norm {norm}; seen in {where}"
