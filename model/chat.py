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
    def token_bytes(self):
        """(V,) int64: UTF-8 bytes each id stands for; 0 for control tokens. Turns nats per token into bits per byte."""
        special = {i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}
        # In byte-level BPE every character of a token's name stands for one byte.
        lengths = [0 if i in special else len(self.backend.id_to_token(i)) for i in range(self.vocab_size)]
        return np.array(lengths, dtype=np.int64)


@functools.lru_cache(maxsize=4)
def load_tokenizer(path=None):
    """The tokenizer in folder `path`, or the project's own."""
    return ChatTokenizer(path or DEFAULT_TOKENIZER)
