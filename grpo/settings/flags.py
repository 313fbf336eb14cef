"""Command-line flags made from the fields of a dataclass, with one-line errors.

Each field declared with `option` is a flag of the same name. argparse only splits the command line
and prints --help; values are read and checked here, so that a dataclass built in Python, from JSON
or from flags is held to the same rules and fails with the same line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import operator
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from grpo.settings.errors import UsageError

BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "greater than"),
    "lt": (operator.lt, "less than"),
}
EXPECTED = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
LARGEST = 2**53  # whole numbers beyond it are no count of anything, and no float holds them
METAVARS = {int: "N", float: "X", str: "TEXT"}


def option(group: str, default: Any, help: str, **bounds: float) -> Any:
    """A dataclass field that is also a flag; a bool, False by default, is a flag without a value.

    Bounds: ge, gt and lt (x >= ge, x > gt, x < lt).
    """
    metadata = {"group": group, "help": help, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """For __post_init__: check every field, and make an int in a float field a float.

    Raises UsageError for a wrong type, an unknown choice or a value out of bounds.
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
        _check(field, value, kind, choices)


def _check(field: dataclasses.Field[Any], value: Any, kind: type, choices: Sequence[str]) -> None:
    what = f"{flag(field.name)} {value}"
    if choices and value not in choices:
        raise UsageError(f"{what}: unknown choice; use one of {', '.join(choices)}")
    fits = type(value) is kind  # and not isinstance, because True is an int to isinstance
    if not fits or (kind is float and not math.isfinite(value)) or (kind is str and "\0" in value):
        raise UsageError(f"{what}: expected {EXPECTED[kind]}, such as {shown(field.default)}")
    if kind is int and abs(value) > LARGEST:
        raise UsageError(f"{what}: too large; use one such as {shown(field.default)}")
    for bound, limit in field.metadata["bounds"].items():
        holds, words = BOUNDS[bound]
        if not holds(value, limit):
            raise UsageError(f"{what}: must be {words} {limit}, such as {shown(field.default)}")


def check_file(flag: str, file: str | None) -> None:
    """Raise UsageError for an output file that could not be written, before the work for it."""
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
    """The options of `cls` that were typed in `argv` (None: the command line), and only those.

    `aliases` are second names of options; `presets`, named sets of values, are quoted in --help.
    Every flag is accepted with dashes or underscores, none may be abbreviated, the last one wins.
    Raises UsageError; exits with 0 after --help.
    """
    argv = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    hints = typing.get_type_hints(cls)
    parser = _Parser(prog, f"{prog} [flags]", description, allow_abbrev=False)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        heading = field.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        names = [field.name, *(a for a, name in (aliases or {}).items() if name == field.name)]
        kind, choices, _ = _kind(hints[field.name])
        groups[heading].add_argument(
            *map(flag, names),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=_help(field, presets or {}),
            **_argument(kind, choices),
        )
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.refuse(unknown[0])
    fields = cls.__dataclass_fields__
    return {name: _read(fields[name], text, hints[name]) for name, text in vars(typed).items()}


def _argument(kind: type, choices: Sequence[str]) -> dict[str, Any]:
    """What argparse is told of a flag's value: how --help shows it, or that there is none."""
    if kind is bool:
        return {"action": "store_true"}
    return {"metavar": "{" + ",".join(choices) + "}" if choices else METAVARS[kind]}


def flag(name: str) -> str:
    """A field's flag.

    >>> flag("group_size")
    '--group-size'
    """
    return "--" + name.replace("_", "-")


def names_in(text: str) -> tuple[str, ...]:
    """The names of a comma list, each once. Raises UsageError for "none" among others.

    >>> names_in("CT, XRAY, CT"), names_in("None")
    (('CT', 'XRAY'), ())
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if "none" not in map(str.lower, names):
        return names
    if {name.lower() for name in names} != {"none"}:
        raise UsageError(f"{text}: none and something; give the names, or none alone")
    return ()


def steps_in(text: str, steps: int) -> frozenset[int]:
    """The steps that --trace-steps names; "auto": about 20 of all `steps`, and the last.

    >>> sorted(steps_in("auto", 45)), sorted(steps_in("1,50", 45)), sorted(steps_in("0", 45))
    ([3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45], [1, 50], [])
    """
    if text == "auto":
        return frozenset({*range(every := -(-steps // 20), steps, every), steps})
    if not all(word.strip().isdecimal() and len(word) < 20 for word in text.split(",")):
        raise UsageError(f"--trace-steps {text}: give steps, as 1,2,50; or auto, or 0 for none")
    return frozenset(map(int, text.split(","))) - {0}


def _dashed(word: str) -> str:
    """The underscores of a flag as dashes; a value, also one after '=', stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _kind(hint: Any) -> tuple[type, tuple[str, ...], bool]:
    """A type hint as (type, choices, may be None): int, float | None, Literal["a", "b"]..."""
    if typing.get_origin(hint) is typing.Literal:
        return str, typing.get_args(hint), False
    members = typing.get_args(hint) or (hint,)
    return members[0], (), type(None) in members


def _read(field: dataclasses.Field[Any], text: str | bool, hint: Any) -> Any:
    """What was typed, in the field's type; a flag without a value is True already."""
    kind, _, optional = _kind(hint)
    if isinstance(text, bool):
        return text
    if optional and text.lower() == "none":
        return None
    try:
        return kind(text)
    except ValueError:
        expected = f"expected {EXPECTED[kind]}, such as {shown(field.default)}"
        raise UsageError(f"{flag(field.name)} {text}: {expected}") from None


def _help(field: dataclasses.Field[Any], presets: Mapping[str, Mapping[str, Any]]) -> str:
    """The help sentence, then the default and the presets that differ from it."""
    if field.default is False:
        return field.metadata["help"].replace("%", "%%")
    values_shown = [f"default {shown(field.default)}"]
    for preset, values in presets.items():
        if values.get(field.name, field.default) != field.default:
            values_shown.append(f"{preset} {shown(values[field.name])}")
    return f"{field.metadata['help']} [{'; '.join(values_shown)}]".replace("%", "%%")


def shown(value: Any) -> str:
    """A value as it is typed.

    >>> shown(1e-5), shown(None)
    ('1e-05', 'none')
    """
    return "none" if value is None else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse's complaint, as a UsageError in place of a usage dump."""
        raise UsageError(f"{message.removeprefix('argument ')}; --help explains the flags")

    def refuse(self, word: str) -> NoReturn:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
        kind = "flag" if word.startswith("-") else "word"
        raise UsageError(f"{word}: unknown {kind}; {remedy}")
