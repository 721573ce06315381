"""The same byte-level BPE through tiktoken, which is several times as fast as `tokenizers`, where both must agree.

tiktoken joins the pair whose token has the lowest id, and takes a word that is a token as it is; that is the same as a
list of merges when merges are in the order of the ids they make and every token is what its own text is merged to.
Text is cut into words by one pattern instead of two steps: where digits are cut off first, white space before one ends
a stretch of text, so all of it is one word. What the two libraries' tables of Unicode may see differently is left out.
"""

import unicodedata

import numpy as np

BMP = 0x10000
BETWEEN = "\uffff"  # ends one text and begins the next; never a character, so it is not settled, and in none of them
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's


def pattern_of(spec):
    """The pattern that cuts text as the pre-tokenizers of a tokenizer.json do, which pieces.can_be_cut has accepted."""
    steps = spec["pre_tokenizer"].get("pretokenizers", [spec["pre_tokenizer"]])[:-1]
    if not steps:
        return WORDS
    digits = r"\p{N}" if any(step.get("individual_digits") for step in steps) else r"\p{N}+"
    return rf"{digits}|\s+(?=\p{{N}})|{WORDS}"


def settled_characters():
    """(BMP,) bool: characters that have been what they are since Unicode 3.2, whatever table is asked."""
    old = unicodedata.ucd_3_2_0.category
    same = (old(c) == unicodedata.category(c) != "Cn" for c in map(chr, range(BMP)))
    return np.fromiter(same, bool, BMP)


def ranked(spec, tokenizer):
    """A tiktoken.Encoding that gives the ids of `tokenizer`, or None where that is not certain.

    One call for many texts costs half of a call for each: between them stands BETWEEN, whose id is vocab_size.

    Args:
        spec: its tokenizer.json; tokenizer: a ChatTokenizer.
    """
    import tiktoken

    control = {token["id"] for token in spec["added_tokens"]}
    merges = ["".join(m) if isinstance(m, list) else m.replace(" ", "") for m in spec["model"]["merges"]]
    made = [spec["model"]["vocab"][merge] for merge in merges]
    ranks = {tokenizer.id_to_bytes(i): i for i in range(tokenizer.vocab_size) if i not in control}
    if made != sorted(set(made)) or len(ranks) != 256 + len(made) or any(bytes([b]) not in ranks for b in range(256)):
        return None
    if any(ranks[bytes([b])] > made[0] for b in range(256) if made):
        return None
    whole = {}
    for token, number in ranks.items():
        try:
            whole[token.decode("utf-8")] = number
        except UnicodeDecodeError:  # a part of a character is no word
            continue
    if tokenizer.encode_batch(list(whole)) != [[number] for number in whole.values()]:
        return None
    between = {BETWEEN: tokenizer.vocab_size}
    return tiktoken.Encoding("ranked", pat_str=pattern_of(spec), mergeable_ranks=ranks, special_tokens=between)
