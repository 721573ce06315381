"""Fixtures that many tests share."""

import contextlib

import pytest
import torch

SENTENCES = [
    "春天来了，小河边的柳树发了芽，孩子们在草地上放风筝。",
    "老师说：学而不思则罔，思而不学则殆。你明白了吗？",
    "北京到上海的高铁每天有几十班，最快的只要四个多小时。",
    "The quick brown fox jumps over the lazy dog, then sleeps.",
    "for i in range(10):\n    print(i, end=' ')\n",
    "今天气温 23 度，明天 19 度，后天有小雨。",
]

# Coverage is asked of model/ and trainer/. Its tracer makes Python 1.5 to 3 times as slow, so only their tests bear it.
TRACED = set(
    "chat checkpoint engine guard history inference likelihood lora memory metrics model moe optim packing parallel "
    "preference reference sampler settings sharing signals stages training".split()
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") not in TRACED:
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """A folder with the tokenizer.json of a tiny byte-level BPE: about 300 ids, built like the project's own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    """That tokenizer, opened as the scripts do."""
    from model.chat import load_tokenizer

    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def small_files():
    """A context in which the operating system refuses to let any file grow beyond so many bytes."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def one_thread():
    """Small matrices run faster on one thread, and sums come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scorer(tmp_path_factory):
    """A scorer that prefers texts about rivers to texts of digits."""
    from cleaning.quality import QualitySettings, train
    from tests.corpora import sentences
    from tests.test_data_process import save

    folder = tmp_path_factory.mktemp("scorer")
    good, raw = sentences(150, 11), [f"{i * 7919} {i * 104729}: " + "0123 9876 " * 9 for i in range(150)]
    save(folder / "good.jsonl", good)
    save(folder / "raw.jsonl", raw)
    train(QualitySettings(good=[str(folder / "good.jsonl")], raw=[str(folder / "raw.jsonl")], output=f"{folder}/q.npz"))
    return folder
