"""The tokenizer: text → ids and back, so that what a person types can never become a control token.

The file format is Hugging Face's `tokenizer.json`; stock `AutoTokenizer` loads the same folder.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

UNK, BOS, EOS = "<unk>", "<s>", "</s>"  # ids 0, 1, 2, in every tokenizer of this project
DEFAULT_TOKENIZER = Path(__file__).parent / "minimind_tokenizer"


class ChatTokenizer:
    """A byte-level BPE vocabulary with one BOS and one EOS.

    Attributes:
        vocab_size: V; every id is in [0, V).
        bos_id, eos_id: ids of <s> and </s>.
        hash: first 16 hex digits of the SHA-256 of tokenizer.json, recorded in every .bin and checkpoint.
        path: the folder it was loaded from.
    """

    def __init__(self, path):
        self.path = Path(path)
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"no tokenizer.json in {self.path}; make one with: python train_tokenizer.py")
        raw = file.read_bytes()
        self.hash = hashlib.sha256(raw).hexdigest()[:16]
        self.backend = Tokenizer.from_str(raw.decode("utf-8"))
        # Typing "</s>" gives the ids of "</", "s", ">"; only this project's code writes control tokens.
        self.backend.encode_special_tokens = True
        self.vocab_size = self.backend.get_vocab_size()
        self.bos_id, self.eos_id = self._control(BOS), self._control(EOS)

    def _control(self, token):
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(
                f"{self.path}/tokenizer.json has no {token} token; make one with: python train_tokenizer.py"
            )
        return found

    def check(self, expected_hash, vocab_size, name):
        """ValueError if `name` (a file) was made with another tokenizer, or has no room for this one's ids."""
        if expected_hash not in (None, self.hash):
            raise ValueError(
                f"{name} was made with another tokenizer ({expected_hash}; {self.path} is {self.hash}): "
                "name the right folder with --tokenizer, or make the file again with this one"
            )
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"{self.path} has {self.vocab_size} ids, {name} only {vocab_size}; use the tokenizer it was made with"
            )

    def encode(self, text):
        """str → list of ids, without BOS or EOS; special-token text is encoded as ordinary characters."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts):
        """list of str → list of lists of ids, on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids, skip_special=False):
        """ids → str; decode(encode(text)) == text for every str that is valid UTF-8."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    @functools.cached_property
    def _bytes(self):
        """(V,) list: the bytes each id stands for; control tokens stand for none."""
        special = {i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}
        byte_of = {character: byte for byte, character in byte_alphabet().items()}
        names = [self.backend.id_to_token(i) for i in range(self.vocab_size)]
        return [b"" if i in special else bytes(byte_of[c] for c in name) for i, name in enumerate(names)]

    def id_to_bytes(self, i):
        """The bytes that id `i` stands for; they may be a part of a character."""
        return self._bytes[i] if i < self.vocab_size else b""  # a model may have more rows than the tokenizer has ids

    @functools.cached_property
    def token_bytes(self):
        """(V,) int64: how many bytes each id stands for; turns nats per token into bits per byte."""
        return np.array([len(b) for b in self._bytes], dtype=np.int64)


@functools.cache
def byte_alphabet():
    """{byte: the printable character that byte-level BPE writes for it} (GPT-2's table, Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@functools.lru_cache(maxsize=4)
def load_tokenizer(path=None):
    """The tokenizer in folder `path`, or the project's own."""
    return ChatTokenizer(path or DEFAULT_TOKENIZER)
