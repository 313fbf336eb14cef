"""Calibration: against scikit-learn, slow loops and planted truths; recall against hand counts."""

import math
import random
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pytest

from rewards.evaluation.calibration import (
    auroc,
    calibrated_ece,
    calibration,
    calibration_error,
    recalls,
    risk_coverage,
)
from tests.rewards.evaluation.test_table import row


def planted(n: int, bias: float = 0.0, seed: int = 0) -> tuple[list[float], list[int]]:
    """Confidences, rising, and answers that are right with the chance confidence - bias."""
    draw = random.Random(seed).random
    p = sorted(0.5 + 0.5 * draw() for _ in range(n))
    return p, [int(draw() < x - bias) for x in p]


def as_rows(p: Sequence[float], y: Sequence[int], **fields: Any) -> list[dict[str, Any]]:
    """Questions of two options whose forced choice has these confidences, in mixed order."""
    logprobs = [[math.log(x), math.log1p(-x) if x < 1 else -99.0] for x in p]
    rows = [
        row(i, bool(hit), letter_logprobs=pair, **fields)
        for i, (pair, hit) in enumerate(zip(logprobs, y, strict=True))
    ]
    random.Random(1).shuffle(rows)
    return rows


def test_a_calibrated_set_of_100_000_has_an_error_below_1_percent() -> None:
    assert calibration_error(*planted(100_000))[0] < 0.01
    assert calibration_error(*planted(100_000, bias=0.1))[0] == pytest.approx(0.1, abs=0.01)


def test_calibrated_sets_of_240_lie_in_the_printed_band() -> None:
    inside = 0
    for seed in range(20):
        p, y = planted(240, seed=seed)
        usual = calibrated_ece(p)
        low, high = usual["band95"]
        inside += low <= calibration_error(p, y)[0] <= high
    assert usual["mean"] == pytest.approx(0.08, abs=0.01)
    assert inside >= 17, "95 % are expected"


def test_an_overconfident_set_lies_above_the_band_and_its_excess_above_0() -> None:
    found = calibration(as_rows(*planted(1200, bias=0.15)))
    assert found["ece"] > found["calibrated"]["band95"][1]
    assert found["excess"]["value"] == found["ece"] - found["calibrated"]["mean"]
    assert found["excess"]["ci95"][0] > 0.05
    calibrated = calibration(as_rows(*planted(1200)))
    assert calibrated["excess"]["ci95"][0] < 0 < calibrated["excess"]["ci95"][1]


def test_figures_equal_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    curves = pytest.importorskip("sklearn.calibration")
    p, y = planted(1200, bias=0.1)
    found = calibration(as_rows(p, y))

    true, predicted = curves.calibration_curve(y, p, n_bins=15, strategy="quantile")
    assert found["ece"] == pytest.approx(fmean(abs(true - predicted)), abs=1e-12)
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx(list(true))
    assert found["brier"]["value"] == pytest.approx(metrics.brier_score_loss(y, p), abs=1e-12)
    coarse = sorted(round(x, 1) for x in p)  # many are equal
    for confidences in (p, coarse):
        theirs = metrics.roc_auc_score(y, confidences)
        assert auroc(confidences, y, [2] * 1200)[0] == pytest.approx(theirs, abs=1e-12)


def test_auroc_compares_within_equally_many_options_only() -> None:
    p, y, options = [0.3, 0.4, 0.4, 0.6, 0.7, 0.9], [0, 1, 0, 0, 1, 0], [4, 4, 4, 2, 2, 2]
    # Of four options: 0.4 beats 0.3 and equals 0.4. Of two: 0.7 beats 0.6 and loses to 0.9.
    assert auroc(p, y, options)[0] == (1 + 0.5 + 1 + 0) / 4
    assert auroc(p, [1] * 6, options) is None
    assert auroc(p, [1, 1, 1, 0, 0, 0], options) is None
    assert calibration(as_rows(p, [0] * 6))["auroc"] is None


def test_risk_by_hand_and_by_a_slow_loop() -> None:
    curve, (area, _) = risk_coverage([0.5, 0.6, 0.6, 0.9], [0, 1, 0, 1])
    assert curve == [[0.25, 0.0], [0.75, 1 / 3], [1.0, 0.5]]
    assert area == pytest.approx((0.5 + 1 / 3 + 1 / 3 + 0) / 4)
    p, y = planted(500)
    p = sorted(round(x, 2) for x in p)
    slow = []
    for x in p:
        kept = [hit for other, hit in zip(p, y, strict=True) if other >= x]
        slow.append(1 - fmean(kept))
    assert risk_coverage(p, y)[1][0] == pytest.approx(fmean(slow))


def test_the_accuracy_at_a_coverage_is_of_the_most_confident() -> None:
    p = [0.5, 0.6, 0.6, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99]
    found = calibration(as_rows(p, [0, 0, 0, 1, 1, 1, 0, 1, 1, 1]))
    assert found["accuracy_at_50"] | {"ci95": 0, "options": 0} == {
        "n": 5, "correct": 4, "accuracy": 0.8, "ci95": 0, "options": 0,
    }  # fmt: skip
    assert found["accuracy_at_80"]["n"] == 9, "all that are as confident as the eighth"


@pytest.mark.parametrize("shared", [1, 4])
def test_the_errors_are_those_of_a_bootstrap_over_images(shared: int) -> None:
    """The slow oracle: every figure again on 400 draws of the images."""
    p, y = planted(400, bias=0.2)
    groups = [i // shared for i in random.Random(2).sample(range(400), 400)]
    y = [
        y[groups.index(group)] if shared > 1 else hit for group, hit in zip(groups, y, strict=True)
    ]
    rows = [
        row(i, bool(hit), image=f"{group}.png", letter_logprobs=[math.log(x)])
        for i, (x, hit, group) in enumerate(zip(p, y, groups, strict=True))
    ]
    found, drawn, generator = calibration(rows), [], random.Random(3)
    members = [[i for i in range(400) if groups[i] == group] for group in sorted(set(groups))]
    for _ in range(400):
        places = sorted(i for part in generator.choices(members, k=len(members)) for i in part)
        sample = [p[i] for i in places], [y[i] for i in places]
        squares = [(x - hit) ** 2 for x, hit in zip(*sample, strict=True)]
        area = auroc(*sample, [2] * 400)[0]
        drawn.append((fmean(squares), area, risk_coverage(*sample)[1][0]))
    for name, values in zip(("brier", "auroc", "aurc"), zip(*drawn, strict=True), strict=True):
        low, high = found[name]["ci95"]
        assert high - low == pytest.approx(2 * 1.96 * stdev(values), rel=0.12), name


def test_a_slope_is_what_one_more_copy_of_an_answer_changes() -> None:
    """The slow oracle: all answers 200 times, and one of them once more. Some are equal."""
    p, y = planted(30, bias=0.2)
    p = sorted(round(x, 1) for x in p)
    many = [(x, hit, 2) for x, hit in zip(p, y, strict=True) for _ in range(200)]
    for figure in (auroc, lambda p, y, options: risk_coverage(p, y)[1]):
        value, slopes = figure(p, y, [2] * 30)
        grown = []
        for extra in zip(p, y, [2] * 30, strict=True):
            columns = map(list, zip(*sorted([*many, extra]), strict=True))
            grown.append((figure(*columns)[0] - value) * len(many))
        centred = [slope - fmean(slopes) for slope in slopes]
        assert centred == pytest.approx(grown, abs=0.01)
        assert max(centred) > 0.2


def test_ranks_of_fewer_than_20_right_or_wrong_answers_say_nothing() -> None:
    p, wide = [0.5 + i / 200 for i in range(60)], {}
    for right in (19, 20, 40, 41):
        y = [int(i < right) for i in random.Random(0).sample(range(60), 60)]
        found = calibration(as_rows(p, y))
        ends = [found[name]["ci95"] for name in ("auroc", "aurc", "brier")]
        wide[right] = [pair == [0.0, 1.0] or pair[1] - pair[0] > 0.6 for pair in ends]
    assert wide == {19: [True, True, False], 20: [False] * 3, 40: [False] * 3} | {41: wide[19]}


def test_no_figure_depends_on_the_order_of_the_questions() -> None:
    p, y = planted(300)
    rows = as_rows([round(x, 1) for x in p], y)
    found, again = calibration(rows), calibration(rows[::-1])
    for name in ("ece", "confidence"):
        assert found[name] == pytest.approx(again[name])
    for name in ("auroc", "aurc", "excess"):
        assert found[name]["value"] == pytest.approx(again[name]["value"])
        assert found[name]["ci95"] == pytest.approx(again[name]["ci95"])


def test_the_agreement_of_samples_is_a_confidence() -> None:
    given = (["A", "A", "A", "B"], ["B", None, "B", "A"], [None] * 4)
    asked = {"image": [], "options": ["left", "right"], "gold": "A"}
    some = [{"id": str(i), "answers": answers, **asked} for i, answers in enumerate(given)]
    found = calibration(some)
    assert (found["n"], found["accuracy"]) == (2, 0.5), "without a readable sample there is none"
    assert found["confidence"] == (0.75 + 0.5) / 2
    assert found["ece"] == (0.25 + 0.5) / 2
    assert calibration(some[2:]) is None


def test_one_question_has_figures_and_says_nothing() -> None:
    found = calibration(as_rows([0.8], [1]))
    assert (found["n"], found["auroc"], found["brier"]["ci95"]) == (1, None, [-1.0, 1.0])
    assert calibration([row(0, True, letter_logprobs=None)]) is None, "an open question"


def test_sensitivity_and_specificity_by_hand() -> None:
    yes, no = {"options": ["Yes", "no"], "gold": "A"}, {"options": ["no", "yes"], "gold": "A"}
    some = [
        *(row(i, i < 3, **yes) for i in range(4)),
        *(row(10 + i, i < 1, **no) for i in range(2)),
    ]
    for one in some[4:]:
        one |= {"correct": False, "answer": None}
    found = recalls(some)["yes/no"]
    rates = found["forced_choice"]["recall"]
    assert (rates["sensitivity"]["correct"], rates["sensitivity"]["n"]) == (3, 4)
    assert (rates["specificity"]["correct"], rates["specificity"]["n"]) == (1, 2)
    assert found["forced_choice"]["balanced_accuracy"]["accuracy"] == (0.75 + 0.5) / 2
    assert found["strict"]["recall"]["specificity"]["accuracy"] == 0.0
    assert found["unread"] == 2 / 6


def test_recall_is_given_where_the_list_of_answers_is_short() -> None:
    short = [row(i, True, gold="AB"[i % 2]) for i in range(4)]
    long = [row(10 + i, True, options=[f"a{i}", "b"], question_type="finding") for i in range(11)]
    found = recalls([*short, *long])
    assert list(found) == ["side"]
    assert list(found["side"]["forced_choice"]["recall"]) == ["left", "right"]
    assert list(recalls(long[:10])) == ["finding"]
