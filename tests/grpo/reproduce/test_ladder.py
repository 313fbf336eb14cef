"""The ladder: its flags, its statistics against those of rewards/, the code that it prints."""

import random
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import pytest

from grpo.reproduce.commands import Plan
from grpo.reproduce.ladder import LADDER, RUNGS, rungs, verdicts
from grpo.settings.config import Config
from rewards.evaluation.statistics import students_t

NAMES = [*RUNGS]


def arm(strict: list[float], forced: list[float], signal: float = 0.5) -> dict[str, Any]:
    """The record of an arm, with these accuracies over seeds."""
    runs = ["trained", *(f"rung-{i + 2}" for i in range(len(strict) - 1))]
    results = {"base": {"MRI": {"accuracy": 0.0, "forced_choice": 0.0}}}
    for name, accuracy, choice in zip(runs, strict, forced, strict=True):
        results[name] = {"MRI": {"accuracy": accuracy, "forced_choice": choice}}
    return {"signal": signal, "evaluation": {"results": results, "trained_on": "MRI"}}


def test_each_rung_is_a_command_that_adds_one_thing() -> None:
    for plan, recipe in ((Plan(), "phantom"), (Plan(scale="2b"), "medvlm-r1")):
        made = [Config.from_flags(plan.flags("ladder", LADDER, one)) for one in LADDER.arms]
        assert {c.recipe for c in made} == {recipe}
        assert len(set(made)) == len(made) == 10
        first, *_, fifth = (vars(c) for c in made[:5])
        assert (first["baseline"], first["kl_coef"]) == ("none", 0)
        assert (fifth["baseline"], fifth["kl_coef"], fifth["updates_per_rollout"]) == (
            "group",
            0.04,
            3,
        )
        changed = [{k for k in fifth if fifth[k] != vars(c)[k]} for c in made]
        assert changed[5:] == [
            {"loss", "clip_eps_high"},
            {"loss", "scale_rewards"},
            {"combine_rewards"},
            {"ratio", "clip_eps", "clip_eps_high"},
            {"surrogate", "loss", "clip_eps_high"},
        ]
        pairs = pairwise(made[:5])
        steps = [{k for k in vars(a) if vars(a)[k] != vars(b)[k]} for a, b in pairs]
        assert steps == [{"baseline"}, {"scale_rewards"}, {"updates_per_rollout"}, {"kl_coef"}]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_single_difference_has_students_interval(n) -> None:
    rng = random.Random(n)
    values = [rng.gauss(1, 1) for _ in range(n)]
    (line,) = verdicts({"a": values})
    mean, low, high = students_t(values)
    seen = "a difference" if low * high > 0 else "no difference seen"
    assert line == f"a: {mean:+.1f} [{low:+.1f}, {high:+.1f}] at 95.0 %: {seen}"


def test_holm_widens_the_surest_most_and_stops_at_the_first_that_holds_0() -> None:
    """t of 4 seeds: 3.182 at 95 %, 4.177 at 97.5 %, 4.857 at 98.33 %."""
    spread = [-1.5, -0.5, 0.5, 1.5]
    error = stdev(spread) / 2
    differences = {
        "last": [x + 3.3 * error for x in spread],
        "first": [x - 9 * error for x in spread],
        "second": [x + 4.1 * error for x in spread],
        "none": [0.0] * 4,
    }
    lines = {line.split(":")[0]: line for line in verdicts(differences)}
    assert [*lines] == ["first", "second", "last", "none"]
    said = {name: line.rpartition(": ")[2] for name, line in lines.items()}
    assert said == {"first": "a difference"} | dict.fromkeys(
        ("second", "last", "none"), "no difference seen"
    ), "4.1 is less than 4.857; 3.3 is more than 3.182, and too late"
    half = 5.392 * error  # 98.75 %, for four tests
    mean = fmean(differences["first"])
    assert f"[{mean - half:+.1f}, {mean + half:+.1f}]" in lines["first"]
    assert "+0.0 [+0.0, +0.0]" in lines["none"]


def test_a_rung_is_compared_with_the_one_before_and_a_variant_with_the_fifth() -> None:
    arms = {
        name: arm([0.1 * i, 0.1 * i + 0.01 * (i % 3)], [0.5, 0.5]) for i, name in enumerate(NAMES)
    }
    text = [*rungs(arms)]
    compared = [line.split(":")[0] for line in text[:18]]
    assert sorted(compared) == sorted(
        f"{name}, {figure}, to {NAMES[min(i, 4)]}"
        for i, name in enumerate(NAMES[1:])
        for figure in ("accuracy", "forced_choice")
    )
    (gspo,) = (line for line in text if line.startswith("GSPO, accuracy, to + KL: "))
    assert gspo.startswith("GSPO, accuracy, to + KL: +40.5 [")
    assert len(text) == 18 + 10


def test_each_rung_prints_the_lines_that_it_changes() -> None:
    arms = {name: arm([0.1], [0.5], signal=0.25) for name in NAMES}
    first, *text = rungs(arms)
    assert first == "One seed, or one rung, has no intervals."
    found = dict(zip(NAMES, text, strict=True))
    for name, part in {
        "REINFORCE": "lambda r, _: r,",
        "+ group baseline": "rewards - rewards.mean(",
        "/ std": "/ (rewards.std(dim=1",
        "+ clip and mu 3": "torch.min(ratio",
        "+ KL": "log_x.exp() - log_x - 1",
        "DAPO": "kept.sum()",
        "Dr. GRPO": "max_completion_length",
        "GDPO": "nansum(dim=0)",
        "GSPO": "part.mean()",
        "CISPO": "ratio.detach()",
    }.items():
        assert found[name].startswith(f"{name}: groups with signal 25 %; `")
        assert part in found[name], name
        assert len(found[name].splitlines()) <= 8


def test_of_some_arms_only_pairs_that_ran_are_compared() -> None:
    arms = {name: arm([0.1, 0.2], [0.5, 0.6]) for name in ("+ KL", "CISPO", "REINFORCE")}
    assert [line.split(",")[0] for line in rungs(arms)][:2] == ["CISPO", "CISPO"]
    assert sum("to " in line.split(":")[0] for line in rungs(arms)) == 2
