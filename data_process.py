"""Raw data → what the training scripts read.

    python data_process.py demo
        writes   dataset/demo/generated/    a small corpus for every stage, from this project's own facts and templates
    python data_process.py download --list
        writes   dataset/NAME/    a public set, once its licence was shown; SOURCE.json says what it is
    python data_process.py stats --input FILE_OR_FOLDER ... [--output out/text.json]
        shows    documents, lengths, languages, tokens, duplicates, origins, of raw files or of a .bin

    python data_process.py pretrain --input FILE_OR_FOLDER ... --output dataset/pretrain.bin
        reads    .jsonl .json .csv .txt .parquet, plain or .gz; UTF-8, GB18030 or UTF-16. The text is in the field
                 `text` or `content`, in the words of a chat or instruction record, or in --field NAME
        cleans   Unicode NFC, no control characters, nothing empty, no text twice; what else is asked for by a flag
        writes   pretrain.bin               ids as uint16, `<s>text</s>` end to end
                 pretrain_val.bin           the same for about 1 % of the texts, which are not in pretrain.bin
                 pretrain.json, pretrain_val.json   counts, tokenizer, sources: what each .bin is made of
        A run that was stopped goes on with the same command, and ends in the same bytes.
    python data_process.py quality --good FILES --raw FILES --output out/quality.npz
        writes   a classifier for --quality and --domains of `pretrain`, and a report of what it learnt

    python data_process.py sft --input FILE_OR_FOLDER ... --output dataset/sft.jsonl        (dpo likewise)
        reads    conversations (role/content, from/value), messages, instruction/input/output, history/q/a; pairs as
                 prompt/chosen/rejected, message lists, LLaMA-Factory's form, ranked answers
        writes   one form, every record once; --mix zh.jsonl:0.6 en.jsonl:0.4 instead of --input draws in that ratio
    python data_process.py inspect FILE [N]
        shows    record N token by token, the scored ones in green: what a model is trained to say

What cannot be used is counted by reason, and the first of each reason is shown with its file and line.
Next: python 1-pretrain.py --data_path dataset/pretrain.bin
"""

import argparse

from cleaning.chat_files import ChatSettings, record_at
from cleaning.chat_files import run as clean_chats
from cleaning.chat_rules import ELSEWHERE
from cleaning.downloads import DownloadSettings, download
from cleaning.pretrain import run as write_corpus
from cleaning.pretrain_settings import PretrainSettings
from cleaning.quality import QualitySettings, train
from cleaning.readers import expand_inputs
from cleaning.rules import RuleSettings
from cleaning.stats import StatsSettings, stats
from model.bin_data import bin_files, holds_ids, tokenizer_for
from model.chat import DEFAULT_TOKENIZER, load_tokenizer
from trainer import args

INPUTS = "files and folders: .jsonl, .json, .csv, .txt (a text ends at a blank line), .parquet, plain or .gz"
COMMANDS = {
    "demo": "write a small corpus for every stage",
    "download": "fetch public sets by name",
    "stats": "what is in raw files or a .bin: counts, lengths, languages, duplicates",
    "quality": "learn to tell good texts from others, or kinds of text apart",
    "pretrain": "raw text files → packed ids",
    "sft": "raw chats → one form",
    "dpo": "raw preferences → one form",
    "inspect": "show a record as the model is trained on it",
}
FLAGS = {
    "download": DownloadSettings,
    "stats": StatsSettings,
    "quality": QualitySettings,
    "pretrain": PretrainSettings,
    "sft": ChatSettings,
    "dpo": ChatSettings,
}


def parse(argv):
    """The command line → namespace; `command` names the subcommand."""
    parser = args.make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    folder = "folder to write (default: %(default)s)"
    args.add_flag(known["demo"], "output_dir", default="dataset/demo/generated", help=folder)
    for name, ending, others in (("pretrain", "bin", ()), ("sft", "jsonl", ELSEWHERE), ("dpo", "jsonl", ELSEWHERE)):
        args.add_flag(known[name], "input", nargs="+", default=[], metavar="PATH", help=INPUTS)
        args.add_flag(known[name], "output", required=True, metavar="FILE", help=f"for example dataset/{name}.{ending}")
        own = {"default": str(DEFAULT_TOKENIZER), "metavar": "DIR", "help": "default: %(default)s"}
        args.add_flag(known[name], "tokenizer", **own)
        args.add_fields(known[name].add_argument_group("limits of --rules"), RuleSettings, without=others)
    for name, cls in FLAGS.items():
        args.add_fields(known[name], cls)
    inspect = known["inspect"]
    inspect.add_argument("file", help="chats, preferences, a .bin, or a folder of .bin shards")
    inspect.add_argument("number", nargs="?", type=int, default=0, help="which record, counted from 0 (default: 0)")
    args.add_flag(inspect, "tokenizer", metavar="DIR", help="default: the one that a .bin names, or the project's own")
    for name in ("demo", "pretrain", "sft", "dpo", "inspect"):
        args.add_flag(known[name], "seed", type=args.parse_seed, default=0, help="same seed, same result (default: 0)")
    for command in known.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show a full traceback")
    return parser.parse_args(argv)


def demo(cfg):
    from cleaning.demo import generate

    for name, count in generate(cfg.output_dir, cfg.seed).items():
        print(f"{name:<24} {count:>9,}" if isinstance(count, int) else f"{name:<24} {count}")
    print(f"written to {cfg.output_dir}")


def settings(cls, cfg):
    """The flags of a command as the dataclass they were made from."""
    return cls(**args.split(vars(cfg), cls)[0])


def clean_file(kind, path, output):
    """What the training scripts do with raw data: the same as `sft` and `dpo` without flags."""
    main([kind, "--input", str(path), "--output", str(output)])


def inspect(cfg):
    from evaluation.inspection import document_of, show, sides_of

    if holds_ids(cfg.file):
        tokenizer = tokenizer_for(bin_files(cfg.file)[0], cfg.tokenizer)
        show(document_of(cfg.file, cfg.number, tokenizer), tokenizer)
    else:
        tokenizer = load_tokenizer(cfg.tokenizer)
        show(sides_of(record_at(expand_inputs(cfg.file)[0], cfg.number), tokenizer), tokenizer)


def corpus(cfg):
    write_corpus(settings(PretrainSettings, cfg), load_tokenizer, settings(RuleSettings, cfg))


def chats(cfg):
    # without the limits of rules for documents, one of which has the name of a filter of chats: min_chinese
    limits = {name: value for name, value in vars(settings(RuleSettings, cfg)).items() if name not in ELSEWHERE}
    clean_chats(cfg.command, settings(ChatSettings, cfg), load_tokenizer, RuleSettings(**limits))


def main(argv=None):
    cfg = parse(argv)
    run = {
        "demo": demo,
        "inspect": inspect,
        "pretrain": corpus,
        "sft": chats,
        "dpo": chats,
        "stats": lambda cfg: stats(settings(StatsSettings, cfg), load_tokenizer),
        "quality": lambda cfg: train(settings(QualitySettings, cfg)),
        "download": lambda cfg: download(settings(DownloadSettings, cfg)),
    }
    run[cfg.command](cfg)


if __name__ == "__main__":
    args.run(main)
