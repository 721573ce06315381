"""A trained quality or domain classifier: one .npz file of plain arrays, and how it is applied to texts.

The file holds `weights`, `bias` and `about`, a JSON text that says what they are, from which files and with which
settings. Nothing in it is executed (no pickle), so a file from a stranger can be opened.
"""

import functools
import hashlib
import io
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cleaning.files import room_for
from cleaning.ngrams import MOST_BITS, TOGETHER, excerpt, library, shares

FORMAT = "n-gram classifier of texts"  # the mark by which a file of ours is told from other .npz files
VERSION = 1
MAKE = "make it with: python data_process.py quality"


class Scorer:
    """Probabilities of the classes of a text, exactly those of scikit-learn's LogisticRegression on the same n-grams.

    Args:
        weights: (2^bits, 1) float32 for two classes, the second being the one that a high value stands for; else
            (2^bits, K).
        bias: (1,) or (K,) float64.
        about: dict with at least `kind` ('quality' or 'domains'), `labels` (K names), and `settings`, of which `bits`,
            `longest` and `characters` say how a text is looked at.
    """

    def __init__(self, weights, bias, about):
        self.weights, self.bias, self.about = weights, bias, about
        self.exact = weights.astype(np.float64)  # once, or the product below would convert them for every batch
        self.names = about["labels"]
        settings = about["settings"]
        self.bits, self.longest, self.characters = (settings[k] for k in ("bits", "longest", "characters"))

    def logits(self, texts):
        """list of str → (N, 1) or (N, K) float64; see probabilities_of."""
        seen = [excerpt(text, self.characters) for text in texts]
        parts = [
            shares(seen[i : i + TOGETHER], self.bits, self.longest) @ self.exact for i in range(0, len(seen), TOGETHER)
        ]
        return np.concatenate([np.empty((0, len(self.bias))), *parts]) + self.bias

    def probabilities(self, texts):
        """list of str → (N, K) float64, rows add up to 1."""
        return probabilities_of(self.logits(texts))

    def scores(self, texts):
        """list of str → (N,) float32 in [0, 1], the probability that a text is good.

        Raises:
            ValueError: the file knows domains, not quality.
        """
        if self.about["kind"] != "quality":
            raise ValueError(
                f"this classifier tells {', '.join(self.names)} apart and knows nothing of quality; give one that was "
                "made with: python data_process.py quality --good PATH --raw PATH"
            )
        return self.probabilities(texts)[:, 1].astype(np.float32)

    def labels(self, texts):
        """list of str → (N,) int64, the most probable class of each; its name is `names[i]`."""
        return self.probabilities(texts).argmax(axis=1)


def probabilities_of(logits):
    """(N, 1) logits of the second of two classes, or (N, K) of K classes → (N, K) probabilities."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return library("scipy.special").softmax(logits, axis=1)


def save_scorer(path, scorer):
    """Writes the classifier, whole or not at all; the same classifier gives the same bytes."""
    path = Path(path)
    about = {
        **scorer.about,
        "format": FORMAT,
        "version": VERSION,
        "sha256": digest_of(scorer.weights, scorer.bias, scorer.about),
    }
    text = json.dumps(about, ensure_ascii=False, indent=1).encode("utf-8")
    data = io.BytesIO()
    np.savez_compressed(data, weights=scorer.weights, bias=scorer.bias, about=np.frombuffer(text, np.uint8))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with room_for(path, len(data.getbuffer())):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def digest_of(weights, bias, about):
    """64 hex digits that change with anything that decides a score or a name."""
    deciding = [about["kind"], about["labels"], *(about["settings"][k] for k in ("bits", "longest", "characters"))]
    return hashlib.sha256(weights.tobytes() + bias.tobytes() + json.dumps(deciding).encode("utf-8")).hexdigest()


def load_scorer(path):
    """The classifier in a file; opened once per process, and again when the file has changed.

    Raises:
        FileNotFoundError, ValueError: no file, not one of ours, of another version, or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no classifier at {path}; {MAKE}")
    state = os.stat(path)
    return _open(os.path.abspath(path), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _open(path, *_):
    try:
        with np.load(path, allow_pickle=False) as file:
            about, weights, bias = (file[name] for name in ("about", "weights", "bias"))
        about = json.loads(about.tobytes().decode("utf-8"))
        ours = isinstance(about, dict) and about.get("format") == FORMAT
    # not a zip, a zip without its end, a bad checksum inside, an .npy, no such array, no such text
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError, KeyError) as error:
        if not starts_like_npz(path):  # numpy would advise to load it unsafely
            raise ValueError(f"{path} is no file of ours, but something else; {MAKE}") from None
        raise ValueError(f"{path} is damaged or cut short ({type(error).__name__}: {error}); {MAKE}") from None
    if not ours:
        raise ValueError(f"{path} is no file of ours: it does not call itself {FORMAT!r}; {MAKE}")
    if about.get("version") != VERSION:
        raise ValueError(f"{path} has version {about.get('version')}, this program reads version {VERSION}; {MAKE}")
    if fault := fault_of(weights, bias, about):
        raise ValueError(f"{path} is damaged: {fault}; {MAKE}")
    return Scorer(weights, bias, about)


def starts_like_npz(path):
    """Do the first bytes say that this is a zip archive, which an .npz is?"""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def fault_of(weights, bias, about):
    """What is wrong with the parts of a classifier, or None."""
    labels, settings = about.get("labels"), about.get("settings")
    if not (isinstance(labels, list) and len(labels) >= 2 and all(isinstance(name, str) for name in labels)):
        return "it names fewer than two classes"
    if about.get("kind") not in ("quality", "domains") or (about["kind"] == "quality" and len(labels) != 2):
        return f"kind {about.get('kind')!r} with {len(labels)} classes is neither quality nor domains"
    limits = {"bits": MOST_BITS, "longest": 8, "characters": 1 << 24}
    for name, most in limits.items():
        value = settings.get(name) if isinstance(settings, dict) else None
        if type(value) is not int or not 1 <= value <= most:
            return f"its setting {name} is {value!r}, not a whole number from 1 to {most}"
    columns = 1 if len(labels) == 2 else len(labels)
    for array, name, kind, shape in (
        (weights, "weights", np.float32, (1 << settings["bits"], columns)),
        (bias, "bias", np.float64, (columns,)),
    ):
        if array.dtype != kind or array.shape != shape:
            return f"{name} are {array.dtype} {array.shape} instead of {np.dtype(kind)} {shape}"
        if not np.isfinite(array).all():
            return f"{name} hold something that is not a number"
    if digest_of(weights, bias, about) != about.get("sha256"):
        return "its parts do not match their checksum"
    return None
