"""Raw data → what the training scripts read.

    python data_process.py demo
        reads    dataset/demo/              fact tables and templates of this project
        writes   dataset/demo/generated/    a small corpus for every stage, so that the whole pipeline runs offline

    python data_process.py pretrain --input FILE_OR_FOLDER ... --output dataset/pretrain.bin
        reads    .jsonl .json .csv .txt .parquet, plain or .gz; UTF-8, GB18030 or UTF-16. The text is in the field
                 `text` or `content`, in the words of a chat or instruction record, or in --field NAME
        cleans   Unicode NFC, no control characters, nothing empty, no text twice
        writes   pretrain.bin               ids as uint16, `<s>text</s>` end to end
                 pretrain_val.bin           the same for about 1 % of the texts, which are not in pretrain.bin
                 pretrain.json, pretrain_val.json   counts, tokenizer, sources: what each .bin is made of

    python data_process.py sft --input FILE_OR_FOLDER ... --output dataset/sft.jsonl
    python data_process.py dpo --input FILE_OR_FOLDER ... --output dataset/dpo.jsonl
        reads    conversations (role/content, from/value), messages, instruction/input/output, history/q/a; pairs as
                 prompt/chosen/rejected, message lists, LLaMA-Factory's form, ranked answers
        writes   one form, every record once; --mix zh.jsonl:0.6 en.jsonl:0.4 instead of --input draws in that ratio

    python data_process.py inspect FILE [N]
        shows    record N token by token, the scored ones in green: what a model is trained to say

What cannot be used is counted by reason, and the first of each reason is shown with its file and line.
Next: python 1-pretrain.py --data_path dataset/pretrain.bin
"""

import argparse
from pathlib import Path

from cleaning.chat_files import Filters, clean, parse_mix, record_at
from cleaning.files import progress_meter
from cleaning.pretrain import PretrainSettings
from cleaning.pretrain import run as write_corpus
from cleaning.readers import expand_inputs, size_of
from model.bin_data import bin_files, tokenizer_for
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from trainer import args


def parse(argv):
    """The command line → namespace; `command` names the subcommand."""
    parser = args.make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="write a small corpus for every stage")
    args.add_flag(demo, "output_dir", default="dataset/demo/generated", help="folder to write (default: %(default)s)")
    pretrain = commands.add_parser("pretrain", help="raw text files → packed ids")
    args.add_flag(pretrain, "input", nargs="+", default=[], metavar="PATH", help="files and folders")
    args.add_flag(pretrain, "output", required=True, metavar="FILE.bin", help="for example dataset/pretrain.bin")
    args.add_fields(pretrain, PretrainSettings)
    chat = [commands.add_parser(n, help=f"raw {w} → one form") for n, w in (("sft", "chats"), ("dpo", "preferences"))]
    for command in chat:
        source = command.add_mutually_exclusive_group(required=True)
        args.add_flag(source, "input", nargs="+", metavar="PATH", help="files and folders")
        args.add_flag(
            source, "mix", nargs="+", metavar="PATH:WEIGHT", help="draw from these in the ratio of the weights"
        )
        args.add_flag(command, "output", required=True, metavar="FILE.jsonl", help="for example dataset/sft.jsonl")
        args.add_flag(command, "min_tokens", type=int, help="drop records that are shorter")
        args.add_flag(command, "max_tokens", type=int, help="drop records that are longer")
        args.add_flag(command, "min_chinese", type=float, default=0.0, help="smallest share of Chinese letters, 0 to 1")
        args.add_flag(command, "allow_empty", action="store_true", help="keep records with an empty answer")
    inspect = commands.add_parser("inspect", help="show a record as the model is trained on it")
    inspect.add_argument("file", help="chats, preferences or a .bin")
    inspect.add_argument("number", nargs="?", type=int, default=0, help="which record, counted from 0 (default: 0)")
    args.add_flag(inspect, "tokenizer", metavar="DIR", help="default: the one that a .bin names, or the project's own")
    for command in (pretrain, *chat):
        args.add_flag(command, "tokenizer", default=str(DEFAULT_TOKENIZER), metavar="DIR", help="default: %(default)s")
    for command in (demo, pretrain, *chat, inspect):
        args.add_flag(command, "seed", type=args.parse_seed, default=0, help="same seed, same result (default: 0)")
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show a full traceback")
    return parser.parse_args(argv)


def demo(cfg):
    from cleaning.demo import generate

    for name, count in generate(cfg.output_dir, cfg.seed).items():
        print(f"{name:<24} {count:>9,}" if isinstance(count, int) else f"{name:<24} {count}")
    print(f"written to {cfg.output_dir}")


def pretrain(cfg):
    write_corpus(PretrainSettings(**args.split(vars(cfg), PretrainSettings)[0]), load_tokenizer)


def chat(cfg):
    if not cfg.output.endswith(".jsonl"):
        raise ValueError(f"--output {cfg.output} must end in .jsonl")
    if not 0 <= cfg.min_chinese <= 1:
        raise ValueError(f"--min_chinese {cfg.min_chinese} is not a share; give 0 to 1")
    sources = [([path], weight) for path, weight in parse_mix(cfg.mix)] if cfg.mix else [(cfg.input, None)]
    files = [p for paths, _ in sources for p in expand_inputs(paths)]
    if Path(cfg.output).resolve() in {p.resolve() for p in files}:
        raise ValueError(f"--output {cfg.output} is one of the inputs; choose another name")
    tokenizer = load_tokenizer(cfg.tokenizer)
    filters = Filters(
        cfg.min_chinese, cfg.min_tokens, cfg.max_tokens, lambda texts: sum(map(len, tokenizer.encode_batch(texts)))
    )
    meter = progress_meter(sum(map(size_of, files)), "reading")
    written, drops, notes, taken = clean(cfg.command, sources, cfg.output, filters, cfg.seed, cfg.allow_empty, meter)
    print(f"{written:>11,}  records in {cfg.output}", f"({' + '.join(f'{n:,}' for n in taken)})" if cfg.mix else "")
    for what, count in notes.most_common():
        print(f"{count:>11,}  changed: {what}")
    print(drops.table())


def clean_file(kind, path, output):
    """What the training scripts do with raw data: the same as `sft` and `dpo` without flags."""
    main([kind, "--input", str(path), "--output", str(output)])


def inspect(cfg):
    from evaluation.inspection import document_of, show, sides_of

    if cfg.file.endswith(".bin"):
        file = bin_files(cfg.file)[0]
        tokenizer = tokenizer_for(file, cfg.tokenizer)
        show(document_of(file, cfg.number, tokenizer), tokenizer)
    else:
        tokenizer = load_tokenizer(cfg.tokenizer)
        show(sides_of(record_at(expand_inputs(cfg.file)[0], cfg.number), tokenizer), tokenizer)


def main(argv=None):
    cfg = parse(argv)
    commands = {"demo": demo, "pretrain": pretrain, "sft": chat, "dpo": chat, "inspect": inspect}
    commands[cfg.command](cfg)


if __name__ == "__main__":
    args.run(main)
