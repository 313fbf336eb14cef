"""The six items of MI-CLEAR-LLM: what a run's folder tells, and what it does not, by name."""

import hashlib
import json
import shutil
from html import unescape
from pathlib import Path

import pytest

from grpo.report.checklist import checklist
from grpo.report.page import page
from grpo.run.atomic import write_json
from tests.grpo.report.runs import make_run

FINISHED = Path(__file__).parents[2] / "fixtures" / "run" / "finished"
ITEMS = [
    "1. Model and version",
    "2. Randomness",
    "3. Wording of the prompts",
    "4. Structure of the prompts",
    "5. Testing of the prompts",
    "6. Independence of the test data",
]


def facts(run: Path) -> dict[str, str]:
    """Every line of the checklist, by what stands before its colon."""
    lines = [line for _, *lines in checklist(run) for line in lines]
    return dict(line.split(": ", 1) for line in lines if ": " in line)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return shutil.copytree(FINISHED, tmp_path / "mine")


def test_the_items_are_the_six_in_their_order() -> None:
    assert [item[0] for item in checklist(FINISHED)] == ITEMS
    assert all(line for item in checklist(FINISHED) for line in item)


def test_what_the_folder_holds_is_stated() -> None:
    found = facts(FINISHED)
    weights = (FINISHED / "adapter" / "adapter_model.safetensors").read_bytes()
    base = json.loads((FINISHED / "adapter" / "base.json").read_text())
    assert found["weights of the base, a short hash"] == base["fingerprint"]
    digest = hashlib.sha256(weights).hexdigest()
    assert found["trained adapter, sha256"] == f"{digest}; by grpo, 6 steps"
    assert found["samples of each question"].startswith("2, at temperature ")
    assert found["seed of training and of samples"] == "42"
    assert found["scored questions"] == "MRI 4, CT 4"
    assert found["trained on"] == "at most 48 questions, MRI"
    assert found["data"] == "phantom, drawn, not medical data; split and drawn by --data-seed 42"
    wording = checklist(FINISHED)[2]
    assert [line for line in wording if line.endswith(":")] == [
        f"a user's turn as training asked it, way {way}:" for way in ("reason", "direct")
    ]
    assert "    Give one letter inside <answer> </answer>, nothing else." in wording


def test_control_characters_of_a_prompt_are_escaped_and_its_indentation_stays(mine: Path) -> None:
    asked = {"asked": "reason", "prompt": "Which side?\x1b[2J\n  A) left\u202e"}
    write_json(mine / "trace" / "step-000006.json", {"groups": [asked]})

    wording = checklist(mine)[2]
    assert wording[2:4] == [r"    Which side?\x1b[2J", r"      A) left\u202e"]
    assert all(line.isprintable() for line in wording)


def test_what_an_evaluation_adds_is_stated(mine: Path) -> None:
    table = json.loads((mine / "evaluation.json").read_text())
    added = {"temperature": 0.7, "prompt": "direct", "left_out": "3: image cannot be read"}
    seeds = {"": {"MRI": {"seeds": 3}, "CT": {"seeds": 3}}}
    write_json(mine / "evaluation.json", {**table, **added, "seeds": seeds})
    config = json.loads((mine / "config.json").read_text())
    config["config"] |= {"data": "slake:here", "blind": True, "keep": "0.05,0.95"}
    write_json(mine / "config.json", config)

    found = facts(mine)
    assert found["samples of each question"] == "2, at temperature 0.7 (evaluate.py --samples 8)"
    assert found["runs with other seeds, this one included"].startswith("3 (")
    assert found["rows of the table"] == "base; trained; first way of asking: direct"
    assert found["rows left out"] == "3: image cannot be read"
    assert found["data"].startswith("slake:here; split")
    assert found["trained on"].endswith("MRI, without their images, pass rates 0.05,0.95")
    write_json(mine / "evaluation.json", {**table, "left_out": ""})
    assert facts(mine)["rows left out"] == "none"
    (mine / "evaluation.json").unlink()  # train.py's own evaluation remains
    assert facts(mine)["scored questions"] == "MRI 4, CT 4"
    assert facts(mine)["samples of each question"].startswith("MISSING, at temperature MISSING")


def test_what_no_folder_holds_is_missing_by_name() -> None:
    missing = {name for name, fact in facts(FINISHED).items() if "MISSING" in fact}
    assert missing >= {
        "who made the model, and until when its training data reach",
        "days on which the questions were asked",
        "how it was chosen, and what else was tried",
        "near copies of test images in training",
        "whether the base was trained on the test data, and where they are published",
    }
    assert "trained adapter, sha256" not in missing


@pytest.mark.parametrize(
    "content", ["", "5", "[1]", '"text"', '{"results": 5, "chance": 7}', "nul"]
)
def test_a_damaged_or_empty_folder_is_told_as_missing(mine: Path, content: str) -> None:
    for name in ("evaluation.json", "summary.json", "adapter/base.json", "trace/step-000004.json"):
        (mine / name).write_text(content)
    (mine / "adapter" / "adapter_model.safetensors").unlink()
    found = facts(mine)
    assert [item[0] for item in checklist(mine)] == ITEMS
    assert found["weights of the base, a short hash"] == "MISSING"
    assert found["trained adapter, sha256"].startswith("MISSING; ")
    assert found["scored questions"] == "MISSING"
    assert found["rows of the table"].startswith("MISSING; ")
    assert found["model"] == "base, started as: sft:sft"
    shutil.rmtree(mine)
    assert [item[0] for item in checklist(mine)] == ITEMS
    assert facts(mine)["a user's turn"].startswith("MISSING")


def test_the_page_of_a_run_shows_the_same_lines(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    trace = run / "trace" / "step-000001.json"
    record = json.loads(trace.read_text())
    record["groups"][0]["prompt"] = "Which <b>side</b>?\n\nA) left"
    trace.write_text(json.dumps(record))
    text = page(run, 10**7)
    shown = text[text.index('id="checklist"') :]
    for name, *lines in checklist(run):
        assert f"<h3>{name}</h3>" in shown
        assert "\n".join(lines) in unescape(shown)
    assert "<b>side</b>" not in shown
