"""`BLANKS` lists the functions that are to be written, `verdict` grades one: the answer is compared
with the oracles of the test suite, in values and gradients."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.exercises import check_equations, check_model
from tests.exercises.comparing import Wrong

RIGHT, NOT_BEGUN, WRONG = "right", "not begun", "wrong: "


@dataclass(frozen=True)
class Blank:
    """A function that is to be written in `file`, and the module that has the project's own."""

    file: str
    home: str
    check: Callable[[Any], None]  # of the function or, for a method, of its class; raises Wrong

    @property
    def number(self) -> str:
        return self.file.split("_")[1]


def answer(name: str) -> Any:
    """The reader's function, or the class with the reader's method."""
    return getattr(import_module(f"tests.exercises.{BLANKS[name].file}"), name.split(".")[0])


def solution(name: str) -> Any:
    """The project's."""
    return getattr(import_module(BLANKS[name].home), name.split(".")[0])


def verdict(name: str, find: Callable[[str], Any] = answer) -> str:
    """RIGHT, NOT_BEGUN, or WRONG and what differs."""
    try:
        BLANKS[name].check(find(name))
    except Wrong as wrong:
        return f"{WRONG}{wrong}"
    except Exception as error:
        if isinstance(error, NotImplementedError) and str(error) == NOT_BEGUN:
            return NOT_BEGUN
        places = [p for p in traceback.extract_tb(error.__traceback__) if "exercise_" in p.filename]
        where = f", {Path(places[-1].filename).name} line {places[-1].lineno}" if places else ""
        return f"{WRONG}{type(error).__name__}: {error}{where}"
    return RIGHT


BLANKS = {
    "group_advantages": Blank(
        "exercise_1_advantages", "grpo.advantages", check_equations.group_advantages
    ),
    "token_weights": Blank("exercise_2_weights", "grpo.loss", check_equations.token_weights),
    "importance_ratio": Blank("exercise_3_clip", "grpo.loss", check_equations.importance_ratio),
    "clipped_surrogate": Blank("exercise_3_clip", "grpo.loss", check_equations.clipped_surrogate),
    "k3_kl": Blank("exercise_4_kl", "grpo.loss", check_equations.k3_kl),
    "TreeAttention.__call__": Blank(
        "exercise_5_tree", "models.attention", check_model.tree_attention
    ),
    "pack": Blank("exercise_5_tree", "models.tree", check_model.pack),
    "law": Blank("exercise_6_sampling", "models.distribution", check_model.law),
    "draw": Blank("exercise_6_sampling", "models.distribution", check_model.draw),
    "Rollout.add": Blank("exercise_7_ends", "models.sampling.sampler", check_model.ends),
    "Policy.logprobs": Blank("exercise_8_pass", "models.policy", check_model.logprobs),
    "policy_pass": Blank("exercise_8_pass", "grpo.loop", check_model.policy_pass),
}
