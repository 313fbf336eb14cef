"""What `python -m grpo.reproduce` is asked to run, and the command line of every arm."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from grpo.reproduce.paper_tables import EXPERT, Arm, Table
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_options, names_in, option

NEEDS_JUDGE = "needs an expert model; add --judge URL --judge-model NAME, or --judge hf:FOLDER"
_opt = functools.partial(option, "table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run; the flags of `python -m grpo.reproduce NAME`."""

    scale: Literal["phantom", "2b"] = _opt("phantom", "The tiny model on phantoms, or a 2B model.")
    seeds: int = _opt(1, "Runs of each arm: seeds 1, 2, ...", ge=1)
    arms: str | None = _opt(None, "Only these arms, by number, as 1,3.")
    steps: int | None = _opt(None, "Steps of every arm, in place of its own.", ge=1)
    eval_size: int | None = _opt(None, "Test questions of each modality.", ge=1)
    data: str | None = _opt(None, "The training data at scale 2b, as NAME:FOLDER.")
    unseen: str | None = _opt(None, "Data sets never trained on, as NAME,NAME:FOLDER.")
    judge: str | None = _opt(None, "The expert model at scale 2b, as in train.py.")
    judge_model: str | None = _opt(None, "The model that a --judge URL serves.")
    out: str = _opt("runs/reproduce", "Folder for all runs and tables.")
    dry_run: bool = _opt(False, "Only say what would run, how long, and what it would fetch.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.scale == "phantom" and any((self.data, self.unseen, self.judge, self.judge_model)):
            raise UsageError("--data, --unseen and --judge go with --scale 2b; leave them out")


def arms(table: Table, plan: Plan) -> list[Arm]:
    """The arms to run, those that others start from included."""
    if plan.arms is None:
        return list(table.arms)
    numbers = {str(number): arm for number, arm in enumerate(table.arms, start=1)}
    try:
        chosen = [numbers[number.strip()] for number in plan.arms.split(",")]
    except KeyError:
        raise UsageError(f"--arms {plan.arms}: give numbers from 1 to {len(numbers)}") from None
    names = {arm.name for arm in chosen} | {arm.after for arm in chosen}
    return [arm for arm in table.arms if arm.name in names]


def flags_of(name: str, table: Table, arm: Arm, plan: Plan, seed: int) -> list[str]:
    """The command line of one run of train.py, but for its run folder."""
    recipe = "phantom" if plan.scale == "phantom" else name
    words = ["--recipe", recipe, *f"{table.flags[plan.scale]} {arm.flags}".split()]
    words += ["--seed", str(seed)]
    if plan.scale == "phantom":  # no expert model: the rule that knows the truth in its place
        words = [instead_of_expert(word) for word in words]
    for flag in ("steps", "eval_size", "data", "judge", "judge_model"):
        if value := getattr(plan, flag):
            words += ["--" + flag.replace("_", "-"), str(value)]
    if arm.after:
        words += ["--init", f"sft:{folder_of(name, plan) / f'{slug(arm.after)}-{seed}'}"]
    return words


def folder_of(name: str, plan: Plan) -> Path:
    """Where the runs of a table lie."""
    return Path(plan.out) / f"{name}-{plan.scale}"


def instead_of_expert(word: str) -> str:
    """A value of --reward with what phantoms have in place of an expert model's rewards.

    >>> instead_of_expert("format=1,semantic=1")
    'format=1,findings=1'
    """
    for judged, rule in EXPERT.items():
        word = word.replace(f"{judged}=", f"{rule}=")
    return word


def stands_in(arm: Arm, plan: Plan) -> list[str]:
    """What `instead_of_expert` replaces in this arm, in words."""
    if plan.scale != "phantom":
        return []
    return [f"{rule} for {judged}" for judged, rule in EXPERT.items() if f"{judged}=" in arm.flags]


def lacks_judge(arm: Arm, plan: Plan) -> bool:
    """Whether an arm wants an expert model and there is none; an encoder is none."""
    wants = any(f"{judged}=" in arm.flags for judged in EXPERT)
    experts, _ = judges_of(plan)
    return plan.scale != "phantom" and wants and not experts


def judges_of(plan: Plan) -> tuple[list[str], list[str]]:
    """The judges of --judge that give verdicts, and the sentence encoders."""
    judges = names_in(plan.judge or "")
    encoders = [judge for judge in judges if judge.startswith("embed:")]
    return [judge for judge in judges if judge not in encoders], encoders


def judged_metrics(plan: Plan) -> list[str]:
    """Flags of evaluate.py for what the judges at hand can measure; the last --metrics counts."""
    experts, encoders = judges_of(plan)
    metrics = ["perplexity"] * bool(experts or encoders)
    metrics += ["reasoning", "correctness"] * bool(experts) + ["similarity"] * bool(encoders)
    return ["--metrics", ",".join(metrics)] if metrics else []


def slug(name: str) -> str:
    """A folder's name.

    >>> slug("+ ECR"), slug("phantom:new-kind")
    ('ecr', 'phantom-new-kind')
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name).split()).lower()
