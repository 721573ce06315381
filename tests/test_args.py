"""Command lines: flags, what a person can mistype, and the edge where errors become one line."""

import argparse
import dataclasses
import importlib.machinery
import os
import signal
import sys
import time
import types

import pytest

from cleaning.settings import knob
from model.LMConfig import LMConfig
from trainer import args
from trainer.config import SFTConfig, TrainConfig

MINIMIND_FLAGS = (
    "out_dir epochs batch_size learning_rate device dtype use_wandb wandb_project num_workers data_path ddp "
    "accumulation_steps grad_clip warmup_iters log_interval save_interval local_rank model_name"
).split()
OUR_FLAGS = "max_steps val_fraction compile optimizer schedule parallel seed fresh init_from".split()


def parser_of(cls, **kwargs):
    parser = args.make_parser("doc")
    args.add_fields(parser, cls, **kwargs)
    return parser


def test_every_contract_flag_exists_with_both_spellings():
    parser = parser_of(TrainConfig)
    for name in MINIMIND_FLAGS + OUR_FLAGS:
        spellings = parser._option_string_actions
        assert f"--{name}" in spellings and f"--{name.replace('_', '-')}" in spellings


def test_every_model_field_is_a_flag_and_typed_ones_alone_are_set():
    typed = vars(parser_of(LMConfig, unset=True).parse_args(["--dim", "256", "--use_moe", "--rope-scaling", "yarn:4"]))
    assert args.split(typed, LMConfig) == [{"dim": 256, "use_moe": True, "rope_scaling": "yarn:4"}]
    assert {f"--{f.name}" for f in dataclasses.fields(LMConfig)} <= set(parser_of(LMConfig)._option_string_actions)


@pytest.mark.parametrize(("typed", "value"), [("--fresh", True), ("--fresh=no", False), ("--fresh=true", True)])
def test_yes_and_no_flags_work_bare_and_with_a_word(typed, value):
    assert parser_of(TrainConfig).parse_args([typed]).fresh is value


def test_a_field_of_many_values_takes_them_all_and_shows_none_as_its_default():
    @dataclasses.dataclass
    class Several:
        rules: list[str] = knob(list, "which")

    parser = parser_of(Several)
    assert parser.parse_args(["--rules", "a", "b"]).rules == ["a", "b"] and parser.parse_args([]).rules == []
    assert "which (default: none)" in parser.format_help()
    with pytest.raises(SystemExit):  # it would do nothing, unnoticed
        parser.parse_args(["--rules"])


def test_numbers_keep_their_type_and_bad_ones_are_refused(capsys):
    typed = parser_of(TrainConfig).parse_args(["--max-steps", "5", "--learning_rate", "3e-4"])
    assert typed.max_steps == 5 and typed.learning_rate == 3e-4
    for bad in (["--epochs", "two"], ["--optimizer", "sgd"], ["--fresh", "maybe"], ["--epoch_count", "3"]):
        with pytest.raises(SystemExit) as left:
            parser_of(TrainConfig).parse_args(bad)
        assert left.value.code == 2
    assert "maybe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("a.py --batchsize 8", "unrecognized arguments: --batchsize 8; for --batchsize, did you mean --batch_size?"),
        ("a.py --epochs=3 --lerning-rate=1", "--lerning-rate=1; for --lerning-rate, did you mean --learning-rate?"),
        ("a.py sft --dom_mask", "unrecognized arguments: --dom_mask; for --dom_mask, did you mean --doc_mask?"),
        ("a.py --xyz more", "unrecognized arguments: --xyz more\n"),
        ("a.py --epochs two", "argument --epochs: invalid int value: 'two'\n"),
    ],
)
def test_a_mistyped_flag_is_one_line_with_the_one_that_was_meant(monkeypatch, capsys, typed, words):
    monkeypatch.setattr(sys, "argv", typed.split())
    monkeypatch.setattr(sys, "modules", {**sys.modules, "__main__": types.ModuleType("__main__")})
    parser = args.make_parser("About.")
    args.add_fields(parser, TrainConfig)
    if "sft" in typed:
        args.add_fields(parser.add_subparsers().add_parser("sft"), SFTConfig)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(typed.split()[1:])
    said = capsys.readouterr().err
    assert left.value.code == 2 and words in said and said.startswith("error: ")
    assert said.endswith(f"\nall flags: python a.py{' sft' * ('sft' in typed)} --help\n") and said.count("\n") == 2


def test_a_program_is_named_as_it_was_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["some/1-pretrain.py"])
    main = types.ModuleType("__main__")
    monkeypatch.setattr(sys, "modules", {**sys.modules, "__main__": main})
    assert args.make_parser("").prog == "python some/1-pretrain.py"
    main.__spec__ = importlib.machinery.ModuleSpec("evaluation.report", None)
    assert args.make_parser("").prog == "python -m evaluation.report"


def test_a_misspelt_default_stops_at_start():
    with pytest.raises(TypeError, match="no field.*learning_rat"):
        parser_of(TrainConfig, defaults={"learning_rat": 1})


def test_help_names_every_default():
    text = parser_of(TrainConfig).format_help()
    assert all(f.name in text for f in dataclasses.fields(TrainConfig)) and "(default: 0.95)" in text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("dim 5 is wrong"), 1, "error: dim 5 is wrong"),
        (FileNotFoundError(2, "No such file", "a.bin"), 1, "error: no such file: a.bin"),
        (KeyboardInterrupt(), 130, "stopped by ctrl-C"),
    ],
)
def test_what_a_person_causes_is_one_line_and_an_exit_code(capsys, error, code, words):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as left:
        args.run(main, [])
    assert left.value.code == code
    assert words in capsys.readouterr().err


def test_sigterm_closes_what_is_open_and_exits_with_143(capsys):
    before, closed = signal.getsignal(signal.SIGTERM), []

    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            closed.append(1)

    with pytest.raises(SystemExit) as left:
        args.run(main, [])
    assert left.value.code == 143 and closed and "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_bugs_and_debug_keep_their_traceback():
    def main(argv):
        raise KeyError("x") if not argv else ValueError("y")

    with pytest.raises(KeyError):
        args.run(main, [])
    with pytest.raises(ValueError):
        args.run(main, ["--debug"])


def test_bool_parser_refuses_other_words():
    assert args.parse_bool("On") is True and args.parse_bool("0") is False
    with pytest.raises(argparse.ArgumentTypeError, match="maybe"):
        args.parse_bool("maybe")
