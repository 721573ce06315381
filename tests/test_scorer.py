"""The file of a quality or domain classifier: exact, whole, described, and refused when it is anything else."""

import io
import json
import multiprocessing
import re
import zipfile

import numpy as np
import pytest

pytest.importorskip("sklearn")

from cleaning.scorer import Scorer, load_scorer, save_scorer

TEXTS = ["春眠不觉晓，处处闻啼鸟。", "def f(x):\n    return x", ""]


def made(columns=1, seed=0):
    """A classifier with random numbers."""
    rng = np.random.default_rng(seed)
    names = ["raw", "good"] if columns == 1 else ["法律", "诗", "代码"]
    settings = {"bits": 10, "longest": 3, "characters": 500}
    about = {"kind": "quality" if columns == 1 else "domains", "labels": names, "settings": settings}
    return Scorer(rng.normal(size=(1 << 10, columns)).astype(np.float32), rng.normal(size=columns), about)


@pytest.fixture
def path(tmp_path):
    save_scorer(tmp_path / "q.npz", made())
    return tmp_path / "q.npz"


@pytest.mark.parametrize("columns", [1, 3])
def test_a_saved_classifier_comes_back_bit_for_bit(tmp_path, columns):
    before = made(columns)
    save_scorer(tmp_path / "new" / "q.npz", before)
    after = load_scorer(tmp_path / "new" / "q.npz")
    assert after.weights.tobytes() == before.weights.tobytes() and after.bias.tobytes() == before.bias.tobytes()
    assert after.names == before.names and before.about.items() <= after.about.items()
    assert (after.probabilities(TEXTS) == before.probabilities(TEXTS)).all()
    save_scorer(tmp_path / "again.npz", after)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "new" / "q.npz").read_bytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["q.npz"]


def test_the_file_holds_plain_arrays_and_json(path):
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"weights", "bias", "about"}
        assert json.loads(file["about"].tobytes())["labels"] == ["raw", "good"]


def test_a_file_is_opened_once_and_again_when_it_was_replaced(path):
    first = load_scorer(path)
    assert load_scorer(str(path)) is first
    save_scorer(path, made(columns=3))
    assert load_scorer(path).names == ["法律", "诗", "代码"]


def scores_in_a_process(path):
    return load_scorer(path).scores(TEXTS).tobytes()


@pytest.mark.slow
def test_another_process_gives_the_same_scores(path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(scores_in_a_process, (path,)) == scores_in_a_process(path)


def test_a_file_cut_anywhere_or_with_any_bit_turned_is_refused(path, tmp_path):
    whole = path.read_bytes()
    for size in (4, 30, 100, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"q\.npz is damaged or cut short .*python data_process.py quality"):
            load_scorer(path)
    for at in range(60, len(whole) - 400, 211):  # up to the archive's table of contents, which has no checksum
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            after = load_scorer(path)
        except ValueError as error:
            assert "q.npz is damaged" in str(error)
        else:  # a bit that carries nothing, such as one of a time
            assert after.weights.tobytes() == made().weights.tobytes()


def as_zip(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def as_npy(array, **kwargs):
    out = io.BytesIO()
    np.save(out, array, **kwargs)
    return out.getvalue()


STRANGE = {
    "empty": b"",
    "text": "不是模型".encode(),
    "json": b'{"format": "n-gram classifier of texts"}',
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.",
    "npy": as_npy(np.zeros(3)),
    "another zip": as_zip(a=b"hello"),
    "no arrays inside": as_zip(**{"about.npy": b"hello", "weights.npy": b"", "bias.npy": b""}),
    "objects inside": as_zip(**{f"{n}.npy": as_npy(np.array([{}], object)) for n in ("about", "weights", "bias")}),
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_a_file_that_is_not_ours_is_refused_with_the_next_step(path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"q\.npz .*make it with: python data_process.py quality"):
        load_scorer(path)


def test_a_missing_file_is_told_with_the_next_step(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no classifier at .*gone\.npz; make it with: python data_process.py"):
        load_scorer(tmp_path / "gone.npz")


def altered(path, about=None, **arrays):
    """Writes the file again with other parts; `about` maps fields to new values."""
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files}
    text = json.dumps({**json.loads(parts["about"].tobytes()), **(about or {})})
    np.savez(path, **{**parts, "about": np.frombuffer(text.encode(), np.uint8), **arrays})


# (fields of `about`, arrays, what the error says)
FAULTY = [
    ({"version": 2}, {}, "has version 2, this program reads version 1"),
    ({"format": "else"}, {}, "does not call itself 'n-gram classifier of texts'"),
    ({"labels": ["one"]}, {}, "names fewer than two classes"),
    ({"labels": 7}, {}, "names fewer than two classes"),
    ({"kind": "worth"}, {}, "kind 'worth' with 2 classes is neither quality nor domains"),
    ({"labels": ["a", "b", "c"]}, {}, "kind 'quality' with 3 classes"),
    ({"settings": None}, {}, "setting bits is None"),
    ({"settings": {"bits": 40, "longest": 3, "characters": 500}}, {}, "setting bits is 40, not a whole number from 1"),
    ({"settings": {"bits": 10, "longest": True, "characters": 500}}, {}, "setting longest is True"),
    ({"settings": {"bits": 11, "longest": 3, "characters": 500}}, {}, "float32 (1024, 1) instead of float32 (2048, 1)"),
    ({"settings": {"bits": 10, "longest": 2, "characters": 500}}, {}, "parts do not match their checksum"),
    ({}, {"weights": np.zeros((1024, 1))}, "weights are float64"),
    ({}, {"weights": np.zeros((1024, 1), np.float32)}, "parts do not match their checksum"),
    ({}, {"weights": np.full((1024, 1), np.nan, np.float32)}, "weights hold something that is not a number"),
    ({}, {"bias": np.zeros(2)}, "bias are float64 (2,) instead of float64 (1,)"),
]


@pytest.mark.parametrize("about,arrays,told", FAULTY, ids=[f"{i} {f[2][:30]}" for i, f in enumerate(FAULTY)])
def test_a_part_that_cannot_be_right_is_named(path, about, arrays, told):
    altered(path, about, **arrays)
    with pytest.raises(ValueError, match=re.escape(told)):
        load_scorer(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(path, small_files):
    before = path.read_bytes()
    with small_files(1000), pytest.raises(OSError, match=r"no room for .*q\.npz"):
        save_scorer(path, made(seed=1))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["q.npz"]
