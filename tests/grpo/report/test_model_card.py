"""The model card beside an adapter: what the Hub reads of it, and what no string may do to it."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import evaluate
from data.readers.hub import HUB
from grpo.report.model_card import card, write_card
from grpo.run.atomic import write_json
from grpo.run.checkpoint import save_adapter
from grpo.settings.config import Config
from tests.grpo.report.runs import make_run, summary

FINISHED = Path(__file__).parents[2] / "fixtures" / "run" / "finished"
QWEN = "Qwen/Qwen2-VL-2B-Instruct"
HOSTILE = 'a": [x]\n---\n# **b** <script>`x` | ``` 🙂 \u2028\x1b[2J {{ 1 }}\n\n- c: d\\'


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A finished run of an earlier commit, as if of the shipped model."""
    run = shutil.copytree(FINISHED, tmp_path / "mine")
    record = json.loads((run / "config.json").read_text())
    record["config"]["model"] = "phantom"
    write_json(run / "config.json", record)
    return run


def made(folder: Path, **config: Any) -> Path:
    """A run folder with an adapter's folder."""
    run = make_run(folder, steps=3, traced=(1,), **config)
    (run / "adapter").mkdir()
    return run


def read(run: Path) -> ModelCard:
    write_card(run)
    return ModelCard.load(run / "adapter" / "README.md")


def test_the_hubs_class_reads_the_card_of_a_run(mine: Path) -> None:
    found = read(mine)
    data = found.data
    assert (data.library_name, data.base_model, data.datasets) == ("peft", "phantom", ["phantom"])
    assert (data.license, data.metrics) == ("apache-2.0", ["accuracy"])
    assert data.tags == ["lora", "grpo", "visual-question-answering", "not-medical-data"]
    table = json.loads((mine / "evaluation.json").read_text())
    assert [
        (result.dataset_name, result.metric_name, result.metric_value)
        for result in data.eval_results
    ] == [
        (f"phantom, {place}, drawn, not medical data", f"accuracy, {name}", cell[key])
        for place, cell in table["results"]["trained"].items()
        for name, key in (("strict format", "accuracy"), ("forced choice", "forced_choice"))
    ]


def test_the_first_line_says_that_phantoms_are_not_medical_data(mine: Path) -> None:
    first, *rest = read(mine).text.strip().splitlines()
    assert first.startswith("**Trained and tested on phantoms: drawn images, not medical data.")
    assert sum(line.count("**Not for clinical use.**") for line in rest) == 2


def test_tables_controls_and_the_six_items_are_in_the_text(mine: Path) -> None:
    write_json(mine / "evaluation.json", summary())
    text = read(mine).text
    for row in summary()["rendered"]["parts"][0]["rows"]:
        assert re.search(rf"^\| \**{re.escape(row['name'])}\** \|", text, re.M), row
    assert "| blank image |" in text
    assert "No control was asked" not in text
    assert [line[4:5] for line in text.splitlines() if line[:4] == "### "] == [*"123456"]
    assert "\n        Give one letter inside <answer> </answer>, nothing else.\n" in text


def test_the_command_makes_the_same_settings(mine: Path) -> None:
    (line,) = [line for line in read(mine).text.splitlines() if line.startswith("    python train")]
    words = shlex.split(line)
    assert words[:2] == ["python", "train.py"]
    config = vars(Config.load(mine / "config.json"))
    again = vars(Config.from_flags(words[2:]))
    free = {"out", "resume", "cache", "quiet"}
    assert {k: v for k, v in again.items() if k not in free} == {
        k: v for k, v in config.items() if k not in free
    }


def test_a_run_from_the_shipped_models_earlier_state_is_of_a_shipped_toy(tmp_path: Path) -> None:
    found = read(made(tmp_path / "run", init="base", model="phantom-base"))
    assert (found.data.base_model, found.data.license) == ("phantom-base", "apache-2.0")
    assert "- Base model: phantom-base, the tiny Qwen2-VL that ships with" in found.text
    assert "- Licence: Apache-2.0\n" in found.text
    assert "- The base model is a toy." in found.text


def test_hub_models_and_data_go_by_their_ids_and_are_called_medical(tmp_path: Path) -> None:
    for name, known in HUB.items():
        found = read(made(tmp_path / name, model=QWEN, data=name))
        assert found.data.base_model == QWEN
        assert found.data.datasets == [known.repo.split("@")[0]]
        assert (found.data.license, found.data.license_link) == (
            "other",
            f"https://huggingface.co/{QWEN}",
        )
        assert "medical" in found.data.tags
        assert "phantom" not in found.text.lower()


def test_a_local_base_or_file_of_questions_has_no_id_on_the_hub(tmp_path: Path) -> None:
    """The Hub refuses a card whose base_model is a path."""
    (tmp_path / "some" / "model").mkdir(parents=True)
    for model in ("/models/qwen", "./qwen", str(tmp_path / "some" / "model"), "a/b/c"):
        run = made(tmp_path / "run", model=model, data="jsonl:/q.jsonl")
        data = read(run).data.to_dict()
        assert not data.keys() & {"base_model", "datasets"}, model
        assert data["license"] == "unknown"
        shutil.rmtree(run)


def test_a_run_that_was_stopped_says_so_and_has_no_figures(mine: Path) -> None:
    for name in ("evaluation.json", "summary.json"):
        (mine / name).unlink()
    lines = (mine / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (mine / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    found = read(mine)
    assert "GRPO, 2 of 6 steps (stopped before its end)" in found.text
    assert "\nNot evaluated.\n" in found.text
    assert found.data.eval_results is None


def test_an_older_table_is_named_as_such(mine: Path) -> None:
    assert "rendered" not in json.loads((mine / "evaluation.json").read_text())
    assert "An older version of the program scored this run" in read(mine).text


def test_a_control_is_called_one(tmp_path: Path) -> None:
    text = card(made(tmp_path / "run", shuffle_answers=True, blind=True))
    assert "trained on permuted answers and without images\n" in text


def shape(text: str) -> list[str]:
    """What the lines of a card are for Markdown, without their words."""
    lines = [re.sub(r"\\.", "", line) for line in text.splitlines()]
    return [
        line if line[:3] == "---" else re.match(r"#* |- |\|? ?", line)[0] + "|" * line.count("|")
        for line in lines
        if line[:4] != "    "
    ]


def test_no_string_breaks_yaml_or_markdown(tmp_path: Path) -> None:
    plain, hostile = summary(), summary()
    hostile["rendered"]["footnotes"] = [HOSTILE]
    hostile["rendered"]["parts"][0]["columns"] = [HOSTILE] * 4
    hostile["results"]["trained"] = {
        HOSTILE + place: cell for place, cell in hostile["results"]["trained"].items()
    }
    cards = []
    for name, table, word in (("plain", plain, "x"), ("hostile", hostile, HOSTILE)):
        run = made(tmp_path / name, data=f"jsonl:{word}", modality=word)
        shutil.rmtree(run / "trace")
        write_json(run / "summary.json", table)
        cards.append(read(run))
    ours, theirs = cards
    assert ours.data.to_dict().keys() == theirs.data.to_dict().keys()
    assert len(ours.data.eval_results) == len(theirs.data.eval_results) == 6
    assert theirs.data.model_name.startswith('phantom-grpo-a": [x]\\n---\\n# **b**')
    body = [card.text.partition("## What a report must state")[0] for card in cards]
    assert shape(body[0]) == shape(body[1])
    assert "<script>" not in re.sub(r"^    .*", "", theirs.text, flags=re.M).replace("\\<", "")
    assert all(c.isprintable() for c in theirs.text.replace("\n", ""))
    headings = [[line for line in card.text.splitlines() if line[:1] == "#"] for card in cards]
    assert [len(found) for found in headings] == [12, 12]


def test_a_file_that_cannot_be_read_leaves_the_card_as_it_was(mine: Path, capsys: Any) -> None:
    before = str(read(mine))
    write_json(mine / "evaluation.json", {"results": {"trained": {"MRI": 5}}})
    write_card(mine)
    said = capsys.readouterr().err
    assert "mine: no model card is written (" in said
    assert said.count("\n") == 1
    assert str(ModelCard.load(mine / "adapter" / "README.md")) == before
    shutil.rmtree(mine / "adapter")
    write_card(mine)
    assert not (mine / "adapter").exists()


def test_a_saved_adapter_has_its_card(mine: Path, trained: Any) -> None:
    shutil.rmtree(mine / "adapter")
    save_adapter(mine, trained)
    assert "GRPO, 6 of 6 steps," in ModelCard.load(mine / "adapter" / "README.md").text


@pytest.mark.slow
def test_an_evaluation_writes_the_card_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FINISHED.parent, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    assert "| blank image |" not in read(Path("finished")).text
    evaluate.main(["--run", "finished", "--ood", "none", "--device", "cpu", "--threads", "1"])
    found = ModelCard.load(Path("finished", "adapter", "README.md"))
    assert "| blank image |" in found.text
    assert len(found.data.eval_results) == 2
