"""The rules every document meets on its way to training: pure functions, one reason per rejection."""

import re
import unicodedata

import numpy as np

LINE_ENDS = re.compile("\r\n?|\x85")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # Unicode category Cc without \t and \n


def clean_text(text):
    """str → (text, None) or (None, reason): NFC, line ends as a newline, no control characters, something to read.

    What is between the ends stays as it is: no other character is added, removed or changed.
    """
    if CONTROLS.search(text):  # \r and \x85 are among them
        text = CONTROLS.sub("", LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize("NFC", text)  # returns the same object, after a quick check, where nothing is to do
    return (text, None) if text.strip() else (None, "empty text")


def mark_new(keys, seen):
    """Which texts are met for the first time.

    Args:
        keys: (N,) uint64 hashes of texts.
        seen: list of sorted uint64 arrays, all hashes met so far; starts as [] and is extended here. It takes 8 bytes
            per distinct text (twice that while two arrays merge): 80 MB for 10 million documents, which then have a
            chance of 3 in a million that any two different ones share a hash.
    Returns:
        (N,) bool, True at the first occurrence of a new key.
    """
    unique, index = np.unique(keys, return_index=True)
    known = np.zeros(len(unique), dtype=bool)
    for run in seen:
        known |= run[np.minimum(np.searchsorted(run, unique), len(run) - 1)] == unique
    new = np.zeros(len(keys), dtype=bool)
    new[index[~known]] = True
    if not known.all():
        seen.append(unique[~known])
    while len(seen) > 1 and len(seen[-2]) <= 2 * len(seen[-1]):  # about log2(N) arrays to look into
        seen.append(np.sort(np.concatenate([seen.pop(), seen.pop()])))
    return new
