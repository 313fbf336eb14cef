"""The papers' tables: what each arm runs, that it runs, and that what is done is not done again."""

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

from grpo.reproduce import run_table as reproduce
from grpo.reproduce.commands import Plan
from grpo.reproduce.paper_tables import TABLES, Arm
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from tests.programs import Program

PHANTOM, LARGE = Plan(), Plan(scale="2b", judge="http://judge/v1")


def config(name: str, arm: Arm, plan: Plan) -> Config:
    return Config.from_flags(plan.flags(name, TABLES[name], arm))


def test_every_arm_is_a_command_of_train_py() -> None:
    wrong = {}
    for plan, recipe, model in (
        (PHANTOM, "phantom", "phantom"),
        (LARGE, None, "Qwen/Qwen2-VL-2B-Instruct"),
    ):
        for name, arm in ((name, arm) for name, table in TABLES.items() for arm in table.arms):
            made = config(name, arm, plan)
            if (made.recipe, made.model) != (recipe or name, model):
                wrong[plan.scale, name, arm.name] = made.recipe, made.model
    assert wrong == {}


def test_arms_of_a_table_differ() -> None:
    for name, table in TABLES.items():
        made = [(arm.after, config(name, arm, PHANTOM)) for arm in table.arms]
        assert len(set(made)) == len(made)


def test_phantoms_have_a_rule_where_the_paper_has_an_expert_and_the_row_says_so() -> None:
    (arm,) = (arm for arm in TABLES["clinical"].arms if arm.name == "+ semantic")

    assert config("clinical", arm, PHANTOM).reward == "format=1,accuracy=1,findings=1"
    assert PHANTOM.stands_in(arm) == ["findings for semantic"]
    assert config("clinical", arm, LARGE).reward == "format=1,accuracy=1,semantic=1"
    assert LARGE.stands_in(arm) == []
    assert Plan(scale="2b").lacks_judge(arm)


def test_an_arm_brings_the_one_that_it_starts_from() -> None:
    table = TABLES["clinical"]
    names = [arm.name for arm in Plan(arms="4").chosen(table)]

    assert names == ["SFT", "GRPO after SFT"]
    for wrong in ("10", "0", "-1", "two"):
        with pytest.raises(UsageError, match=r"use one of 1, .*, 9$"):
            Plan(arms=wrong).chosen(table)
    with pytest.raises(UsageError, match="needs an expert model"):
        reproduce.main(["rarl", "--scale", "2b", "--arms", "4", "--judge", "embed:x"])


def test_a_dry_run_says_what_would_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    lacks = {}
    for name in TABLES:
        reproduce.main([name, "--dry-run", "--seeds", "3"])
        plan = capsys.readouterr().out
        reproduce.main([name, "--dry-run", "--scale", "2b"])
        large = capsys.readouterr().out
        said = {
            "seeds": "3 x 60 steps" in plan,
            "phantoms": "not medical data" in plan,
            "downloads": "fetched where not there: Qwen/Qwen2-VL-2B-Instruct" in large,
            "judge": ("skipped, needs --judge" in large) == (name != "medvlm-r1"),
            "data": ("--data silvar-med:FOLDER" in large) == (name == "rarl"),
        }
        lacks |= {(name, part): large for part, holds in said.items() if not holds}
    assert lacks == {}


def test_a_run_that_is_whole_is_not_made_again_and_other_flags_are_refused(tmp_path: Path) -> None:
    flags = ["--recipe", "phantom"]
    for name, content in (("summary", {}), ("arm", flags), ("evaluation-1", {"rendered": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    reproduce.train(tmp_path, flags)
    assert reproduce.evaluate(tmp_path, "evaluation-1.json", []) == {"rendered": 1}
    with pytest.raises(UsageError, match="was made with other flags; name another --out"):
        reproduce.train(tmp_path, [*flags, "--seed", "2"])
    (tmp_path / "arm.json").unlink()
    with pytest.raises(UsageError, match="was made with other flags"):
        reproduce.train(tmp_path, flags)


@pytest.mark.slow
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
    arm = record["arms"]["GRPO"]
    assert (arm["steps"], arm["examples"], arm["completions"]) == (1, 16, 128)
    assert arm["evaluation"]["seeds"][", direct"]["MRI"]["seeds"] == 2
    assert sum(arm["seconds"]) > 0
    results = arm["evaluation"]["results"]
    for row, names in (
        ("GRPO", ("trained", "grpo-2")),
        ("GRPO, direct", ("trained, direct", "grpo-2, direct")),
    ):
        (line,) = (
            x for x in page.splitlines() if x.startswith(f"| {row} | ") and x.count("|") == 6
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        means = [
            fmean(results[name]["MRI"][figure] for name in names)
            for figure in ("format_rate", "mean_length")
        ]
        assert cells[1:3] == [f"{100 * means[0]:.1f}", f"{means[1]:.1f}"]
    changed = [*command, "--eval-size", "5"]
    refused = Program(*changed).finish()
    assert refused.returncode == 2
    assert "was made with other flags" in refused.stderr
