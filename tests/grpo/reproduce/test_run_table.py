"""The papers' tables: what each arm runs, that it runs, and that what is done is not done again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

from grpo.reproduce import commands as arms
from grpo.reproduce import run_table as reproduce
from grpo.reproduce.paper_tables import TABLES, Arm
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from tests.programs import Program

EVERY = [(name, arm) for name, table in TABLES.items() for arm in table.arms]
PHANTOM, LARGE = arms.Plan(), arms.Plan(scale="2b", judge="http://judge/v1")


def config(name: str, arm: Arm, plan: arms.Plan) -> Config:
    return Config.from_flags(arms.flags_of(name, TABLES[name], arm, plan, 1))


@pytest.mark.parametrize(("name", "arm"), EVERY)
@pytest.mark.parametrize("plan", [PHANTOM, LARGE])
def test_every_arm_is_a_command_of_train_py(name: str, arm: Arm, plan: arms.Plan) -> None:
    made = config(name, arm, plan)

    assert made.recipe == ("phantom" if plan is PHANTOM else name)
    assert made.model == ("phantom" if plan is PHANTOM else "Qwen/Qwen2-VL-2B-Instruct")


def test_arms_of_a_table_differ() -> None:
    for name, table in TABLES.items():
        made = [(arm.after, config(name, arm, PHANTOM)) for arm in table.arms]
        assert len(set(made)) == len(made)


def test_phantoms_have_a_rule_where_the_paper_has_an_expert_and_the_row_says_so() -> None:
    (arm,) = (arm for arm in TABLES["clinical"].arms if arm.name == "+ semantic")

    assert config("clinical", arm, PHANTOM).reward == "format=1,accuracy=1,findings=1"
    assert arms.stands_in(arm, PHANTOM) == ["findings for semantic"]
    assert config("clinical", arm, LARGE).reward == "format=1,accuracy=1,semantic=1"
    assert arms.stands_in(arm, LARGE) == []
    assert arms.lacks_judge(arm, arms.Plan(scale="2b"))


def test_an_arm_brings_the_one_that_it_starts_from() -> None:
    table = TABLES["clinical"]
    names = [arm.name for arm in arms.arms(table, arms.Plan(arms="4"))]

    assert names == ["SFT", "GRPO after SFT"]
    for wrong in ("10", "0", "-1", "two"):
        with pytest.raises(UsageError, match="give numbers from 1 to 9"):
            arms.arms(table, arms.Plan(arms=wrong))
    with pytest.raises(UsageError, match="needs an expert model"):
        reproduce.main(["rarl", "--scale", "2b", "--arms", "4", "--judge", "embed:x"])


@pytest.mark.parametrize("name", TABLES)
def test_a_dry_run_says_what_would_be_done(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.main([name, "--dry-run", "--seeds", "3"])
    plan = capsys.readouterr().out
    reproduce.main([name, "--dry-run", "--scale", "2b"])
    large = capsys.readouterr().out

    assert "3 x 200 steps" in plan
    assert "not medical data" in plan
    assert "fetched where not there: Qwen/Qwen2-VL-2B-Instruct" in large
    assert ("skipped, needs --judge" in large) == (name != "medvlm-r1")


def test_a_table_runs_and_is_not_run_again(tmp_path: Path) -> None:
    flags = "rarl --arms 3 --steps 1 --eval-size 4 --seeds 2 --out"
    command = [sys.executable, "-m", "grpo.reproduce", *flags.split(), str(tmp_path)]
    first = Program(*command).finish()
    again = Program(*command).finish()
    page = (tmp_path / "rarl-phantom" / "table.md").read_text("utf-8")
    record = json.loads((tmp_path / "rarl-phantom" / "table.json").read_text("utf-8"))

    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout == page
    assert first.stderr.count("+ python train.py") == 2
    assert "+ python" not in again.stderr
    assert page.count("not medical data") == 2
    rows = [line.split(" | ")[0].lstrip("| ") for line in page.splitlines() if line[:1] == "|"]
    assert {"base", "base, direct", "GRPO", "GRPO, direct"} <= set(rows)
    of = record["arms"]["GRPO"]
    assert (of["steps"], of["examples"], of["completions"]) == (1, 16, 128)
    assert of["evaluation"]["seeds"][", direct"]["MRI"]["seeds"] == 2
    assert sum(of["seconds"]) > 0
    results = of["evaluation"]["results"]
    for row, names in (
        ("GRPO", ("trained", "grpo-2")),
        ("GRPO, direct", ("trained, direct", "grpo-2, direct")),
    ):
        (line,) = (
            x for x in page.splitlines() if x.startswith(f"| {row} | ") and x.count("|") == 6
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        means = [
            fmean(results[name]["MRI"][of] for name in names)
            for of in ("format_rate", "mean_length")
        ]
        assert cells[1:3] == [f"{100 * means[0]:.1f}", f"{means[1]:.1f}"]
    changed = [*command, "--eval-size", "5"]
    refused = Program(*changed).finish()
    assert refused.returncode == 2
    assert "was made with other flags" in refused.stderr
