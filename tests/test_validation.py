"""What --eval-every asks: every modality, each from its own training images, never the test's."""

from pathlib import Path

import pytest

import train
from data.evaluation_questions import load_validation
from data.example import VQAExample
from data.load import LeftOut, load, splits_of
from evaluate import Scorer
from grpo.settings.config import Config
from grpo.settings.options import Options
from models.open_policy import open_policy
from models.policy import Policy
from tests.data.conftest import OmniFolder

FORMS = {"MRI": "MR (Mag-netic Resonance Imaging)", "CT": "CT(Computed Tomography)"}


@pytest.fixture
def omni(tmp_path: Path) -> OmniFolder:
    """60 MRI and 60 CT questions, each about an image of its own, and 2 X-ray ones."""
    folder = OmniFolder(tmp_path / "omni")
    numbers = {"MRI": range(60), "CT": range(60, 120)}
    rows = [folder.row(i, modality_type=FORMS[m]) for m, those in numbers.items() for i in those]
    rows += [folder.row(i, modality_type="X-Ray") for i in (120, 120)]
    folder.write([row | {"question_id": f"q{i}"} for i, row in enumerate(rows)])
    return folder


def test_every_modality_is_validated_on_its_own_training_images(
    omni: OmniFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(data=omni.spec, val_size=5, ood="CT,XRAY", data_seed=3)
    found = load_validation(config, LeftOut())
    splits = splits_of(omni.spec, 3)
    whole = {"split": "test", "size": 60, "seed": 3}
    drawn = [e for m in FORMS for e in load(omni.spec, m, **whole)]
    tests = {image.key for e in drawn for image in e.images}

    assert list(found) == ["MRI", "CT"]
    for modality, examples in found.items():
        assert {e.modality for e in examples} == {modality}
        assert {splits[e.id] for e in examples} == {"val"}
        assert not {image.key for e in examples for image in e.images} & tests
    assert "XRAY is not validated: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_figures_are_those_of_the_answers() -> None:
    config = Config.from_flags(["--recipe", "phantom", "--device", "cpu", "--cache", "none"])
    policy = open_policy(config, None)
    asked = {m: load("phantom", m, split="val", size=12, seed=1) for m in ("MRI", "CT")}
    found = train.validate(policy, asked, config)

    for place, modality in (("val", "MRI"), ("val/CT", "CT")):
        rows = Scorer(policy, config, Options(), Path()).predict(asked[modality])
        right = sum(row["forced_correct"] for row in rows) / len(rows)
        assert found[f"{place}/forced_choice"] == pytest.approx(right)
    assert found["val/forced_choice"] != found["val/CT/forced_choice"]
    assert found["time/validation"] > 0


def test_questions_without_options_have_no_forced_choice(trained: Policy) -> None:
    side = VQAExample("1", (), "Which side?", (), 0, "MRI", "side", references=("left",))
    choice = VQAExample("2", (), "Which side?", ("left", "right"), 0, "CT", "side")
    config = Config(max_completion_length=4)
    found = train.validate(trained, {"MRI": [side], "CT": [choice]}, config)
    figures = {"val/accuracy", "val/format_rate", "val/CT/accuracy", "val/CT/format_rate"}
    assert found.keys() == figures | {"val/CT/forced_choice", "time/validation"}
    assert None not in found.values()
