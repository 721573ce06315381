"""Raw text → the tokenizer of a model: byte-level BPE, with the chat template in its configuration.

reads   --data_path: .jsonl .json .csv .txt .parquet, plain or .gz, files or folders; instruction data too
writes  tokenizer.json, tokenizer_config.json (stock AutoTokenizer loads the folder) and report.json, its figures; into
        replaced_<hash> the tokenizer that was there, if it is another
run     python train_tokenizer.py --data_path dataset/raw --vocab_size 6400 --out_dir model/minimind_tokenizer

Ids: <unk> 0, <s> 1, </s> 2, think / tool_call / tool_response marks 3-8, reserved control tokens 9-15, the 256 bytes,
then what was learned. Digits stay single. The same input gives the same bytes, on any number of cores.

Memory does not grow with the input: the vocabulary is learned on an even draw of --sample_chars characters. 4, 8, 16
and 25 million gave the same compression within 0.3 %, and 8 million peak at 0.9 GiB. What occurs twice is drawn once.
Every 50th document is kept for the report at the end. Tokens you do not want: --exclude FILE, one a line as it is.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from cleaning import bpe
from cleaning.files import progress_meter, write_files
from cleaning.readers import Drops, expand_inputs, read_located, size_of
from model.chat import DEFAULT_TOKENIZER
from trainer.args import add_flag, make_parser, run

HOLD_OUT = 50  # one document in so many is measured, not learned from
HELD_CHARS = 400_000


def read_samples(paths, field, budget, drops):
    """Files → (chunks to learn from, chunks to measure on); the second is empty where there are under 50 documents."""
    files = expand_inputs(paths)
    learn, held = bpe.TextSample(budget), bpe.TextSample(HELD_CHARS)
    progress = progress_meter(sum(map(size_of, files)), "reading")
    for number, (_, _, text) in enumerate(read_located(files, drops, field, progress), start=1):
        (learn if number % HOLD_OUT else held).add(text)
    return learn.chunks(), held.chunks()


def measure(backend, texts, measured_on):
    """The tokenizer in numbers: what report.json holds."""
    kinds = bpe.text_kinds(texts)
    encoded = backend.encode_batch(texts, add_special_tokens=False)
    return {
        "vocab_size": backend.get_vocab_size(),
        "measured_on": measured_on,
        "characters_per_token": {k: bpe.chars_per_token(backend, parts) for k, parts in kinds.items()},
        "characters": {kind: sum(map(len, parts)) for kind, parts in kinds.items()},
        "texts": len(texts),
        "round_trip": sum(backend.decode(e.ids) == text for e, text in zip(encoded, texts)),
        "longest_tokens": bpe.learned_tokens(backend)[:12],
        "dirty_tokens": {why: {"count": len(t), "first": t[:8]} for why, t in bpe.dirty_tokens(backend).items()},
    }


def report(found):
    """What `measure` found, as lines for a person."""
    lines = [f"characters per token, on {found['measured_on']}:"]
    for kind, rate in found["characters_per_token"].items():
        shown = "no such text" if rate is None else f"{rate:.3f}   ({found['characters'][kind]:,} characters)"
        lines.append(f"  {kind:<8} {shown}")
    lines.append(f"round trip: {found['round_trip']:,} of {found['texts']:,} texts come back as they were")
    lines.append(f"longest tokens: {found['longest_tokens']}")
    for why, tokens in found["dirty_tokens"].items():
        lines.append(f"{why}: {tokens['count']} tokens{' ' + str(tokens['first']) if tokens['first'] else ''}")
    return "\n".join(lines)


def to_json(value):
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def keep_old(folder, tokenizer, names):
    """Copies another tokenizer that lies in `folder`, which checkpoints may need → where to; None: there is none."""
    old = Path(folder, "tokenizer.json")
    if not old.is_file() or old.read_bytes() == tokenizer.encode("utf-8"):
        return None
    kept = Path(folder, f"replaced_{hashlib.sha256(old.read_bytes()).hexdigest()[:16]}")
    kept.mkdir(exist_ok=True)
    for name in names:
        if Path(folder, name).is_file():
            shutil.copy2(Path(folder, name), kept)
    return kept


def main(argv=None):
    parser = make_parser(__doc__)
    add_flag(parser, "data_path", nargs="+", required=True, metavar="PATH", help="files and folders with text")
    add_flag(parser, "vocab_size", type=int, default=6400, help=f"ids, {bpe.FIXED + 1} to 65536 (default: 6400)")
    add_flag(parser, "out_dir", type=Path, default=DEFAULT_TOKENIZER, help="default: model/minimind_tokenizer")
    add_flag(parser, "field", help="name of the text field (default: text, else content, else all words of a chat)")
    add_flag(parser, "exclude", type=Path, metavar="FILE", help="token texts to leave out, one a line")
    add_flag(parser, "sample_chars", type=int, default=8_000_000, help="learn from so many (default: 8000000)")
    args = parser.parse_args(argv)
    if not bpe.FIXED < args.vocab_size <= 65536:  # ids are stored as uint16
        raise ValueError(f"--vocab_size {args.vocab_size}: must be {bpe.FIXED + 1} to 65536; 6400 suits small models")
    if args.sample_chars < 1:
        raise ValueError(f"--sample_chars {args.sample_chars}: must be at least 1; the default is 8000000")
    excluded = [line for line in args.exclude.read_text("utf-8-sig").split("\n") if line] if args.exclude else []

    drops = Drops()
    chunks, held = read_samples(args.data_path, args.field, args.sample_chars, drops)
    print(drops.table())
    if not chunks:
        raise ValueError(f"no text in {' '.join(args.data_path)}; name files that hold some")
    print(f"learning {args.vocab_size:,} ids from {sum(map(len, chunks)):,} characters", flush=True)
    backend = bpe.train_backend(chunks, args.vocab_size, excluded, progress=sys.stderr.isatty())
    measured_on = "held-out text" if held else "the text it learned (under 50 documents)"
    found, tokenizer = measure(backend, held or chunks[:200], measured_on), backend.to_str() + "\n"
    found["hash"] = hashlib.sha256(tokenizer.encode("utf-8")).hexdigest()[:16]  # as model/chat.py takes it
    texts = {"tokenizer.json": tokenizer, "tokenizer_config.json": to_json(bpe.CONFIG), "report.json": to_json(found)}
    kept = keep_old(args.out_dir, tokenizer, texts)
    write_files(args.out_dir, texts)
    print(report(found))
    if kept:
        print(f"kept: the tokenizer that was there, in {kept}; what was made with it needs --tokenizer {kept}")
    print(f"written: {args.out_dir}/{', '.join(texts)}")


if __name__ == "__main__":
    run(main)
