"""A paper's table on our own data: runs train.py and evaluate.py, arm by arm.

    python -m grpo.reproduce medvlm-r1 --seeds 3
    python -m grpo.reproduce clinical --dry-run
    python -m grpo.reproduce rarl --scale 2b --judge URL --judge-model NAME

At phantom scale (the default) everything runs offline on a CPU, with the tiny model on drawn
phantoms; at scale 2b the same command uses the paper's model and data. What is done is not done
again, so a table that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.reproduce.commands import (
    NEEDS_JUDGE,
    Plan,
    arms,
    flags_of,
    folder_of,
    judged_metrics,
    lacks_judge,
    slug,
    stands_in,
)
from grpo.reproduce.markdown import page
from grpo.reproduce.paper_tables import TABLES, Arm, Table
from grpo.run.atomic import write_json
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import names_in, parse_flags

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Raises UsageError for all that a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        name, argv = next(iter(TABLES)), [name, "--help"]
    if name not in TABLES:
        raise UsageError(f"name a table: {', '.join(TABLES)}; as python -m grpo.reproduce rarl")
    table, prog = TABLES[name], f"grpo.reproduce {name}"
    plan = Plan(**parse_flags(Plan, argv[1:], prog, table.about))
    chosen = arms(table, plan)
    if plan.dry_run:
        print(announcement(name, table, chosen, plan))
        return
    folder = folder_of(name, plan)
    if all(lacks_judge(arm, plan) for arm in chosen):
        raise UsageError(f"--arms {plan.arms}: {NEEDS_JUDGE}")
    found = {arm.name: run_arm(name, table, arm, plan, folder) for arm in chosen}
    record = {
        "command": shlex.join(["python", "-m", "grpo.reproduce", *argv]),
        "table": name,
        "scale": plan.scale,
        "arms": found,
    }
    text = page(record, table, chosen)
    write_json(folder / "table.json", record)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def run_arm(name: str, table: Table, arm: Arm, plan: Plan, folder: Path) -> dict[str, Any]:
    """All runs of an arm and their evaluation, done now where they are not there."""
    if lacks_judge(arm, plan):
        return {"skipped": NEEDS_JUDGE}
    runs = []
    for seed in range(1, plan.seeds + 1):
        run = folder / f"{slug(arm.name)}-{seed}"
        flags = flags_of(name, table, arm, plan, seed)
        train(run, flags, folder)
        runs.append(run)
    flags = [*table.evaluation.split(), *judged_metrics(plan)]
    if len(runs) > 1:
        flags += ["--compare", ",".join(map(str, runs[1:]))]
    found = evaluate(runs[0], f"evaluation-{plan.seeds}.json", flags)
    unseen = {}
    for data in names_in(plan.unseen or "") or table.unseen[plan.scale]:
        file = f"evaluation-{slug(data)}-{plan.seeds}.json"
        unseen[data] = evaluate(runs[0], file, ["--data", data, *flags])
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
        "seconds": [seconds_of(run) for run in runs],
        "peak_mb": max(summary["peak_mb"] for summary in summaries),
        "evaluation": found,
        "unseen": unseen,
    }


def seconds_of(run: Path) -> float:
    """What the steps of a run took, without its evaluation."""
    steps = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return sum(json.loads(line)["time/step"] for line in steps)


def train(run: Path, flags: list[str], folder: Path) -> None:
    """train.py with these flags, unless the run is whole. Raises UsageError where it fails."""
    if (run / "summary.json").exists():
        made = run / "arm.json"
        if not made.exists() or json.loads(made.read_text("utf-8")) != flags:
            raise UsageError(f"{run} was made with other flags; name another --out")
        return
    shutil.rmtree(run, ignore_errors=True)  # what an interruption left
    run.mkdir(parents=True)
    for other in folder.glob("*/summary.json"):  # the base's answers are the same in every run
        if ("base" in flags) == (Config.load(other.with_name("config.json")).init == "base"):
            for file in other.parent.glob("**/predictions/base-*"):
                copy = run / file.relative_to(other.parent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
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


def announcement(name: str, table: Table, chosen: list[Arm], plan: Plan) -> str:
    """What would run: steps, commands, time, memory and downloads."""
    lines = [table.about, f"scale {plan.scale}, seeds 1 to {plan.seeds}"]
    for arm in chosen:
        flags = flags_of(name, table, arm, plan, 1)
        config = Config.from_flags(flags)
        if lacks_judge(arm, plan):
            lines.append(f"{arm.name}: skipped, needs --judge URL --judge-model NAME")
            continue
        time = f"about {arm.minutes:g} min" if plan.scale == "phantom" else "time not measured,"
        questions = config.steps * config.prompts_per_step
        lines.append(f"{arm.name}: {plan.seeds} x {config.steps} steps, {questions} questions each")
        lines.append(f"    {time} each; python train.py {shlex.join(flags)}")
    if plan.scale == "phantom":
        total = sum(arm.minutes for arm in chosen) * plan.seeds
        lines.append(f"{total:.0f} min in all on 2 CPU cores, 1 GB of memory, nothing is fetched")
        lines.append("Phantoms are drawn, not medical data.")
    else:
        lines.append(
            "time and memory at this scale are not measured by us: MedVLM-R1's authors report "
            "about 4 hours for 300 steps on two A100 (unverified); the weights take 4.4 GB in "
            "bfloat16, and the recipes are meant for one 40 GB GPU"
        )
        if name == "rarl" and not plan.data:
            lines.append("it wants --data silvar-med:FOLDER")
        lines.append(f"fetched where not there: {table.downloads}")
    return "\n".join(lines)
