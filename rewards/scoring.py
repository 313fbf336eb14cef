"""Build the rewards that `--reward` names, and score completions with them.

A reward function has TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`:
lists of equal length, one entry for each completion. `columns` holds what is known about each
question (`answer`, the right letter, `letters`, `options`, `references`, `modality`, `reasoning`,
...) and in training `completion_ids`, the list of a completion's token ids with its end. An open
question has no letters; `references` are its right answers in words. None means that the reward
does not apply to the completion. A coroutine function is allowed.

A reward function must be pure: the same arguments give the same numbers, and the arguments stay
unchanged. A resumed run scores its completions again and must end in the same weights.
"""

import math
from asyncio import CancelledError, iscoroutine
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import starmap
from numbers import Number
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rewards import rules
from rewards.answers import Texts, Values, answered_right, is_formatted, rows
from rewards.own_file import LOOP, call, run_file

RewardFunction = Callable[..., Sequence[float | None]]
# The size of a reward times its weight: within a group, its square must not exceed a float32.
LARGEST = 1e18


class RewardError(ValueError):
    """A reward cannot be built, or returned something unusable: one line, with the remedy."""


class Reward(NamedTuple):
    """One term of the total, `weight * function(...)`; logged under `name` without its weight."""

    name: str
    function: RewardFunction
    weight: float = 1.0


def format_reward(prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 for `<think>...</think><answer>B</answer>` with an offered letter, else 0.0.

    Reads the columns letters and asked. An open question accepts any text in place of the letter.
    If `asked` is "direct", the answer block stands alone.

    >>> said = ["<think>bright</think><answer>B</answer>", "B"]
    >>> format_reward(["Which?"] * 2, said, letters=["AB", "AB"])
    [1.0, 0.0]
    """
    asked = rows(completions, columns, "letters", "asked")
    return [float(is_formatted(text, letters, way != "direct")) for text, letters, way in asked]


def accuracy_reward(prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if `answered_right`: the right letter, or a right answer in words; else 0.0.

    Reads the columns answer, letters, options and references.

    >>> said = ["<answer>B</answer>", "<answer>cyst</answer>", "<answer>A or B</answer>"]
    >>> columns = {"answer": "BBB", "letters": ["AB"] * 3, "options": [["none", "cyst"]] * 3}
    >>> accuracy_reward(["Which?"] * 3, said, **columns)
    [1.0, 1.0, 0.0]
    """
    questions = rows(completions, columns, "answer", "letters", "options", "references")
    return list(map(float, starmap(answered_right, questions)))


# What needs a judge (judges/judge_rewards.py), each with the flag that names one.
A_TEXT_MODEL = "--judge URL --judge-model NAME, or --judge hf:FOLDER"
NEED_A_JUDGE = dict.fromkeys(("semantic", "reasoning", "correctness"), A_TEXT_MODEL)
NEED_A_JUDGE["similarity"] = "--judge embed:FOLDER"
NEVER_ALONE = {
    "similarity": "opposite findings can be more similar than synonyms",
    "f1": "naming two answers pays as much as guessing one",
}


def built_in(
    length_cap: int = 100, longest: int = 256, overlong_cache: int | None = None
) -> dict[str, RewardFunction]:
    """Return the rewards that need no judge, by name; `length_cap` in words, at least 1, and for
    `overlong` the longest completion and its cache in tokens."""
    return {
        "format": format_reward,
        "accuracy": accuracy_reward,
        "accuracy-medvlm-r1": rules.accuracy_medvlm_r1,
        "length-ecr": partial(rules.length_ecr, cap=length_cap),
        "length-cwr": partial(rules.length_cwr, cap=length_cap),
        "overlong": partial(rules.overlong, longest=longest, cache=overlong_cache),
        "consistency": rules.consistency_rule,
        "findings": rules.findings_reward,
        "f1": rules.f1_reward,
    }


def parse_rewards(spec: str, known: Mapping[str, RewardFunction] | None = None) -> list[Reward]:
    """Build the rewards of `--reward NAME[=WEIGHT],...`; a name is `known` or `FILE.py:FUNCTION`.

    `known` defaults to `built_in()`. A weight is a finite number, by default 1; weight 0 logs the
    reward without adding it to the total, and a negative weight makes a penalty. Raises RewardError
    if a reward is unknown, cannot be loaded, occurs twice or must not stand alone.

    >>> [(reward.name, reward.weight) for reward in parse_rewards("format=0.5,accuracy")]
    [('format', 0.5), ('accuracy', 1.0)]
    """
    known = built_in() if known is None else known
    rewards: dict[str, Reward] = {}
    files: dict[Path, Any] = {}
    for item in spec.split(","):
        name, equals, number = item.strip().partition("=")
        weight = _weight(name, number) if equals else 1.0
        path, colon, function = name.rpartition(":")
        found = _load(Path(path), function, files) if colon else _known(name, known)
        if function in rewards:  # `function` is the name if there is no colon
            raise RewardError(f"reward {function!r} is there twice; drop or rename one")
        rewards[function] = Reward(function, found, weight)
    accurate = "accuracy" in rewards and rewards["accuracy"].weight > 0
    for name, reason in NEVER_ALONE.items():
        used = name in rewards and rewards[name].weight
        if used and not accurate and rewards[name].function is known.get(name):
            raise RewardError(f"reward {name!r} must not stand alone: {reason}; add accuracy=1")
    return list(rewards.values())


def _known(name: str, known: Mapping[str, RewardFunction]) -> RewardFunction:
    """Return the function of that name. Raises RewardError if there is none."""
    if name in known:
        return known[name]
    if name in NEED_A_JUDGE:
        raise RewardError(f"reward {name!r} needs a judge; add {NEED_A_JUDGE[name]}")
    names = f"{', '.join(known)}, or path/to/file.py:function for your own"
    raise RewardError(f"unknown reward {name!r}; known: {names}")


def _weight(name: str, number: str) -> float:
    """Read `number` as a weight. Raises RewardError if it is no finite number."""
    with suppress(ValueError):
        if math.isfinite(weight := float(number)):
            return weight
    raise RewardError(f"reward {name!r}: weight {number!r} is no number; write {name}=0.5")


def _load(path: Path, function: str, files: dict[Path, Any]) -> RewardFunction:
    """Return the named function of the user's file, which is run once. Raises RewardError."""
    if not path.is_file():
        raise RewardError(f"reward {function!r}: there is no file {path}; give a Python file")
    place = path.resolve()
    try:
        module, chosen = files[place] = files[place] if place in files else run_file(place)
    except (Exception, SystemExit) as error:  # a script's exit() must not end the run silently
        raise RewardError(f"reward {function!r}: mend {path}, {_line(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise RewardError(f"reward {function!r}: no such function in {path}; define it there")
    return partial(call, found, chosen)


def score(
    rewards: Sequence[Reward], prompts: Texts, completions: Texts, columns: Mapping[str, Sequence]
) -> tuple[list[float], dict[str, Values]]:
    """Score n completions: return the totals (n,) and, by name, the unweighted parts (n,).

    A total is the weighted sum of the parts that apply. Raises RewardError if a column has another
    length, if a function raises or returns anything but n finite numbers or Nones, and if no reward
    applies to a completion: the 0 of an empty sum would be a judgement, too. If a judge gave no
    verdict about it, its total is the mean of its question's other completions.

    >>> columns = {"answer": ["B"], "letters": ["AB"], "options": [["none", "cyst"]]}
    >>> score(parse_rewards("format=0.5,accuracy"), ["Which?"], ["<answer>B</answer>"], columns)
    ([1.0], {'format': [0.0], 'accuracy': [1.0]})
    """
    n = len(completions)
    arguments = {**columns, "prompts": prompts, "completions": completions}
    for name, column in arguments.items():
        if len(column) != n:  # else completions would be compared with other questions' answers
            raise RewardError(f"{name}: {len(column)} entries for {n} completions; give one each")
    parts: dict[str, Values] = {}
    totals, applied = [0.0] * n, [False] * n
    for reward in rewards:
        parts[reward.name] = _call(reward, arguments)
        for i, value in enumerate(parts[reward.name]):
            if value is not None:
                totals[i] += reward.weight * value
                applied[i] = True
    judged, asked = NEED_A_JUDGE.keys() & parts.keys(), columns.get("id", prompts)
    for i in range(n):
        if applied[i]:
            continue
        if not (judged and any(applied)):
            remedy = "add one that always applies, such as accuracy"
            raise RewardError(f"no reward applies to completion {i}, all gave None; {remedy}")
        # The judge gave no verdict: neither better nor worse than its group.
        group = [totals[j] for j in range(n) if applied[j] and asked[j] == asked[i]]
        totals[i] = fmean(group or [0.0])
    return totals, parts


def _call(reward: Reward, arguments: Mapping[str, Sequence]) -> Values:
    """Return the values (n,) as plain floats and Nones. Raises RewardError if one is neither."""
    name, n = reward.name, len(arguments["completions"])
    try:
        values = reward.function(**arguments)
        values = LOOP.run(values) if iscoroutine(values) else values
    except RewardError:  # a judge's: its message already holds the remedy
        raise
    except (Exception, SystemExit, CancelledError) as error:
        remedy = "it must take (prompts, completions, **columns) and return a list"
        raise RewardError(f"reward {name!r} raised {_line(error)}; {remedy}") from error
    single = not hasattr(values, "__len__") or getattr(values, "shape", None) == ()
    if single or isinstance(values, str | bytes | Mapping | set):
        given = type(values).__name__
        raise RewardError(f"reward {name!r} returned {given}; return a list of {n} numbers")
    if len(values) != n:
        given = f"{len(values)} values for {n} completions"
        raise RewardError(f"reward {name!r} returned {given}; return one for each, in order")
    floats: Values = []
    for i, value in enumerate(values):
        number = value if type(value) is float else _number(value)
        if number is not None and not abs(number) * max(1.0, abs(reward.weight)) <= LARGEST:
            given = f"{_line(value)} for completion {i}"
            remedy = f"return a finite float, times its weight at most {LARGEST:g}, or None"
            raise RewardError(f"reward {name!r} returned {given}; {remedy}")
        floats.append(number)
    return floats


def _number(value: object) -> float | None:
    """Return a number of any type as a float; NaN if it is none or too large for a float."""
    if value is None:
        return None
    with suppress(Exception):  # numbers of other libraries raise many kinds
        value = value.item() if hasattr(value, "item") else value  # a scalar of numpy or torch
        if isinstance(value, Number):
            return float(value)
    return math.nan


def _line(thing: object) -> str:
    """Return the repr of an error or a value on one line of at most 150 characters."""
    with suppress(Exception):  # Python writes no integer of more than 4300 digits
        return " ".join(repr(thing).split())[:150]
    return type(thing).__name__
