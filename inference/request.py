"""A text that somebody waits for, and what they are told while it is written."""

import random
from typing import NamedTuple


class Token(NamedTuple):
    """An id that was written.

    Attributes:
        id: the id.
        logprob: its log-probability in nats by the model, before penalties, temperature and limits.
        top: the likeliest ids with their log-probabilities, as many as were asked for.
    """

    id: int
    logprob: float
    top: list


class Event(NamedTuple):
    """What a request is told after a step.

    Attributes:
        text: what is certain of the text by now and was not told before.
        tokens: (characters before it, Token) of the ids in that text; empty unless log-probabilities were asked for.
        finish: None, or why it ended: stop, length, cancelled, error. Nothing follows then.
        written: ids written so far, the one that ended it not counted.
    """

    text: str
    tokens: list
    finish: str | None
    written: int


class Request:
    """A text that the Engine continues.

    Args:
        ids: the prompt, at least one id.
        sampling: Sampling.
        tell: called with each Event, in the engine's thread.
        top_logprobs: None, or how many likely ids are told besides the chosen one.
    """

    def __init__(self, ids, sampling, tell, top_logprobs=None):
        self.ids, self.sampling, self.tell, self.top_logprobs = list(ids), sampling, tell, top_logprobs
        self.text = list(ids)
        self.stream = None  # the Engine's, which knows the tokenizer
        self.cancelled = False
        self.random = random.Random(sampling.seed)  # of its own, whoever else is served

    @property
    def written(self):
        """Number of ids written so far."""
        return len(self.text) - len(self.ids)
