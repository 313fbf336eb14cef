"""Samples: figures against hand counts, guesses against a simulation, and who leads at which k."""

import random
from typing import Any

import pytest

from rewards.evaluation.samples import sampled, sampling_gain
from rewards.evaluation.table import tabulate
from tests.rewards.evaluation.test_table import row


def drawn(right: int, k: int, i: int, **fields: Any) -> dict[str, Any]:
    """A question of which `right` of k samples are right."""
    asked = {"id": f"q{i}", "image": [f"{i}.png"], "options": ["left", "right"], "gold": "A"}
    return asked | {"answers": ["A"] * right + ["B"] * (k - right)} | fields


def test_samples_by_hand():
    given = (["A", "B", "B", None], ["A", "A", "A", "B"], ["B"] * 4)
    some = [drawn(0, 4, i, answers=answers) for i, answers in enumerate(given)]
    some[2]["constant"] = True
    found = sampled(some)
    assert found["pass@1"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert found["pass@2"] == pytest.approx((3 / 6 + 6 / 6) / 2)
    assert found["pass@4"] == 1.0
    assert found["majority@4"] == 0.5
    assert found["mixed"] == 1.0
    assert found["agreement"] == pytest.approx((2 / 4 + 3 / 4) / 2)


def test_the_intervals_of_pass_at_k_are_those_of_a_bootstrap_over_questions() -> None:
    generator = random.Random(0)
    some = [drawn(generator.choice((0, 1, 2, 4)), 4, i) for i in range(200)]
    values = [row["answers"].count("A") / 4 for row in some]
    means = sorted(sum(generator.choices(values, k=200)) / 200 for _ in range(2000))
    found = sampled(some)
    assert found["ci95"]["pass@1"] == pytest.approx([means[50], means[-51]], abs=0.012)
    low, high = sampled([drawn(4, 4, i) for i in range(20)])["ci95"]["pass@4"]
    assert (low, high) == pytest.approx((0.874, 1.0), abs=1e-3), "20 of 20 are no certainty"
    grouped = sorted(some, key=lambda one: one["answers"])
    grouped = [one | {"image": [f"{i // 10}.png"]} for i, one in enumerate(grouped)]
    widths = [b - a for a, b in (sampled(rows)["ci95"]["pass@1"] for rows in (some, grouped))]
    assert widths[1] > 2 * widths[0], "images of equal answers count once"


def test_the_guesser_guesses_among_options_or_among_the_answers_of_the_type() -> None:
    closed = [drawn(1, 4, 0), drawn(1, 4, 1, options=list("wxyz"))]
    found = sampled(closed)["guesser"]
    draw = random.Random(0).random
    simulated = [any(draw() < p for _ in range(4)) for p in (1 / 2, 1 / 4) for _ in range(20_000)]
    assert found["pass@4"] == pytest.approx(sum(simulated) / 40_000, abs=0.01)
    assert found["pass@1"] == (1 / 2 + 1 / 4) / 2
    fields = {"options": [], "answers": ["x"] * 2, "question_type": "side"}
    some = [drawn(0, 2, i, **fields, gold=gold) for i, gold in enumerate(("left", "right", "left"))]
    some += [drawn(0, 2, 9, **fields | {"question_type": "where"}, gold="apex")]
    assert sampled(some)["guesser"]["pass@1"] == (3 / 2 + 1) / 4, "two sides; one answer to where"


def test_gains_are_paired_by_question() -> None:
    before, after = [drawn(i % 3, 4, i) for i in range(60)], [drawn(2, 4, i) for i in range(60)]
    found = sampling_gain(before, after)
    assert found["pass@1"]["gain"] == pytest.approx(0.25)
    assert found["pass@4"]["gain"] == pytest.approx(1 / 3)
    low, high = sampling_gain(after, after)["pass@1"]["ci95"]
    assert low == -high < 0.0, "no change is no certainty"


# Right samples of 16 of two kinds of questions, half each, before and after training; what is said.
CASES = {
    "taught": ((1, 0), (4, 4), "on MRI the trained policy leads at k 8"),
    "sharpened": ((4, 4), (16, 0), "on MRI the base overtakes at k 4"),
    "spoiled": ((8, 8), (4, 0), "on MRI the base leads at k 2"),
    "the same": ((3, 3), (3, 3), "on MRI neither leads at k 8"),
}


def verdict(before: tuple[int, int], after: tuple[int, int], **fields: Any) -> list[str]:
    """The sentences of a table of 100 open questions of 50 answers, 16 samples each."""
    answers, options = {}, fields.get("options", True)
    for model, counts in (("base", before), ("trained", after)):
        asked = [{"gold": "A" if options else f"place {i % 50}"} | fields for i in range(100)]
        samples = [
            drawn(0, 0, i) | one | {"answers": [one["gold"]] * n + ["no"] * (16 - n)}
            for i, one in enumerate(asked)
            for n in [counts[i % 2]]
        ]
        tests = [row(i, False, **{"forced_correct": None, "f1": 0.0} | fields) for i in range(100)]
        answers[model] = {"tests": {"MRI": tests}, "samples": {"MRI": samples}}
    return tabulate(answers, "MRI")["verdicts"]


@pytest.mark.parametrize("case", CASES)
def test_a_sentence_says_who_leads_on_open_questions(case: str) -> None:
    before, after, said = CASES[case]
    open_question = {"options": [], "forced_answer": None, "letter_logprobs": []}
    assert verdict(before, after, **open_question) == [f"pass@k of open questions: {said}."]


def test_nothing_is_said_where_guessing_suffices() -> None:
    assert verdict((4, 4), (16, 0), forced_correct=True) == [], "options are shown"
    few = {"options": [], "forced_answer": None, "gold": "left"}
    assert verdict((4, 4), (16, 0), **few) == [], "all questions have one answer"
