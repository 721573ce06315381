"""Packed .bin files → their documents again, in bounded memory."""

import numpy as np

from cleaning.encodings import ignore
from cleaning.pieces import encoder_of

IDS = 1 << 20  # read at a time
LONGEST = 1 << 24  # ids; a longer document comes in pieces


def packed_batches(path, bos_id, eos_id, progress=ignore):
    """Yields (documents, their numbers): uint16 ids as bytes, without <s> and </s>.

    Ids behind the last </s> are a document too. `progress` is called with the number of bytes read.
    """
    rest, number = np.zeros(0, dtype="<u2"), 0
    with open(path, "rb") as file:
        while data := file.read(2 * IDS):
            progress(len(data))
            if len(data) % 2:
                raise ValueError(f"{path} has an odd number of bytes, so it holds no 16-bit ids; pack it again")
            ids = np.concatenate([rest, np.frombuffer(data, dtype="<u2")])
            ends = np.flatnonzero(ids == eos_id)
            documents = np.split(ids, ends + 1)
            rest = documents.pop()
            if len(rest) > LONGEST:
                documents.append(rest)
                rest = rest[:0]
            yield stripped(documents, bos_id, eos_id), range(number, number + len(documents))
            number += len(documents)
    if len(rest):
        yield stripped([rest], bos_id, eos_id), range(number, number + 1)


def stripped(documents, bos_id, eos_id):
    """Arrays of ids → bytes without the control ids at their ends."""
    result = []
    for ids in documents:
        start, end = int(len(ids) > 0 and ids[0] == bos_id), len(ids) - int(len(ids) > 0 and ids[-1] == eos_id)
        result.append(ids[start:end].tobytes())
    return result


def text_of_ids(load_tokenizer, path, ids):
    """uint16 ids as bytes → str; ValueError for an id that the tokenizer has not."""
    tokenizer = encoder_of(load_tokenizer, path).tokenizer
    numbers = np.frombuffer(ids, dtype="<u2")
    if len(numbers) and numbers.max() >= tokenizer.vocab_size:
        raise ValueError(
            f"id {numbers.max()} is in the file, but {path} has {tokenizer.vocab_size:,} ids; name with --tokenizer "
            "the one that made it"
        )
    return tokenizer.to_bytes(numbers.tolist()).decode("utf-8", "replace")
