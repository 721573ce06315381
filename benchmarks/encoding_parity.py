"""Does `data_process.py pretrain` give the tokenizer's ids, whatever the text? Every string of every file is asked.

    python benchmarks/encoding_parity.py --data my_texts/ my_chats/

reads    files of any schema and encoding; the strings in their records, and each raw line as it stands
prints   how many strings were compared, and the first that differ

Exit code 1 if one differs: its ids would not be those that the model is trained and asked with.
"""

import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, the project's root is not there

from cleaning.pieces import PieceEncoder
from cleaning.readers import Drops, expand_inputs, read_records
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from trainer import args

TOGETHER = 20_000  # strings
SHOWN = 10


def strings_in(value):
    """Yields every str in nested dicts and lists that is not empty, names of fields too."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for item in value.items():
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def strings_of(file):
    """Yields the strings of a file's records, then its lines without what is not UTF-8."""
    for _, record in read_records(file, Drops()):
        yield from strings_in(record)
    with open(file, encoding="utf-8", errors="ignore") as lines:
        yield from (line.rstrip("\n") for line in lines if line.strip("\n"))


def differing(encoder, strings):
    """The strings of a list whose ids are not the tokenizer's."""
    ids, ends = encoder.encode(strings)
    begins = [0, *ends[:-1].tolist()]
    own = (ids[begin:end].tolist() for begin, end in zip(begins, ends.tolist()))
    wanted = encoder.tokenizer.encode_batch(strings)
    return [text for text, a, b in zip(strings, own, wanted, strict=True) if a != b]


def main(argv=None):
    parser = args.make_parser(__doc__)
    args.add_flag(parser, "data", nargs="+", required=True, help="files and folders")
    args.add_flag(parser, "tokenizer", default=str(DEFAULT_TOKENIZER), help="tokenizer folder (default: %(default)s)")
    typed = parser.parse_args(argv)
    encoder, compared, characters, wrong = PieceEncoder(load_tokenizer(typed.tokenizer)), 0, 0, []
    for file in expand_inputs(typed.data):
        strings = strings_of(file)
        while batch := list(islice(strings, TOGETHER)):
            compared, characters = compared + len(batch), characters + sum(map(len, batch))
            wrong += differing(encoder, batch)
    print(f"{compared:,} strings of {characters:,} characters, {len(wrong):,} with other ids than the tokenizer's")
    for text in wrong[:SHOWN]:
        print(f"  {text[:100]!r}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    args.run(main)
