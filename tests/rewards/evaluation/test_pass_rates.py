"""How often samples are right, and which groups GRPO would see differ: against every group."""

import math
import random
import struct
from itertools import combinations

import pytest

from data.example import VQAExample, columns
from rewards.evaluation.predictions import drawn, pass_rates, scored_by
from rewards.evaluation.statistics import differ
from rewards.evaluation.text import signal
from rewards.scoring import built_in, parse_rewards

SIDE = VQAExample("q1", (), "Which side?", ("left", "right"), 1, "MRI", "side")
OPEN = VQAExample("q2", (), "What is it?", (), 0, "MRI", "kind", references=("cyst", "a cyst"))


def every_group(values: list[float], size: int) -> float:
    """The share of all groups of so many samples in which two values differ in float32."""
    as_float32 = [struct.unpack("f", struct.pack("f", value))[0] for value in values]
    groups = [*combinations(as_float32, size)]
    return sum(any(value != group[0] for value in group) for group in groups) / len(groups)


def test_the_chance_that_a_group_differs_is_that_of_all_groups() -> None:
    generator = random.Random(3)
    for n in (8, 11):
        for kinds in (1, 2, 3, 5):
            values = [generator.randrange(kinds) / 3 for _ in range(n)]
            for size in (2, 4, 8):
                assert differ(values, size) == pytest.approx(every_group(values, size), abs=1e-12)


def test_of_right_and_wrong_alone_it_is_the_two_binomials() -> None:
    for c in range(17):
        for size in (4, 8):
            lost = (math.comb(c, size) + math.comb(16 - c, size)) / math.comb(16, size)
            assert differ([1.0] * c + [0.0] * (16 - c), size) == pytest.approx(1 - lost, abs=1e-12)


def test_rewards_that_are_equal_in_float32_do_not_differ() -> None:
    assert differ([0.1 + 0.2, 0.3, 0.0, 0.0], 2) == pytest.approx(4 / 6)
    assert differ([0.0, -0.0], 2) == 0.0


def test_a_row_holds_what_is_right_strictly_and_the_total_of_every_sample() -> None:
    said = ["<think>x</think><answer>B</answer>", "<answer>B</answer>", "B", "<answer>A</answer>"]
    words = ["<answer>A cyst.</answer>", "<answer>cyst</answer>", "cyst", ""]
    terms = parse_rewards("format=0.5,accuracy=2", built_in())
    rows = [drawn(SIDE, said), drawn(OPEN, words)]
    (side, opened) = pass_rates(rows, [SIDE, OPEN], terms, columns)
    assert side == {
        "id": "q1", "question": "Which side?", "n": 4, "correct": 2, "totals": [2.5, 2, 0, 0],
    }  # fmt: skip
    assert (opened["correct"], opened["totals"]) == (2, [2, 2, 0, 0])


def test_another_scorer_decides_what_is_right() -> None:
    row = drawn(SIDE, ["<answer>B</answer> or <answer>A</answer>", "<answer>B</answer>"])
    terms = parse_rewards("accuracy", built_in())
    ours, theirs = (scored_by(row, name) for name in ("ours", "medvlm-r1"))
    counts = [pass_rates([each], [SIDE], terms, columns)[0]["correct"] for each in (ours, theirs)]
    assert counts == [1, 2]


def test_what_grpo_would_see_is_said_in_three_lines() -> None:
    rows = [
        {"n": 8, "correct": 8, "totals": [1.0] * 8},
        {"n": 8, "correct": 0, "totals": [0.0] * 8},
        {"n": 8, "correct": 0, "totals": [0.0] * 7 + [0.5]},
        {"n": 8, "correct": 4, "totals": [1.0] * 4 + [0.0] * 4},
    ]
    said = signal(rows, 0.625, "format=0.5,accuracy").splitlines()
    total, correct = 100 * (0.5 + 68 / 70) / 4, 100 * 68 / 70 / 4
    assert said == [
        "4 questions, 8 samples each: always right 1, never 2, mixed 1; "
        "by forced choice 62.5 % right",
        "groups of 4 that differ in format=0.5,accuracy "
        f"{total:.1f} %, in correctness {correct:.1f} %",
        "groups of 8 that differ in format=0.5,accuracy 50.0 %, in correctness 25.0 %",
    ]
    assert "by forced choice - % right" in signal(rows, None, "format")
