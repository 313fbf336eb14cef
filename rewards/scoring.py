"""Completion text -> number. What the policy is paid for, and nothing of how it is trained.

A reward function has TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`:
lists of equal length, one entry a completion. `columns` holds what is known of each question
(`answer`, its gold letter, `letters`, `options`, `references`, `modality`, `reasoning`, ...); an
open question has no letters, and `references` are its right answers in words.
None says "does not apply here". A coroutine function will do.

It must be pure: the same arguments give the same numbers, and the arguments are left as they are. A
resumed run scores its completions again and has to end in the same weights.
"""

import asyncio
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from types import ModuleType

from rewards import rules
from rewards.answers import answered_right, is_formatted

RewardFunction = Callable[..., Sequence[float | None]]


class RewardError(ValueError):
    """A reward that cannot be built or gave what is no reward: one line, with the remedy."""


@dataclass(frozen=True)
class Reward:
    """One term of the total: `weight * function(...)`, logged without its weight under `name`."""

    name: str
    function: RewardFunction
    weight: float = 1.0


def format_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    letters: Sequence[Sequence[str]],
    asked: Sequence[str] = (),
    **columns: object,
) -> list[float]:
    """1.0 for `<think>...</think><answer>B</answer>` and a letter that was offered, else 0.0.

    Of an open question: any text in place of the letter.
    `asked` "direct" (an entry a completion; empty: none): the answer block and nothing else.

    >>> said = ["<think>bright</think><answer>B</answer>", "B"]
    >>> format_reward(["Which?"] * 2, said, letters=["AB", "AB"])
    [1.0, 0.0]
    """
    reasons = [way != "direct" for way in asked] or [True] * len(completions)
    rows = zip(completions, letters, reasons, strict=True)
    return [float(is_formatted(text, *expected)) for text, *expected in rows]


def accuracy_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    letters: Sequence[Sequence[str]],
    options: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]] = (),
    **columns: object,
) -> list[float]:
    """1.0 where `answered_right`: the gold letter, or a right answer in words, else 0.0.

    >>> said = ["<answer>B</answer>", "<answer>cyst</answer>", "<answer>A or B</answer>"]
    >>> columns = {"answer": "BBB", "letters": ["AB"] * 3, "options": [["none", "cyst"]] * 3}
    >>> accuracy_reward(["Which?"] * 3, said, **columns)
    [1.0, 1.0, 0.0]
    """
    references = references or [()] * len(completions)
    rows = zip(completions, answer, letters, options, references, strict=True)
    return [float(answered_right(*row)) for row in rows]


# Rewards that are a judge's opinion (judges/judge_rewards.py) -> the flag that names such a judge.
A_TEXT_MODEL = "--judge URL --judge-model NAME, or --judge hf:FOLDER"
NEED_A_JUDGE = dict.fromkeys(("semantic", "reasoning", "correctness"), A_TEXT_MODEL)
NEED_A_JUDGE["similarity"] = "--judge embed:FOLDER"
NEVER_ALONE = {
    "similarity": "opposite findings can be more similar than synonyms",
    "f1": "naming two answers pays as much as guessing one",
}


def built_in(length_cap: int = 100) -> dict[str, RewardFunction]:
    """The rewards that need no judge, by name; `length_cap` in words, at least 1."""
    return {
        "format": format_reward,
        "accuracy": accuracy_reward,
        "accuracy-medvlm-r1": rules.accuracy_medvlm_r1,
        "length-ecr": partial(rules.length_ecr, cap=length_cap),
        "length-cwr": partial(rules.length_cwr, cap=length_cap),
        "consistency": rules.consistency_rule,
        "findings": rules.findings_reward,
        "f1": rules.f1_reward,
    }


def parse_rewards(spec: str, known: Mapping[str, RewardFunction] | None = None) -> list[Reward]:
    """The rewards of `--reward NAME[=WEIGHT],...`; a name is `known` or `FILE.py:FUNCTION`.

    `known` is `built_in()` where it is not given. A weight is a finite number, 1 where none is
    given; 0 logs a reward without paying for it, and a negative weight makes a penalty. Raises
    RewardError.

    >>> [(reward.name, reward.weight) for reward in parse_rewards("format=0.5,accuracy")]
    [('format', 0.5), ('accuracy', 1.0)]
    """
    known = built_in() if known is None else known
    rewards: list[Reward] = []
    for item in spec.split(","):
        name, equals, number = item.strip().partition("=")
        weight = _weight(name, number) if equals else 1.0
        path, colon, function = name.rpartition(":")
        if colon:
            reward = Reward(function, _load(Path(path), function), weight)
        else:
            reward = Reward(name, _known(name, known), weight)
        if reward.name in [other.name for other in rewards]:
            raise RewardError(f"reward {reward.name!r} is there twice; drop or rename one")
        rewards.append(reward)
    accurate = any(reward.name == "accuracy" and reward.weight > 0 for reward in rewards)
    for name, reason in NEVER_ALONE.items():
        of = [r for r in rewards if r.weight and r.function is known.get(name)]
        if of and not accurate:
            raise RewardError(f"reward {name!r} must not stand alone: {reason}; add accuracy=1")
    return rewards


def _known(name: str, known: Mapping[str, RewardFunction]) -> RewardFunction:
    """The function of that name. Raises RewardError."""
    if name in known:
        return known[name]
    if name in NEED_A_JUDGE:
        raise RewardError(f"reward {name!r} needs a judge; add {NEED_A_JUDGE[name]}")
    names = f"{', '.join(known)}, or path/to/file.py:function for your own"
    raise RewardError(f"unknown reward {name!r}; known: {names}")


def _weight(name: str, number: str) -> float:
    """`number` as a weight. Raises RewardError."""
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise RewardError(f"reward {name!r}: weight {number!r} is no number; write {name}=0.5")
    return weight


def _load(path: Path, function: str) -> RewardFunction:
    """The named function of the user's file, which is run to get it. Raises RewardError."""
    if not path.is_file():
        raise RewardError(f"reward {function!r}: there is no file {path}; give a Python file")
    # Compiled here and not imported, because an import writes __pycache__ beside the user's file.
    name = str(path.resolve())
    module = sys.modules[name] = ModuleType(name)  # dataclasses look their module up there
    module.__file__ = name
    try:
        exec(compile(path.read_bytes(), name, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a script's exit() must not end the run in silence
        raise RewardError(f"reward {function!r}: mend {path}, {_line(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise RewardError(f"reward {function!r}: no such function in {path}; define it there")
    return found


def score(
    rewards: Sequence[Reward],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence],
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Score n completions: their totals (n,), and by name, without weights, the parts (n,) each.

    A total is the weighted sum of the parts that apply. Raises RewardError where a function raises
    or returns anything but n finite numbers or Nones, and where no reward applies to a completion,
    because the 0 of an empty sum would be a judgement, too.

    >>> columns = {"answer": ["B"], "letters": ["AB"], "options": [["none", "cyst"]]}
    >>> score(parse_rewards("format=0.5,accuracy"), ["Which?"], ["<answer>B</answer>"], columns)
    ([1.0], {'format': [0.0], 'accuracy': [1.0]})
    """
    n = len(completions)
    for name, column in {"prompts": prompts, **columns}.items():
        if len(column) != n:  # one short, and completions are paid for another question's answer
            raise RewardError(f"{name}: {len(column)} entries for {n} completions; give one each")
    parts = {reward.name: _call(reward, prompts, completions, columns) for reward in rewards}
    totals = []
    for i in range(n):
        values = [(reward.weight, parts[reward.name][i]) for reward in rewards]
        terms = [weight * value for weight, value in values if value is not None]
        if not terms:
            remedy = "add one that always applies, such as accuracy"
            raise RewardError(f"no reward applies to completion {i}, all gave None; {remedy}")
        totals.append(sum(terms, 0.0))
    return totals, parts


def _call(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence],
) -> list[float | None]:
    """The reward's values (n,) as plain floats and Nones, each of them checked."""
    name, n = reward.name, len(completions)
    try:
        values = reward.function(prompts=prompts, completions=completions, **columns)
        values = asyncio.run(values) if inspect.iscoroutine(values) else values
    except RewardError:  # of a judge: it says itself what to do
        raise
    except (Exception, SystemExit) as error:
        remedy = "it must take (prompts, completions, **columns) and return a list"
        raise RewardError(f"reward {name!r} raised {_line(error)}; {remedy}") from error
    if not hasattr(values, "__len__") or isinstance(values, str | bytes | Mapping | set):
        given = type(values).__name__
        raise RewardError(f"reward {name!r} returned {given}; return a list of {n} numbers")
    if len(values) != n:
        given = f"{len(values)} values for {n} completions"
        raise RewardError(f"reward {name!r} returned {given}; return one for each, in order")
    for i, value in enumerate(values):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            given = f"{_line(value)} for completion {i}"
            raise RewardError(f"reward {name!r} returned {given}; return a finite float, or None")
    return [None if value is None else float(value) for value in values]


def _line(thing: object) -> str:
    """An error or a value as a message shows it: on one line, and not a long one."""
    return " ".join(repr(thing).split())[:150]
