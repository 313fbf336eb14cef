"""A paper's table on our own data, or the ladder: runs train.py and evaluate.py, arm by arm.

    python -m grpo.reproduce medvlm-r1 --seeds 3
    python -m grpo.reproduce clinical --dry-run
    python -m grpo.reproduce ladder --seeds 3
    python -m grpo.reproduce rarl --scale 2b --judge URL --judge-model NAME

At phantom scale (the default) everything runs offline on a CPU, with the tiny model on drawn
phantoms; at scale 2b the same command uses the paper's model and data. A complete run is not made
again, so a table that was interrupted continues where it stopped.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo.reproduce.commands import NEEDS_JUDGE, Plan, slug
from grpo.reproduce.ladder import LADDER, rungs
from grpo.reproduce.markdown import page
from grpo.reproduce.paper_tables import TABLES, Arm, Table
from grpo.run.atomic import write_json
from grpo.run.folder import lock
from grpo.run.metrics_log import history
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import names_in, parse_flags

ROOT = Path(__file__).resolve().parents[2]
LARGE = (
    "time and memory at this scale are not measured by us: MedVLM-R1's authors report about 4 "
    "hours for 300 steps on two A100 (unverified); the weights take 4.4 GB in bfloat16, and the "
    "recipes are meant for one 40 GB GPU"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program. Raises UsageError for all that a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    name, *flags = argv or [""]
    tables = {**TABLES, "ladder": LADDER}
    if name in ("-h", "--help"):
        name, flags = next(iter(tables)), ["--help"]
    if name not in tables:
        raise UsageError(f"name a table: {', '.join(tables)}; as python -m grpo.reproduce rarl")
    table = tables[name]
    plan = Plan(**parse_flags(Plan, flags, f"grpo.reproduce {name}", table.about))
    chosen = plan.chosen(table)
    if plan.dry_run:
        print(announcement(name, table, chosen, plan))
        return
    if all(map(plan.lacks_judge, chosen)):
        raise UsageError(f"--arms {plan.arms}: {NEEDS_JUDGE}")
    lock(plan.folder(name), "reproduce")  # it deletes interrupted runs
    record = {
        "command": shlex.join(["python", "-m", "grpo.reproduce", *argv]),
        "table": name,
        "scale": plan.scale,
        "arms": {arm.name: run_arm(name, table, arm, plan) for arm in chosen},
    }
    more = rungs(record["arms"]) if table is LADDER else ()
    text, folder = "\n\n".join([page(record, table), *more]), plan.folder(name)
    write_json(folder / "table.json", record)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def run_arm(name: str, table: Table, arm: Arm, plan: Plan) -> dict[str, Any]:
    """Return the record of an arm: all its runs and their evaluation, made now if missing."""
    if plan.lacks_judge(arm):
        return {"skipped": NEEDS_JUDGE}
    runs = [plan.folder(name) / f"{slug(arm.name)}-{i + 1}" for i in range(plan.seeds)]
    for seed, run in enumerate(runs, start=1):
        train(run, plan.flags(name, table, arm, seed))
    flags = [*table.evaluation.split(), *plan.judged_metrics()]
    if len(runs) > 1:
        flags += ["--compare", ",".join(map(str, runs[1:]))]
    found = evaluate(runs[0], f"evaluation-{plan.seeds}.json", flags)
    unseen = {}
    for data in names_in(plan.unseen or "") or table.unseen.get(plan.scale, ()):
        file = f"evaluation-{slug(data)}-{plan.seeds}.json"
        unseen[data] = evaluate(runs[0], file, ["--data", data, *flags])
    config = Config.load(runs[0] / "config.json")
    questions = config.steps * config.prompts_per_step
    return {
        "command": shlex.join(["python", "train.py", *plan.flags(name, table, arm)]),
        "stands_in": plan.stands_in(arm),
        **{name: getattr(config, name) for name in ("init", "prompt", "steps")},
        "examples": questions,
        "completions": questions * config.group_size if config.method == "grpo" else 0,
        "signal": fmean(1 - s.get("frac_reward_zero_std", 0) for r in runs for s in history(r)),
        "seconds": [sum(step["time/step"] for step in history(run)) for run in runs],
        "peak_mb": max(_read(run / "summary.json")["peak_mb"] for run in runs),
        "evaluation": found,
        "unseen": unseen,
    }


def train(run: Path, flags: list[str]) -> None:
    """Run train.py with these flags, unless the run is complete. Raises UsageError if it fails."""
    if (run / "summary.json").exists():
        if not (run / "arm.json").exists() or _read(run / "arm.json") != flags:
            raise UsageError(f"{run} was made with other flags; name another --out")
        return
    shutil.rmtree(run, ignore_errors=True)  # what an interruption left
    run.mkdir(parents=True)
    for other in run.parent.glob("*/summary.json"):  # a base model answers alike in every run
        if ("base" in flags) == (Config.load(other.with_name("config.json")).init == "base"):
            for file in other.parent.glob("**/predictions/base-*"):
                copy = run / file.relative_to(other.parent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
    (run / "arm.json").write_text(json.dumps(flags) + "\n", encoding="utf-8")
    call(["train.py", *flags, "--out", str(run)])


def evaluate(run: Path, file: str, flags: list[str]) -> dict[str, Any]:
    """Return the table of evaluate.py with these flags, from the run folder or made now.

    A table of an older version lacks rows and means, and is made again from the answers kept.
    """
    if not (run / file).exists() or "rendered" not in _read(run / file):
        call(["evaluate.py", "--run", str(run), *flags, "--json", str(run / file)])
    return _read(run / file)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def call(words: list[str]) -> None:
    """Run one of our programs, its output on stderr. Raises UsageError if it fails."""
    print(f"+ python {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], stdout=sys.stderr)
    if done.returncode:
        raise UsageError(f"{words[0]} ended with code {done.returncode}; mend that, run this again")


def announcement(name: str, table: Table, chosen: list[Arm], plan: Plan) -> str:
    """Say what would run: steps, commands, time, memory and downloads."""
    phantom = plan.scale == "phantom"
    lines = [table.about, f"scale {plan.scale}, seeds 1 to {plan.seeds}"]
    for arm in chosen:
        if plan.lacks_judge(arm):
            lines.append(f"{arm.name}: skipped, needs --judge URL --judge-model NAME")
            continue
        flags = plan.flags(name, table, arm)
        config = Config.from_flags(flags)
        time = f"about {arm.minutes:g} min" if phantom else "time not measured,"
        questions = config.steps * config.prompts_per_step
        lines.append(f"{arm.name}: {plan.seeds} x {config.steps} steps, {questions} questions each")
        lines.append(f"    {time} each; python train.py {shlex.join(flags)}")
    if phantom:
        total = sum(arm.minutes for arm in chosen) * plan.seeds
        lines.append(f"{total:.0f} min in all on 2 CPU cores, 1 GB of memory, nothing is fetched")
        lines.append("Phantoms are drawn, not medical data.")
    else:
        lines += [LARGE, f"fetched where not there: {table.downloads}"]
    return "\n".join(lines)
