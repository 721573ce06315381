"""Learns a byte-level BPE vocabulary from text of any size, in bounded memory, the same way every time.

Pairs are learned on characters, not on bytes, and the characters are spelled in bytes afterwards. A Chinese character
is three bytes, so this takes half the time and memory of a byte-level trainer (whose "words" under GPT-2's pattern are
whole clauses, 32 bytes of table for each byte of them), gives the same compression, and no token ever ends or begins
inside a character, except the first bytes of one.
"""

import collections
import hashlib
import heapq
import itertools
import json
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

NAMED = ("think", "tool_call", "tool_response")
SPECIALS = ("<unk>", "<s>", "</s>", *(f"<{end}{name}>" for name in NAMED for end in ("", "/")))
SPECIALS += tuple(f"<|reserved_{i}|>" for i in range(16 - len(SPECIALS)))  # 16 control ids in all
FIXED = len(SPECIALS) + 256  # ids that every vocabulary has: the control tokens and one for each byte
CHUNK = 2000  # characters: the unit that is drawn, so that no book outweighs a thousand letters
MAX_TOKEN = 16  # characters in a token: no rulers, no sentences of a form letter
# Characters get ids of their own until these make up this share of the text. On eight kinds of Chinese text, held out:
# 0.975 → 1.193 times the characters per token of MiniMind v1's tokenizer on average, worst kind 1.076;
# 0.98 → 1.200 and 1.066;  0.985 → 1.205 and 1.053;  0.995 → 1.189 and 0.989 (half the room ends it before that now).
COVERAGE = 0.98
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPELL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
UNSPELL = decoders.ByteLevel()

# One message is "<s>role\ncontent</s>\n". White space is cut everywhere, so that every Jinja engine renders the same.
CHAT_TEMPLATE = """\
{%- macro call(c) -%}{%- set f = c.function if c.function is defined else c -%}
{{- '<tool_call>\\n{"name": ' + (f.name | tojson) + ', "arguments": ' }}
{{- f.arguments if f.arguments is string else (f.arguments | tojson) }}{{ '}\\n</tool_call>' }}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- if has_system or tools -%}
{{- '<s>system\\n' }}{%- if has_system %}{{ messages[0].content }}{% endif -%}
{%- if tools -%}{{- '\\n\\n' if has_system and messages[0].content else '' }}{{- '<tools>\\n' -}}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{- '</tools>' -}}{%- endif -%}
{{- '</s>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if not (loop.first and has_system) -%}
{{- '<s>' + message.role + '\\n' -}}
{%- if message.role == 'tool' -%}
{{- '<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- else -%}
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- message.content or '' -}}
{%- for c in message.tool_calls or [] -%}
{{- '' if loop.first and not message.content else '\\n' }}{{- call(c) -}}
{%- endfor -%}
{%- endif -%}
{{- '</s>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<s>assistant\\n' -}}{%- endif -%}
"""

CONFIG = {  # tokenizer_config.json
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": SPECIALS[1],
    "eos_token": SPECIALS[2],
    "unk_token": SPECIALS[0],
    # no text ever gives <unk>; were the padding </s>, hiding it from the loss would hide where an answer ends
    "pad_token": SPECIALS[0],
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1_000_000,  # the vocabulary has no limit; the model states its own
    "chat_template": CHAT_TEMPLATE,
}


def spelled(text):
    """str → the name of the same bytes in a byte-level vocabulary, one character a byte; ' 的' → 'ĠçļĦ'."""
    return "".join(name for name, _ in SPELL.pre_tokenize_str(text))


def shown(token):
    """The name of a token → the text it stands for, � for bytes that are no whole character."""
    return UNSPELL.decode([token])


class TextSample:
    """An even draw from a stream of texts: the chunks with the smallest hashes, `budget` characters of them.

    One pass, memory for `budget` characters however long the stream, the same chunks in whatever order they come, and
    a chunk that comes twice counts once.
    """

    def __init__(self, budget):
        self.budget, self.size = budget, 0
        self.heap, self.keys = [], set()  # heap: (-hash, chunk), the largest hash first

    def add(self, text):
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            key = int.from_bytes(hashlib.blake2b(chunk.encode("utf-8"), digest_size=8).digest(), "big")
            if key in self.keys or (self.size >= self.budget and key > -self.heap[0][0]):
                continue
            heapq.heappush(self.heap, (-key, chunk))
            self.keys.add(key)
            self.size += len(chunk)
            while self.size - len(self.heap[0][1]) >= self.budget:
                worst, dropped = heapq.heappop(self.heap)
                self.keys.remove(-worst)
                self.size -= len(dropped)

    def chunks(self):
        """The chunks of the draw, smallest hash first."""
        return [chunk for _, chunk in sorted(self.heap, reverse=True)]


def learn_pairs(chunks, alphabet, count, progress=False):
    """Merges the most frequent neighbours inside words, `count` times or until none occurs twice.

    Returns:
        (pairs, exhausted): [(left, right)] in the order learned, as text; exhausted: the text has no more of them.
    """
    learner = Tokenizer(models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(GPT2), "isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    trainer = trainers.BpeTrainer(
        vocab_size=alphabet + count, min_frequency=2, max_token_length=MAX_TOKEN, show_progress=progress
    )
    learner.train_from_iterator(chunks, trainer, length=len(chunks))
    pairs = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return pairs, learner.get_vocab_size() < alphabet + count


def char_merges(chars):
    """Characters → the merges that make each of them from its bytes: 的 = (ç, ļ), (çļ, Ħ)."""
    merges = {}  # a dict keeps the order and each merge once: 64 characters share their first two bytes
    for name in map(spelled, chars):
        merges.update(((name[:i], name[i]), None) for i in range(1, len(name)))
    return list(merges)


def select_merges(counts, pairs, room, excluded=()):
    """Chooses the merges of the vocabulary: characters up to COVERAGE, then pairs, then the rarer characters.

    Args:
        counts: {character: occurrences}.
        pairs: as learn_pairs returns them.
        room: how many tokens may be made.
        excluded: names of tokens that must not be made, nor anything out of them.
    Returns:
        [(left, right)] that make at most `room` tokens; a token may be reached in more than one way.
    """
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    reached = itertools.accumulate(counts[c] for c in ranked)
    head = sum(r <= COVERAGE * counts.total() for r in reached) + 1
    while len(char_merges(ranked[:head])) > room // 2:  # a small vocabulary needs words too
        head = head * 9 // 10
    spelled_pairs = [(spelled(left), spelled(right)) for left, right in pairs]
    order = [char_merges(ranked[:head]), spelled_pairs, char_merges(ranked[head:]), spelled_pairs]
    made, merges, excluded = set(), {}, set(excluded)
    for left, right in itertools.chain.from_iterable(order):
        token = left + right
        known = all(len(part) == 1 or part in made for part in (left, right))
        if not known or token in excluded or (token not in made and len(made) == room):
            continue
        made.add(token)
        merges[left, right] = None
    return list(merges)


def build_backend(merges):
    """Merges → the tokenizer: control tokens, 256 bytes, then one id for each token in the order of the merges.

    Its pre-tokenizer is the one llama.cpp calls `smollm`: digits one by one, then GPT-2's pattern.
    """
    names = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return backend


def train_backend(chunks, vocab_size, excluded=(), progress=False):
    """Chunks of text → a tokenizer of exactly `vocab_size` ids without the token texts in `excluded`.

    Raises:
        ValueError: the text has too few characters and pairs; names how many ids it gives.
    """
    fixed = [text for text in excluded if text in SPECIALS or len(spelled(text)) < 2]
    if fixed:
        raise ValueError(f"cannot exclude {fixed[0]!r}: control tokens and single bytes are in every vocabulary")
    counts = collections.Counter()
    for chunk in chunks:
        counts.update(chunk)
    room, excluded, exhausted = vocab_size - FIXED, {spelled(text) for text in excluded}, False
    asked = room + 8 * len(excluded)
    while not exhausted:  # a second round only where excluded tokens took many others with them
        pairs, exhausted = learn_pairs(chunks, len(counts), asked, progress)
        merges = select_merges(counts, pairs, room, excluded)
        given = len({left + right for left, right in merges})
        if given == room:
            return build_backend(merges)
        asked *= 2
    raise ValueError(
        f"the text gives {FIXED + given:,} ids, not {vocab_size:,}: give more text, or --vocab_size {FIXED + given}"
    )


# --- what came out ----------------------------------------------------------------------------------------------------

FENCE = re.compile(r"^ *```.*\n?", re.MULTILINE)


def text_kinds(texts):
    """Texts → {kind: [parts]}: code between ``` fences, lines mostly Chinese, lines mostly English, runs of digits."""
    kinds = {"Chinese": [], "English": [], "digits": [], "code": []}
    for text in texts:
        for i, part in enumerate(FENCE.split(text)):
            if i % 2:
                kinds["code"].append(part)
                continue
            kinds["digits"] += re.findall(r"[0-9]+", part)
            for line in part.splitlines():
                half = len(line.replace(" ", "")) / 2
                if len(re.findall(r"[\u3400-\u9fff]", line)) > half:
                    kinds["Chinese"].append(line)
                elif len(re.findall(r"[A-Za-z]", line)) > half:
                    kinds["English"].append(line)
    return {kind: [p for p in parts if p] for kind, parts in kinds.items()}


def chars_per_token(backend, texts):
    """Characters of `texts` ÷ their ids; None if there is no text."""
    ids = sum(len(e.ids) for e in backend.encode_batch_fast(texts, add_special_tokens=False))
    return sum(map(len, texts)) / ids if ids else None


def learned_tokens(backend):
    """Texts of the tokens that were learned, longest first."""
    return sorted((shown(backend.id_to_token(i)) for i in range(FIXED, backend.get_vocab_size())), key=len)[::-1]


def dirty_tokens(backend):
    """{why: [token texts]} of tokens that a person may want to put in an --exclude file, longest first."""
    learned = learned_tokens(backend)
    patterns = {
        "punctuation runs": r"\s?[^\w\s]{3,}",
        "white space": r"\s{2,}",
        "web addresses": r".*(http|www|\.com|\.cn|\.org).*",
        "one character repeated": r"\s?(\S)\1{2,}",
    }
    found = {why: list(filter(re.compile(p).fullmatch, learned)) for why, p in patterns.items()}
    return {**found, "first bytes of a character": [t for t in learned if "�" in t]}
