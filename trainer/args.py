"""Command lines from dataclasses, and the edge where errors become one clear line.

A field made with `knob` is the flag, its help and its record in the checkpoint. Nothing here imports torch, so that
`--help` and the data scripts start at once.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import signal
import sys
import threading
import types
import typing

from model.LMConfig import Auto

# What a person can cause arrives at the edge as one of these; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)


def flag_type(hint):
    """The callable that turns a flag's text into the value of a field annotated with `hint`."""
    options = [t for t in typing.get_args(hint) if t is not type(None)]
    if typing.get_origin(hint) is list:
        return options[0]
    base = options[0] if typing.get_origin(hint) in (typing.Union, types.UnionType) else hint
    return parse_bool if base is bool else base


def parse_bool(text):
    """'true'/'false', 'yes'/'no', 'on'/'off', '1'/'0' → bool."""
    lowered = text.lower()
    if lowered in ("true", "yes", "on", "1"):
        return True
    if lowered in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a yes or no; write true or false")


def number_or_auto(default):
    """The type of a flag that takes a whole number, or 'auto', which becomes Auto(default)."""

    def parse(text):
        if text == "auto":
            return Auto(default)
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None

    return parse


def parse_seed(text):
    """A whole number that every random generator here takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^63 - 1")
    return int(text)


class Together(argparse.Action):
    """Of a flag with several values that is typed twice, all values count; its default only where it is not typed."""

    def __call__(self, parser, namespace, values, option_string=None):
        again = getattr(self, "typed_in", None) is namespace
        self.typed_in = namespace
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values] if again else values)


def add_flag(parser, name, **kwargs):
    """Adds --some_name, and --some-name as its hidden twin, because both spellings are typed."""
    if kwargs.get("nargs") in ("+", "*"):
        kwargs.setdefault("action", Together)
    spellings = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
    parser.add_argument(*spellings, dest=name, **kwargs)


def add_fields(parser, cls, defaults=None, unset=False, without=()):
    """Adds one flag per knob of dataclass `cls`.

    Args:
        defaults: {field: value} where a script differs from the field's own default; an unknown name is a TypeError.
        unset: leave flags that were not typed out of the namespace, so that presets and checkpoints can fill them.
        without: names of fields that get no flag.
    """
    defaults = dict(defaults or {})
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if "help" not in f.metadata or f.name in without:
            continue
        several = typing.get_origin(hints[f.name]) is list
        default = defaults.pop(f.name, f.default_factory() if several else f.default)
        told = f" (default: {' '.join(default) or 'none' if several else default})"
        kwargs = {"help": f"{f.metadata['help']}{told}".replace("%", "%%"), "default": default}
        kwargs |= {"nargs": "+"} if several else {}
        if unset:
            kwargs["default"] = argparse.SUPPRESS
        kind = flag_type(hints[f.name])
        if kind is parse_bool:  # --use_moe and --use_moe true both work, and so does --use_moe false
            kwargs.update(type=parse_bool, nargs="?", const=True, metavar="BOOL")
        elif f.metadata.get("auto"):
            kwargs.update(type=number_or_auto(default), metavar="INT|auto")
        elif f.metadata.get("choices"):
            kwargs.update(choices=f.metadata["choices"])
        else:
            kwargs.update(type=kind, metavar=getattr(kind, "__name__", "VALUE").upper())
        add_flag(parser, f.name, **kwargs)
    if defaults:
        raise TypeError(
            f"{cls.__name__} has no field {sorted(defaults)}; known: {[f.name for f in dataclasses.fields(cls)]}"
        )


def split(typed, *classes):
    """A parsed namespace's dict → one dict per dataclass, by field name; a flag of neither stays in none."""
    return [{f.name: typed[f.name] for f in dataclasses.fields(cls) if f.name in typed} for cls in classes]


class Parser(argparse.ArgumentParser):
    """Errors of a command line in one line, with the flag that was meant, instead of behind all flags there are."""

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, but whatever is left over is an error, in the command that it was typed behind."""
        typed, rest = super().parse_known_args(args, namespace)
        if rest:
            flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
            near = [difflib.get_close_matches(flag, self._option_string_actions, n=1) for flag in flags]
            meant = "".join(f"; for {flag}, did you mean {found[0]}?" for flag, found in zip(flags, near) if found)
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        return typed, rest

    def error(self, message):
        """Exits with 2."""
        self.exit(2, f"error: {message}\nall flags: {self.prog} --help\n")


def started_as():
    """The beginning of the command line, as it was typed: python 1-pretrain.py, python -m evaluation.report."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"


def make_parser(doc):
    """An argument parser whose --help shows the script's own docstring, with --debug for the traceback."""
    parser = Parser(prog=started_as(), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


class Terminated(KeyboardInterrupt):
    """SIGTERM, to be heeded as ctrl-C is: what is open is closed. Carries the exit code that shells expect."""


@contextlib.contextmanager
def sigterm_heeded():
    """A context in which SIGTERM raises Terminated; a training loop has a handler of its own inside."""

    def terminate(number, frame):
        raise Terminated(128 + number)

    main_thread = threading.current_thread() is threading.main_thread()  # only there Python lets signals be handled
    before = signal.signal(signal.SIGTERM, terminate) if main_thread else None
    try:
        yield
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def run(main, argv=None):
    """Calls main(argv) and exits: errors that a person can cause become one line on stderr and exit code 1.

    Ctrl-C exits with 130 and SIGTERM with 143, as shells expect. `--debug` anywhere on the command line keeps the
    traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console without Chinese shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")
    try:
        with sigterm_heeded():
            code = main(argv)
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain at its end
        sys.exit(1)
    except USER_ERRORS as error:
        if "--debug" in argv:
            raise
        message = f"no such file: {error.filename}" if type(error) is FileNotFoundError and error.filename else error
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:  # a training loop that has saved everything brings its own code: 143 for SIGTERM
        if not stop.args or isinstance(stop, Terminated):
            print(f"\nstopped by {'SIGTERM' if stop.args else 'ctrl-C'}", file=sys.stderr, flush=True)
        sys.exit(stop.args[0] if stop.args else 130)
