"""How a setting of the data commands is declared: one dataclass field is the flag, its help and its record."""

import dataclasses


def knob(default, text, choices=None):
    """A dataclass field that is also a command-line flag; a field of type list[str] takes several values."""
    kwargs = {"default_factory": default} if callable(default) else {"default": default}
    return dataclasses.field(metadata={"help": text, "choices": choices}, **kwargs)
