"""Two servers for all tests of the API: one as people run it, one whose texts never end."""

import openai
import pytest
import torch

from model.chat import ChatTokenizer
from tests.api.serving import KEY, served
from tests.test_engine import large


@pytest.fixture(scope="module")
def model(tokenizer):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield large(tokenizer.vocab_size, context=512)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def service(model, tokenizer):
    with served(model, tokenizer, max_tokens=200, max_body=100_000, slots=32, queue=8, body_seconds=1.5) as service:
        yield service


@pytest.fixture(scope="module")
def endless(model, tokenizer_dir):
    """A server whose texts do not end: 2 slots, 1 place in the queue, a key, one foreign origin."""
    tokenizer = ChatTokenizer(tokenizer_dir)
    tokenizer.eos_id = tokenizer.vocab_size  # no token ends a text
    limits = {"slots": 2, "queue": 1, "max_tokens": 10**6, "overflow": "slide"}
    with served(model, tokenizer, **limits, api_key=KEY, cors="https://example.org") as service:
        yield service


@pytest.fixture
def client(service):
    with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client
