"""Raw files → .bin: what is in the file is the cleaned text, once, and a failure leaves nothing behind."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_process
from cleaning.binfile import BinWriter
from cleaning.cleaner import is_held_out, key_of
from cleaning.pieces import PieceEncoder, can_be_cut
from model.chat import ChatTokenizer, load_tokenizer

TEXTS = [f"第{i}天，小明走了{i * 7}里路，写下：I saw {i} birds.\n  很好 </s><s> 。" for i in range(300)]


@pytest.fixture
def corpus(tmp_path):
    """A folder with one .jsonl of TEXTS."""
    folder = tmp_path / "raw"
    folder.mkdir()
    save(folder / "a.jsonl", TEXTS)
    return folder


def save(path, texts):
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")


def run(tokenizer_dir, source, output, *more):
    """data_process.py pretrain in this process."""
    sources = [str(s) for s in (source if isinstance(source, list) else [source])]
    data_process.main(
        ["pretrain", "--input", *sources, "--output", str(output), "--tokenizer", str(tokenizer_dir), *map(str, more)]
    )


def documents(path, tokenizer_dir):
    """The ids of each document of a .bin, without BOS and EOS, which must frame every one."""
    ids = np.fromfile(path, dtype="<u2")
    assert ids[0] == 1 and ids[-1] == 2
    assert (np.flatnonzero(ids == 1)[1:] == np.flatnonzero(ids == 2)[:-1] + 1).all()
    return [
        part[1:].tolist()
        for part in np.split(ids, np.flatnonzero(ids == 2) + 1)[:-1]
        if part[-1] == 2
        for part in [part[:-1]]
    ]


def texts_of(path, tokenizer_dir):
    tokenizer = load_tokenizer(str(tokenizer_dir))
    return [tokenizer.decode(ids) for ids in documents(path, tokenizer_dir)]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_bin_decodes_to_the_texts_in_order_with_one_bos_and_eos_each(tmp_path, corpus, tokenizer_dir):
    run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == TEXTS
    assert names(tmp_path) == ["p.bin", "p.json", "raw"]


def test_the_description_counts_what_is_in_the_file(tmp_path, corpus, tokenizer_dir):
    with open(corpus / "a.jsonl", "ab") as f:
        f.write(b"oops\n" + json.dumps({"text": TEXTS[0]}).encode() + b"\n")
    run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0.2, "--seed", 3)
    train, val = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("p.json", "p_val.json"))
    kept = texts_of(tmp_path / "p.bin", tokenizer_dir)
    assert train["documents"] == len(kept)
    assert train["tokens"] * 2 == (tmp_path / "p.bin").stat().st_size
    assert train["characters"] == sum(map(len, kept))
    assert train["text_bytes"] == sum(len(t.encode()) for t in kept)
    assert train["documents"] + val["documents"] == len(TEXTS)
    assert train["dropped"] == {"bad JSON": 1, "duplicate": 1}
    assert train["tokenizer_hash"] == ChatTokenizer(tokenizer_dir).hash
    assert (train["bos_id"], train["eos_id"], train["seed"], train["val_fraction"]) == (1, 2, 3, 0.2)
    assert train["sources"][0]["bytes"] == (corpus / "a.jsonl").stat().st_size


def test_texts_are_cleaned_and_duplicates_after_cleaning_dropped(tmp_path, tokenizer_dir, capsys):
    save(tmp_path / "a.jsonl", ["cafe\u0301\0", "café", " café\n", "\u3000", "b\r\nc"])
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin", "--val_fraction", 0)
    assert texts_of(tmp_path / "p.bin", tokenizer_dir) == ["café", "b\nc"]
    out = capsys.readouterr().out
    assert f"2  duplicate   {tmp_path / 'a.jsonl'}:2: café" in out
    assert f"1  empty text  {tmp_path / 'a.jsonl'}:4: " in out


def test_the_same_command_writes_the_same_bytes_with_any_number_of_workers(tmp_path, corpus, tokenizer_dir):
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        (tmp_path / name).mkdir()
        run(tokenizer_dir, corpus, tmp_path / name / "p.bin", "--val-fraction", 0.1, "--num-workers", workers)
    for other in "bc":
        assert names(tmp_path / other) == names(tmp_path / "a")
        for file in names(tmp_path / "a"):
            assert (tmp_path / other / file).read_bytes() == (tmp_path / "a" / file).read_bytes()


def test_the_validation_part_depends_on_text_and_seed_but_not_on_order(tmp_path, tokenizer_dir):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    save(tmp_path / "a.jsonl", TEXTS)
    save(tmp_path / "b.jsonl", shuffled[:100])
    save(tmp_path / "c.jsonl", shuffled[100:])
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "one.bin", "--val_fraction", 0.2)
    run(tokenizer_dir, [tmp_path / "b.jsonl", tmp_path / "c.jsonl"], tmp_path / "two.bin", "--val_fraction", 0.2)
    run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "three.bin", "--val_fraction", 0.2, "--seed", 1)
    parts = {n: set(texts_of(tmp_path / f"{n}.bin", tokenizer_dir)) for n in ("one", "one_val", "two_val", "three_val")}
    assert parts["one_val"] == parts["two_val"] != parts["three_val"]
    assert not parts["one"] & parts["one_val"]
    assert parts["one"] | parts["one_val"] == set(TEXTS)


def test_the_share_held_out_is_the_share_asked_for():
    keys = [key_of(f"text {i}") for i in range(20_000)]
    share = sum(is_held_out(k, 0, 0.05) for k in keys) / len(keys)
    assert abs(share - 0.05) < 0.006  # four standard deviations
    assert not any(is_held_out(k, 0, 0) for k in keys)


def test_a_validation_part_of_an_earlier_run_is_removed(tmp_path, corpus, tokenizer_dir):
    run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0.2)
    assert names(tmp_path) == ["p.bin", "p.json", "p_val.bin", "p_val.json", "raw"]
    run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0)
    assert names(tmp_path) == ["p.bin", "p.json", "raw"]


def test_inspect_reads_a_bin_with_the_tokenizer_it_was_made_with(tmp_path, corpus, tokenizer_dir, capsys):
    run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0)
    capsys.readouterr()
    data_process.main(["inspect", str(tmp_path / "p.bin"), "1"])
    tokens = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines() if " bytes " not in line]
    own, first = load_tokenizer(str(tokenizer_dir)), documents(tmp_path / "p.bin", tokenizer_dir)[1]
    whole = [own.decode([i]) for i in first if "\ufffd" not in own.decode([i])]
    assert len(whole) > 20 and set(map(repr, whole)) <= set(tokens)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        data_process.main(["inspect", str(tmp_path / "p.bin"), "--tokenizer", "model/minimind_tokenizer"])


def test_inspect_counts_through_the_shards_of_a_folder(tmp_path, corpus, tokenizer_dir, capsys):
    for output, flags in ((tmp_path / "p.bin", []), (tmp_path / "shards", ["--shard_tokens", 40])):
        run(tokenizer_dir, corpus, output, "--val_fraction", 0, *flags)
    assert len(list((tmp_path / "shards").glob("*.bin"))) > 2
    count = len(documents(tmp_path / "p.bin", tokenizer_dir))
    said = []
    for file in ("p.bin", "shards"):
        capsys.readouterr()
        for number in {*range(0, count, max(1, count // 12)), count - 1}:
            data_process.main(["inspect", str(tmp_path / file), str(number)])
        said.append(capsys.readouterr().out)
        with pytest.raises(ValueError, match=f"has {count} documents, numbered from 0; there is no {count}"):
            data_process.main(["inspect", str(tmp_path / file), str(count)])
    assert said[0] == said[1]


# --- what a person can get wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\n\n", b"oops\n", b'{"text": " "}\n'], ids=["empty", "blank", "bad", "space"])
def test_nothing_usable_is_an_error_with_the_reasons_and_changes_nothing(tmp_path, corpus, tokenizer_dir, data):
    run(tokenizer_dir, corpus, tmp_path / "p.bin")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=r"no usable text in .*a.jsonl; nothing written\ndropped: \d"):
        run(tokenizer_dir, tmp_path / "a.jsonl", tmp_path / "p.bin")
    (tmp_path / "a.jsonl").unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_description_never_overwrites_other_data(tmp_path, tokenizer_dir):
    (tmp_path / "p.json").write_text('[{"text": "你好"}]', encoding="utf-8")
    for source in ("p.json", "a.jsonl"):
        save(tmp_path / "a.jsonl", TEXTS)
        with pytest.raises(ValueError, match=r"p\.json.*something else"):
            run(tokenizer_dir, tmp_path / source, tmp_path / "p.bin")
    assert names(tmp_path) == ["a.jsonl", "p.json"]


@pytest.mark.parametrize(
    "more,message",
    [
        (["--val_fraction", "1"], "--val_fraction 1"),
        (["--val_fraction", "-0.1"], "--val_fraction -0.1"),
        (["--tokenizer", "nowhere"], "no tokenizer.json in nowhere"),
        (["--output", "x.txt"], "must be a file name that ends in .bin"),
        (["--input", "nowhere.jsonl"], "no file or folder at nowhere.jsonl"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_is_written(tmp_path, corpus, tokenizer_dir, more, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tokenizer_dir, corpus, tmp_path / "p.bin", *more)
    assert names(tmp_path) == ["raw"]


@pytest.mark.parametrize("seed", ["99999999999999999999", "-1", "x"])
def test_a_seed_that_no_generator_takes_is_told(tmp_path, corpus, tokenizer_dir, capsys, seed):
    with pytest.raises(SystemExit):
        run(tokenizer_dir, corpus, tmp_path / "p.bin", "--seed", seed)
    assert f"argument --seed: {seed} is not a whole number" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_ends_the_script_quietly(tmp_path, corpus, tokenizer_dir):
    run(tokenizer_dir, corpus, tmp_path / "p.bin")
    words = [sys.executable, "data_process.py", "inspect", str(tmp_path / "p.bin")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_the_script_prints_one_line_and_exits_with_1(tmp_path):
    command = [
        sys.executable,
        "data_process.py",
        "pretrain",
        "--input",
        str(tmp_path / "no.jsonl"),
        "--output",
        "x.bin",
    ]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no file or folder at") and result.stderr.count("\n") == 1


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, corpus, tokenizer_dir):
    resource = pytest.importorskip("resource")
    run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0)
    before = (tmp_path / "p.bin").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # the operating system refuses byte 5,001 of any file
    try:
        with pytest.raises(
            OSError, match=r"no room for .*p\.bin\S*: [\d,]+ bytes were needed so far and [\d,]+ are free"
        ):
            run(tokenizer_dir, corpus, tmp_path / "p.bin", "--val_fraction", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "p.bin").read_bytes() == before
    assert names(tmp_path) == ["p.bin", "p.json", "raw"]


def test_an_interrupted_writer_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), BinWriter(tmp_path / "p.bin") as writer:
        writer.add(np.array([1, 5, 2], np.uint16), [3], [1], [1])
        writer.prepare()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


# --- pieces: the fast encoder -----------------------------------------------------------------------------------------

# What pre-tokenizers and merges trip over: spaces of many kinds, contractions, digits, rare and joined characters.
ALPHABET = "天地人的了，。！春来 \n\t\u3000\u00a0's're'llabc19é�😀𠀀한あ<|>/\0\r\x85"


def ids_of(encoder, texts):
    """The ids of each text, as lists."""
    ids, ends = encoder.encode(texts)
    return [part.tolist() for part in np.split(ids, ends[:-1])]


@pytest.fixture(scope="module")
def encoder(tokenizer_dir):
    return PieceEncoder(load_tokenizer(str(tokenizer_dir)))


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=40), min_size=1, max_size=8))
def test_pieces_give_exactly_the_ids_of_the_tokenizer(encoder, texts):
    tokenizer = encoder.tokenizer
    encoder._forget()  # as good as a new one, whose tables take 30 ms
    assert encoder.cutting
    for _ in range(2):  # the second time from memory
        assert ids_of(encoder, texts) == tokenizer.encode_batch(texts)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=5))
def test_pieces_are_exact_for_any_unicode_text(encoder, texts):
    texts = [t.encode("utf-8", "ignore").decode() or "a" for t in texts]
    encoder._forget()
    assert ids_of(encoder, texts) == encoder.tokenizer.encode_batch(texts)


def test_the_faster_library_is_used_where_it_must_agree_and_only_there(tokenizer_dir, tmp_path):
    for folder in (tokenizer_dir, "model/minimind_tokenizer"):
        assert PieceEncoder(load_tokenizer(str(folder))).ranked is not None
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, (*merges, last) = spec["model"]["vocab"], spec["model"]["merges"]
    spec["model"]["merges"] = [last, *merges]  # no longer in the order of the ids they make
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert PieceEncoder(ChatTokenizer(tmp_path)).ranked is None
    vocab["ĠÄ" if "ĠÄ" not in vocab else "ĠÅ"] = len(vocab)  # a token that no merge makes
    spec["model"]["merges"] = [*merges, last]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert PieceEncoder(ChatTokenizer(tmp_path)).ranked is None


def test_white_space_before_a_digit_is_one_word_and_new_letters_are_left_to_the_tokenizer(tokenizer_dir):
    tokenizer = load_tokenizer(str(tokenizer_dir))
    texts = ["a  1", "a \n 1", " \t  12 b", "\U000323b0a", "\ua7cdb \U0001fabfc", "x\u3000 9", "\x85 1"]
    texts += ["a\uffffb", "\uffff", "x \uffff 1", "\0", "\0\U00020000\0春"]  # of what stands between texts
    assert ids_of(PieceEncoder(tokenizer), texts) == tokenizer.encode_batch(texts)


def test_a_vocabulary_rich_in_joined_characters_is_still_exact(tmp_path):
    """Trained on noise: its frequent pairs cross every border, and 的 is joined to parts of what follows it."""
    rng = random.Random(0)

    def noise():
        words = rng.choices([*ALPHABET, "的"], k=20)
        return "".join(w + chr(rng.randint(0x4E00, 0x9FA5)) if w == "的" else w for w in words)

    tokenizer = train(tmp_path, [noise() + "的" + noise() for _ in range(1500)], 900)
    encoder = PieceEncoder(tokenizer)
    assert encoder.joined.sum() > 50 and encoder.joined_bytes.sum() > 5
    texts = [noise() for _ in range(3000)]
    assert ids_of(encoder, texts) == tokenizer.encode_batch(texts)


def train(folder, texts, vocab_size):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(folder / "tokenizer.json"))
    return ChatTokenizer(folder)


def test_memory_is_forgotten_when_full_and_the_ids_stay_the_same(tokenizer_dir, monkeypatch):
    monkeypatch.setattr("cleaning.pieces.MEMORY", 20)
    tokenizer = load_tokenizer(str(tokenizer_dir))
    encoder = PieceEncoder(tokenizer)
    for text in TEXTS[:20]:
        assert ids_of(encoder, [text]) == [tokenizer.encode(text)]
    assert len(encoder.number) <= 20


def test_other_kinds_of_tokenizers_are_not_cut(tokenizer_dir):
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    assert can_be_cut(spec)
    assert not can_be_cut({**spec, "normalizer": {"type": "NFC"}})
    assert not can_be_cut({**spec, "pre_tokenizer": None})
    assert not can_be_cut({**spec, "pre_tokenizer": {"type": "Whitespace"}})
    assert not can_be_cut({**spec, "model": {**spec["model"], "ignore_merges": True}})


class TooLarge:
    vocab_size, path = 65_537, "big"


class Lying:
    """Says it has 10 ids, and gives 70,001, which uint16 would store as 4,465."""

    path, vocab_size = "liar", 10

    class backend:
        @staticmethod
        def to_str():
            return json.dumps({"pre_tokenizer": None, "model": {"type": "BPE"}, "normalizer": None, "added_tokens": []})

    def encode_batch(self, texts):
        return [[3, 70_001] for _ in texts]


def test_ids_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match="big has 65,537 ids"):
        PieceEncoder(TooLarge())
    with pytest.raises(ValueError, match="liar gave id 70001 but has 10 ids"):
        PieceEncoder(Lying()).encode(["a"])
