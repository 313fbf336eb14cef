"""The audit of the published questions under MEDVQA_DATA: what they give away, and to whom."""

import os
from pathlib import Path
from typing import Any

import pytest

from data.audit.audit import Options, audit

ROOT = os.environ.get("MEDVQA_DATA", "")
FOLDER = Path(ROOT) / "omnimedvqa"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ROOT or not FOLDER.is_dir(),
        reason="needs real questions: set MEDVQA_DATA to their folder",
    ),
]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return audit(f"omnimedvqa:{FOLDER}", Options(seed=0))


def test_the_options_alone_answer_the_published_questions_they_were_learned_from(
    figures: dict[str, Any],
) -> None:
    """Near the ceiling in distribution, near chance on the other modality."""
    priors = figures["options_prior_from"]
    for own, other in (("CT", "XRAY"), ("XRAY", "CT")):
        assert priors[own][own]["accuracy"] > 0.95
        assert abs(priors[own][other]["accuracy"] - priors[own][other]["chance"]) < 0.03
        assert figures["constant"][own]["rest"]["accuracy"] > 0.95  # nor do constants explain it


def test_of_the_derived_mri_questions_it_is_the_constant_ones_that_leak(
    figures: dict[str, Any],
) -> None:
    scores, constant = figures["options_prior"], figures["constant"]["MRI"]
    assert figures["trained_on"]["MRI"] == 600
    assert scores["MRI"]["accuracy"] > 0.75
    assert constant["n"] == 200
    assert constant["rest"]["accuracy"] < 0.45
    for far in ("CT", "XRAY"):
        assert scores[far]["accuracy"] <= scores[far]["chance"]


def test_a_letter_knows_nothing_and_no_image_crosses_a_split(figures: dict[str, Any]) -> None:
    for score in figures["majority_letter"].values():
        assert abs(score["accuracy"] - score["chance"]) < 0.08
    assert figures["leaks"] == {"path": 0, "hash": 0, "near": []}
    copies = figures["copies"]
    assert (copies["images"], copies["paths"]) == (99, 202)
    assert copies["near"] == pytest.approx(196, abs=4)  # decoders differ by a grey level
    assert figures["unusable"] == {"two options are equal": 2, "modality is unknown": 1}


def test_a_lone_full_stop_gives_away_three_of_four_ct_answers(figures: dict[str, Any]) -> None:
    assert figures["full_stops"]["CT"] == {"questions": 120, "right": 89}
