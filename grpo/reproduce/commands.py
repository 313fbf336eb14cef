"""The flags of `python -m grpo.reproduce`, and the command line of every arm."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from grpo.reproduce.paper_tables import EXPERT, Arm, Table
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_names, check_options, flag, names_in, option

NEEDS_JUDGE = "needs an expert model; add --judge URL --judge-model NAME, or --judge hf:FOLDER"
_opt = functools.partial(option, "table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The flags of `python -m grpo.reproduce NAME`."""

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

    def chosen(self, table: Table) -> list[Arm]:
        """Return the arms to run, with those that they start from."""
        numbers = {str(number): arm for number, arm in enumerate(table.arms, start=1)}
        asked = [n.strip() for n in self.arms.split(",")] if self.arms is not None else [*numbers]
        check_names("arms", asked, list(numbers))
        chosen = [numbers[number] for number in asked]
        names = {arm.name for arm in chosen} | {arm.after for arm in chosen}
        return [arm for arm in table.arms if arm.name in names]

    def folder(self, name: str) -> Path:
        """Return the folder of a table's runs."""
        return Path(self.out) / f"{name}-{self.scale}"

    def flags(self, name: str, table: Table, arm: Arm, seed: int = 1) -> list[str]:
        """Return the command line of one run of train.py, without its run folder."""
        recipe, own = name, f"{table.flags.get(self.scale, '')} {arm.flags}"
        if self.scale == "phantom":
            recipe, own = "phantom", without_expert(own)
        words = ["--recipe", recipe, *own.split(), "--seed", str(seed)]
        for given in ("steps", "eval_size", "data", "judge", "judge_model"):
            if value := getattr(self, given):
                words += [flag(given), str(value)]
        if arm.after:
            words += ["--init", f"sft:{self.folder(name) / f'{slug(arm.after)}-{seed}'}"]
        return words

    def stands_in(self, arm: Arm) -> list[str]:
        """Say what `without_expert` replaces in this arm."""
        return [f"{EXPERT[name]} for {name}" for name in judged(arm) if self.scale == "phantom"]

    def lacks_judge(self, arm: Arm) -> bool:
        """Whether an arm needs an expert model and there is none; a sentence encoder is none."""
        return self.scale != "phantom" and bool(judged(arm)) and not self.experts

    @property
    def experts(self) -> list[str]:
        """The judges of --judge that give verdicts: all but the sentence encoders."""
        return [name for name in names_in(self.judge or "") if not name.startswith("embed:")]

    def judged_metrics(self) -> list[str]:
        """Return evaluate.py's flags for what the judges can measure; the last --metrics counts."""
        encoders = len(names_in(self.judge or "")) > len(self.experts)
        metrics = ["reasoning", "correctness"] * bool(self.experts) + ["similarity"] * encoders
        return ["--metrics", ",".join(["perplexity", *metrics])] if metrics else []


def without_expert(flags: str) -> str:
    """Replace an expert model's rewards by the rules that phantoms have instead.

    >>> without_expert("--reward format=1,semantic=1")
    '--reward format=1,findings=1'
    """
    for judged, rule in EXPERT.items():
        flags = flags.replace(f"{judged}=", f"{rule}=")
    return flags


def judged(arm: Arm) -> list[str]:
    """Return the rewards of an arm that need an expert model."""
    return [reward for reward in EXPERT if f"{reward}=" in arm.flags]


def slug(name: str) -> str:
    """Return a folder's name.

    >>> slug("+ ECR"), slug("phantom:new-kind")
    ('ecr', 'phantom-new-kind')
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name).split()).lower()
