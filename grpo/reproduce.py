"""A paper's table on our own data: runs train.py and evaluate.py, arm by arm.

    python -m grpo.reproduce medvlm-r1 --seeds 3
    python -m grpo.reproduce clinical --dry-run
    python -m grpo.reproduce rarl --scale 2b --judge URL --judge-model NAME

At phantom scale (the default) everything runs offline on a CPU, with the tiny model on drawn
phantoms; at scale 2b the same command uses the paper's model and data. What is done is not done
again, so a table that was cut off goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .config import Config
from .flags import UsageError, check_options, exit_on_usage_error, option, parse_flags
from .papers import EXPERT, TABLES, Arm, Table
from .scoreboard import page

ROOT = Path(__file__).resolve().parents[1]
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
    judge: str | None = _opt(None, "The expert model at scale 2b, as in train.py.")
    judge_model: str | None = _opt(None, "The model that a --judge URL serves.")
    out: str = _opt("runs/reproduce", "Folder for all runs and tables.")
    dry_run: bool = _opt(False, "Only say what would run, how long, and what it would fetch.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.scale == "phantom" and (self.judge or self.data):
            raise UsageError("--judge and --data go with --scale 2b; leave them out")


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError for all that a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in TABLES:
        raise UsageError(f"name a table: {', '.join(TABLES)}; as python -m grpo.reproduce rarl")
    name = argv[0]
    table, prog = TABLES[name], f"grpo.reproduce {name}"
    plan = Plan(**parse_flags(Plan, argv[1:], prog, table.about))
    chosen = arms(table, plan)
    if plan.dry_run:
        print(announcement(name, table, chosen, plan))
        return
    folder = Path(plan.out) / f"{name}-{plan.scale}"
    found = {arm.name: run_arm(name, table, arm, plan, folder) for arm in chosen}
    record = {
        "command": shlex.join(["python", "-m", "grpo.reproduce", *argv]),
        "table": name,
        "scale": plan.scale,
        "arms": found,
    }
    text = page(record, table, chosen)
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def arms(table: Table, plan: Plan) -> list[Arm]:
    """The arms to run, those that others start from included."""
    if plan.arms is None:
        return list(table.arms)
    try:
        chosen = [table.arms[int(number) - 1] for number in plan.arms.split(",")]
    except (ValueError, IndexError):
        raise UsageError(f"--arms {plan.arms}: give numbers from 1 to {len(table.arms)}") from None
    names = {arm.name for arm in chosen} | {arm.after for arm in chosen}
    return [arm for arm in table.arms if arm.name in names]


def flags_of(name: str, table: Table, arm: Arm, plan: Plan, seed: int) -> list[str]:
    """The command line of one run of train.py, but for its folders."""
    recipe = "phantom" if plan.scale == "phantom" else name
    words = ["--recipe", recipe, *f"{table.flags[plan.scale]} {arm.flags}".split()]
    words += ["--seed", str(seed)]
    if plan.scale == "phantom":  # no expert model: the rule that knows the truth in its place
        words = [instead_of_expert(word) for word in words]
    for flag in ("steps", "eval_size", "data", "judge", "judge_model"):
        if value := getattr(plan, flag):
            words += ["--" + flag.replace("_", "-"), str(value)]
    return words


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
    wants = any(f"{judged}=" in arm.flags for judged in EXPERT)
    return plan.scale != "phantom" and wants and not plan.judge


def run_arm(name: str, table: Table, arm: Arm, plan: Plan, folder: Path) -> dict[str, Any]:
    """All runs of an arm and their evaluation, done now where they are not there."""
    if lacks_judge(arm, plan):
        return {"skipped": "needs an expert model: --judge URL --judge-model NAME"}
    runs = []
    for seed in range(1, plan.seeds + 1):
        run = folder / f"{slug(arm.name)}-{seed}"
        flags = flags_of(name, table, arm, plan, seed)
        if arm.after:
            flags += ["--init", f"sft:{folder / f'{slug(arm.after)}-{seed}'}"]
        train(run, flags, folder)
        runs.append(run)
    table_flags = table.evaluation.split()
    if len(runs) > 1:
        table_flags += ["--compare", ",".join(map(str, runs[1:]))]
    found = evaluate(runs[0], f"evaluation-{plan.seeds}.json", table_flags)
    unseen = {}
    for data in table.unseen[plan.scale]:
        flags = ["--data", data, *table.evaluation.split()]
        unseen[data] = evaluate(runs[0], f"evaluation-{slug(data)}.json", flags)
    summaries = [json.loads((run / "summary.json").read_text("utf-8")) for run in runs]
    config = Config.load(runs[0] / "config.json")
    return {
        "command": shlex.join(["python", "train.py", *flags_of(name, table, arm, plan, 1)]),
        "stands_in": stands_in(arm, plan),
        "init": config.init,
        "prompt": config.prompt,
        "steps": config.steps,
        "examples": config.steps * config.prompts_per_step,
        "completions": config.steps * config.prompts_per_step * config.group_size
        if config.method == "grpo"
        else 0,
        "seconds": [summary["seconds"] for summary in summaries],
        "peak_mb": max(summary["peak_mb"] for summary in summaries),
        "evaluation": found,
        "unseen": unseen,
    }


def train(run: Path, flags: list[str], folder: Path) -> None:
    """train.py with these flags, unless the run is whole. Raises UsageError where it fails."""
    if (run / "summary.json").exists():
        if json.loads((run / "arm.json").read_text("utf-8")) != flags:
            raise UsageError(f"{run} was made with other flags; name another --out")
        return
    shutil.rmtree(run, ignore_errors=True)  # what an interruption left
    (run / "predictions").mkdir(parents=True)
    for other in folder.glob("*/summary.json"):  # the base's answers are the same in every run
        if ("base" in flags) == (Config.load(other.with_name("config.json")).init == "base"):
            for file in other.parent.glob("predictions/base-*"):
                shutil.copy(file, run / "predictions")
    (run / "arm.json").write_text(json.dumps(flags) + "\n", encoding="utf-8")
    call(["train.py", *flags, "--out", str(run)])


def evaluate(run: Path, file: str, flags: list[str]) -> dict[str, Any]:
    """The table of evaluate.py with these flags, read from the run folder or made now."""
    if not (run / file).exists():
        call(["evaluate.py", "--run", str(run), *flags, "--json", str(run / file)])
    return json.loads((run / file).read_text("utf-8"))


def call(words: list[str]) -> None:
    print(f"+ python {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], stdout=sys.stderr)
    if done.returncode:
        raise UsageError(f"{words[0]} ended with code {done.returncode}; mend that, run this again")


def slug(name: str) -> str:
    """A folder's name.

    >>> slug("+ ECR"), slug("phantom:new-kind")
    ('ecr', 'phantom-new-kind')
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name).split()).lower()


def announcement(name: str, table: Table, chosen: list[Arm], plan: Plan) -> str:
    """What would run: steps, commands, time, memory and downloads."""
    lines = [table.about, f"scale {plan.scale}, seeds 1 to {plan.seeds}"]
    for arm in chosen:
        flags = flags_of(name, table, arm, plan, 1)
        config = Config.from_flags(flags)
        if lacks_judge(arm, plan):
            lines.append(f"{arm.name}: skipped, needs --judge URL --judge-model NAME")
            continue
        time = f"about {arm.minutes:g} min" if plan.scale == "phantom" else "time not measured"
        questions = config.steps * config.prompts_per_step
        lines.append(f"{arm.name}: {plan.seeds} x {config.steps} steps, {questions} questions each")
        lines.append(f"    {time} each; python train.py {shlex.join(flags)}")
    if plan.scale == "phantom":
        total = sum(arm.minutes for arm in chosen) * plan.seeds
        lines.append(f"{total:.0f} min in all on 2 CPU cores, 1 GB of memory, nothing is fetched")
        lines.append("Phantoms are drawn, not medical data.")
    else:
        lines.append("memory not measured: weights 4.4 GB in bfloat16; meant for one 40 GB GPU")
        lines.append(f"fetched where not there: {table.downloads}")
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_usage_error("grpo.reproduce"):
        main()
