"""Equal keys in parts of any size: what Python's set, Counter and dict find, in as many passes as memory demands."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleaning import equal_keys
from cleaning.equal_keys import first_occurrences, passes_for, repeated_keys, repeated_places

KEYS = st.one_of(st.integers(0, 12), st.sampled_from([2**64 - 1, 2**63, 2**32]))
PARTS = st.lists(st.lists(KEYS, max_size=25), max_size=6)
MEMORY = st.sampled_from([1 << 20, 1000, 200])  # bytes: one share of the keys, a few, dozens


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of five keys, so that parts end inside and between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_keys, "BLOCK", 5)
        yield


def arrays(parts):
    return [np.array(part, dtype=np.uint64) for part in parts]


@given(PARTS, MEMORY)
@settings(max_examples=60, deadline=None)
def test_first_occurrences_are_those_that_a_set_finds(parts, memory):
    seen, expected = set(), []
    for part in parts:
        expected.append([not (key in seen or seen.add(key)) for key in part])
    assert [part.tolist() for part in first_occurrences(arrays(parts), memory)] == expected


@given(PARTS, MEMORY, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_repeated_keys_are_those_that_a_counter_finds(parts, memory, times):
    counts = Counter(key for part in parts for key in part)
    expected = sorted(key for key, count in counts.items() if count >= times)
    assert repeated_keys(arrays(parts), times, memory).tolist() == expected


@given(PARTS, MEMORY)
@settings(max_examples=60, deadline=None)
def test_places_of_repeated_keys_are_those_that_a_dict_finds(parts, memory):
    everything = [key for part in parts for key in part]
    expected = defaultdict(list)
    for place, key in enumerate(everything):
        expected[key].append(place)
    found = []
    for places, groups in repeated_places(arrays(parts), memory):
        assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))  # no gap
        for group in range(groups.max() + 1):
            found.append(sorted(places[groups == group].tolist()))
    assert sorted(found) == sorted(p for key, p in expected.items() if len(p) > 1 and key != 0)


def test_memory_decides_how_often_keys_are_read(tmp_path):
    keys = np.arange(100_000, dtype=np.uint64)
    np.save(tmp_path / "keys.npy", keys)
    part = np.load(tmp_path / "keys.npy", mmap_mode="r")  # as a corpus beyond memory is given
    assert [passes_for([part, part], memory) for memory in (1 << 30, 1 << 20, 1 << 18)] == [1, 10, 37]
    shares = [len(k) for s in range(37) for _, _, k in equal_keys.blocks_of([keys[:4000]], 37, s)]
    assert sum(shares) == 4000
    per_share = [sum(len(k) for _, _, k in equal_keys.blocks_of([keys[:4000]], 37, s)) for s in range(37)]
    assert min(per_share) > 50 and max(per_share) < 200  # consecutive keys are spread too: 108 on average
    assert first_occurrences([part[:500], part[:501]], memory=5000)[1].tolist() == [False] * 500 + [True]
