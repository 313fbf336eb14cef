"""Command-line flags made from the fields of a dataclass, with one-line errors.

Each field declared with `option` is a flag of the same name. argparse splits the command line and
prints --help. `check_options` checks the values, so a dataclass that is built in Python, from JSON
or from flags obeys the same rules and fails with the same message.
"""

import argparse
import dataclasses
import difflib
import functools
import itertools
import math
import operator
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from grpo.settings.errors import UsageError

BOUNDS = {"ge": "at least", "gt": "greater than", "lt": "less than"}  # by operator's functions
EXPECTED = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
LARGEST = 2**53  # float64 represents every whole number up to here exactly
METAVARS = {int: "N", float: "X", str: "TEXT"}


def option(group: str, default: Any, help: str, **bounds: float) -> Any:
    """Declare a dataclass field that is also a flag under the heading `group` of --help.

    A field whose default is False becomes a flag without a value. The bounds are ge, gt and lt
    (x >= ge, x > gt, x < lt).
    """
    metadata = {"group": group, "help": help, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Check every field of a dataclass; call this in its __post_init__.

    A whole number in a float field becomes a float. Raises UsageError for a wrong type, an unknown
    choice or a value out of bounds.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        kind, choices, optional = _kind(hints[field.name])
        if value is None and optional:
            continue
        if kind is float and type(value) is int and abs(value) <= LARGEST:
            value = float(value)
            object.__setattr__(options, field.name, value)  # the dataclass is frozen
        if choices:
            check_names(field.name, [value], choices)
        elif why := _problem(value, kind, field.metadata["bounds"]):
            raise UsageError(f"{flag(field.name)} {value}: {why} such as {shown(field.default)}")


def _problem(value: Any, kind: type, bounds: Mapping[str, float]) -> str:
    """Why a value is refused; "" if it is allowed."""
    fits = type(value) is kind  # isinstance would let True pass as an int
    if not fits or (kind is float and not math.isfinite(value)) or (kind is str and "\0" in value):
        return f"expected {EXPECTED[kind]},"
    if kind is int and abs(value) > LARGEST:
        return "too large; use one"
    for bound, limit in bounds.items():
        if not getattr(operator, bound)(value, limit):
            return f"must be {BOUNDS[bound]} {limit},"
    return ""


def check_names(name: str, given: Sequence[Any], known: Sequence[str], more: str = "") -> None:
    """Raise UsageError if one of the names `given` to the setting `name` is not a `known` one."""
    if unknown := [one for one in given if one not in known]:
        remedy = f"use one of {', '.join(known)}{more}"
        raise UsageError(f"{flag(name)} {unknown[0]}: unknown choice; {remedy}")


def check_file(flag: str, file: str | None) -> None:
    """Raise UsageError if an output file cannot be written, before any work is done for it."""
    if file and not Path(file).absolute().parent.is_dir():
        raise UsageError(f"{flag} {file}: no such folder; make it first")
    if file and Path(file).is_dir():
        raise UsageError(f"{flag} {file}: that is a folder; name a file")


def parse_flags(
    cls: type,
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    aliases: Mapping[str, str] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the options of `cls` that were typed in `argv` (None: the command line).

    `aliases` maps second names of options to their names; --help quotes `presets`, named sets of
    values. Dashes and underscores are equal, no flag may be abbreviated, and the last one wins.
    A number that cannot be read stays text, which `check_options` then refuses.
    Raises UsageError for an unknown flag; exits with 0 after --help.
    """
    hints = typing.get_type_hints(cls)
    parser = _Parser(prog, f"{prog} [flags]", description, allow_abbrev=False)
    grouped = itertools.groupby(dataclasses.fields(cls), lambda field: field.metadata["group"])
    for heading, fields in grouped:
        group = parser.add_argument_group(heading)
        for field in fields:
            names = [field.name, *(a for a, name in (aliases or {}).items() if name == field.name)]
            kind, choices, optional = _kind(hints[field.name])
            value: dict[str, Any] = {"action": "store_true"}
            if kind is not bool:
                metavar = "{" + ",".join(choices) + "}" if choices else METAVARS[kind]
                value = {"metavar": metavar, "type": functools.partial(_read, kind, optional)}
            value |= {"dest": field.name, "default": argparse.SUPPRESS}
            group.add_argument(*map(flag, names), help=_help(field, presets or {}), **value)
    words = sys.argv[1:] if argv is None else argv
    # The name of a flag may have underscores; a value, also one after "=", stays as it is.
    dashed = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in words]
    typed, unknown = parser.parse_known_args(dashed)
    if unknown:
        parser.refuse(unknown[0])
    return vars(typed)


def flag(name: str) -> str:
    """Return a field's flag.

    >>> flag("group_size")
    '--group-size'
    """
    return "--" + name.replace("_", "-")


def names_in(text: str, flag: str = "") -> tuple[str, ...]:
    """Return the names of a comma list, each once; () for "none".

    Raises UsageError, which begins with `flag`, for "none" among other names.

    >>> names_in("CT, XRAY, CT"), names_in("None")
    (('CT', 'XRAY'), ())
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    nones = [name for name in names if name.lower() == "none"]
    if nones and len(nones) < len(names):
        raise UsageError(f"{flag}{text}: none and something; give the names, or none alone")
    return () if nones else names


def steps_in(text: str, steps: int) -> frozenset[int]:
    """Return the steps that --trace-steps names; "auto": about 20 of all `steps`, and the last.

    Raises UsageError if the text names no steps.

    >>> sorted(steps_in("auto", 45)), sorted(steps_in("1,50", 45)), sorted(steps_in("0", 45))
    ([3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45], [1, 50], [])
    """
    if text == "auto":
        every = math.ceil(steps / 20)
        return frozenset({*range(every, steps, every), steps})
    if not all(word.strip().isdecimal() and len(word) < 20 for word in text.split(",")):
        raise UsageError(f"--trace-steps {text}: give steps, as 1,2,50; or auto, or 0 for none")
    return frozenset(map(int, text.split(","))) - {0}


def shown(value: Any) -> str:
    """Return a value as a user types it.

    >>> shown(1e-5), shown(None)
    ('1e-05', 'none')
    """
    return "none" if value is None else str(value)


def _kind(hint: Any) -> tuple[type, tuple[str, ...], bool]:
    """Take a type hint apart: (type, choices, may be None); int, float | None, Literal["a"]..."""
    if typing.get_origin(hint) is typing.Literal:
        return str, typing.get_args(hint), False
    members = typing.get_args(hint) or (hint,)
    return members[0], (), type(None) in members


def _read(kind: type, optional: bool, text: str) -> Any:
    """Return typed text as a value of this kind; text that cannot be read stays text."""
    try:
        return None if optional and text.lower() == "none" else kind(text)
    except ValueError:
        return text


def _help(field: dataclasses.Field[Any], presets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the help sentence, the default and the presets that differ from the default."""
    values = {"default": field.default}
    values |= {name: v[field.name] for name, v in presets.items() if field.name in v}
    differ = [f"{k} {shown(v)}" for k, v in values.items() if k == "default" or v != field.default]
    listed = "" if field.default is False else f" [{'; '.join(differ)}]"
    return (field.metadata["help"] + listed).replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a UsageError; argparse would print the usage."""
        raise UsageError(f"{message.removeprefix('argument ')}; --help explains the flags")

    def refuse(self, word: str) -> NoReturn:
        """Raise UsageError for a word that is no flag, with the closest flag as the remedy."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
        kind = "flag" if word.startswith("-") else "word"
        raise UsageError(f"{word}: unknown {kind}; {remedy}")
