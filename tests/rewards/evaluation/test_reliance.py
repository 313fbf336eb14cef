"""Reliance on image and thought: planted policies, whose truth is known, and counts by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
import pytest

from data.evaluation_questions import control_questions
from data.example import VQAExample
from data.load import LeftOut
from data.phantom import questions as phantom
from grpo.settings.config import Config
from rewards.evaluation import text as render
from rewards.evaluation.reliance import altered_thoughts, reliance, stays
from rewards.evaluation.scores import measured
from rewards.evaluation.statistics import paired_interval, wilson
from rewards.evaluation.table import tabulate

N = 120
Rule = Callable[[VQAExample], int]  # the place of the option that a planted policy chooses


def rows(examples: Sequence[VQAExample], rule: Rule) -> list[dict]:
    """The rows of a policy that answers by rule, strictly and by forced choice alike."""
    return [
        {
            "id": e.id,
            "image": [image.key for image in e.images],
            "options": list(e.options),
            "gold": e.letter,
            "question_type": e.question_type,
            "answer": ascii_uppercase[place],
            "correct": place == e.gold,
            "formatted": True,
            "forced_answer": ascii_uppercase[place],
            "forced_correct": place == e.gold,
            "length": 10,
            "constant": e.constant,
        }
        for e in examples
        for place in [rule(e)]
    ]


def guesses(example: VQAExample) -> int:
    """Chooses by question and options alone."""
    return sum("".join(example.options).encode()) % len(example.options)


def sees(example: VQAExample) -> int:
    """An oracle of the image: an option that is true of the scene shown, else the first."""
    if not example.images or not hasattr(example.images[0], "scene"):
        return 0
    seen = phantom.findings(example.images[0].scene)
    true = phantom.true_answers(seen).get(example.question, set())
    return next((i for i, option in enumerate(example.options) if option in true), 0)


@pytest.fixture(scope="module")
def asked() -> tuple[dict, dict, dict]:
    """(tests, controls, oracle) of N phantom questions, nearest images by made-up features."""
    tests = {"MRI": phantom.load("MRI", split="test", size=N)}
    config = Config(train_size=24)
    vectors = np.random.default_rng(0).normal(size=(N, 4)).tolist()
    facts = (config, config, LeftOut(), lambda examples: vectors[: len(examples)])
    controls, _, oracle = control_questions(tests, None, *facts)
    return tests, controls, oracle


def arms(asked: tuple[dict, dict, dict], rule: Rule) -> dict:
    tests, controls, _ = asked
    every = {"tests": tests, **controls}
    return {arm: {m: rows(part, rule) for m, part in x.items()} for arm, x in every.items()}


def test_a_policy_that_ignores_the_image_relies_on_nothing(asked) -> None:
    found = reliance(arms(asked, guesses), asked[2])["MRI"]
    assert found.keys() == {
        "visual_reliance",
        "sensitivity_blank",
        "sensitivity_shuffled",
        "sensitivity_nearest",
    }
    for figures in found.values():
        assert (figures["value"], figures["n"]) == (0.0, N)
        assert figures["strict"]["value"] == figures["ceiling"]["reached"] == 0.0
        assert figures["ceiling"]["value"] > 0.4
    low, high = found["visual_reliance"]["ci95"]
    assert low < 0 < high
    assert found["visual_reliance"]["p"] == 1.0


def test_an_oracle_of_the_image_reaches_the_ceiling(asked) -> None:
    found = reliance(arms(asked, sees), asked[2])["MRI"]
    for name in ("visual_reliance", "sensitivity_shuffled", "sensitivity_nearest"):
        ceiling = found[name]["ceiling"]
        assert ceiling["reached"] == ceiling["value"], name
    assert found["sensitivity_nearest"]["ceiling"]["value"] == 1.0
    shuffled = found["sensitivity_shuffled"]["ceiling"]
    assert 0.4 < shuffled["value"] < 0.7, "about half of swapped images keep the answer"
    assert N / 2 < shuffled["n"] < N
    expected = [1 - 1 / len(e.options) for e in asked[0]["MRI"]]
    blank = found["sensitivity_blank"]["ceiling"]["value"]
    assert blank == pytest.approx(sum(expected) / N)


def test_a_policy_that_sees_half_of_the_time_reaches_half(asked) -> None:
    half = {e.id for e in asked[0]["MRI"][::2]}
    found = reliance(arms(asked, lambda e: sees(e) if e.id in half else guesses(e)), asked[2])
    for name in ("visual_reliance", "sensitivity_shuffled", "sensitivity_nearest"):
        figures = found["MRI"][name]
        assert figures["ceiling"]["reached"] / figures["ceiling"]["value"] == pytest.approx(
            0.5, abs=0.15
        )
        assert figures["ci95"][0] < figures["value"] < figures["ci95"][1]


def by_hand(strict: str, other: str, images: Sequence[str] = "abcd") -> dict:
    """The figures of 4 questions with two options, A right, forced AABB, and AB.. if shuffled."""
    examples = [VQAExample(str(i), (), "?", ("x", "y"), 0, "CT", "") for i in range(4)]
    own, swapped = (rows(examples, lambda e: 0) for _ in range(2))
    for i, row in enumerate(own):
        answer = {"-": None}.get(strict[i], strict[i])
        row |= {"image": [images[i]], "answer": answer, "correct": answer == "A"}
        row |= {"forced_answer": "AABB"[i], "forced_correct": i < 2}
    for i, row in enumerate(swapped):
        answer = {"-": None}.get(other[i], other[i])
        row |= {"image": ["z"], "answer": answer, "correct": answer == "A"}
        row |= {"forced_answer": "ABBA"[i], "forced_correct": i in (0, 3)}
    given = {"tests": {"CT": own}, "shuffled_image": {"CT": swapped}}
    oracle = {"shuffled_image": {"CT": {"0": 1.0, "1": 1.0, "2": 0.0, "3": None}}}
    return reliance(given, oracle)["CT"]


def test_figures_by_hand() -> None:
    found = by_hand("AAB-", "AB-B")
    changed = found["sensitivity_shuffled"]
    assert (changed["value"], changed["n"]) == (2 / 4, 4)
    assert changed["ci95"] == list(wilson(2, 4))
    assert changed["strict"] == {"value": 1 / 2, "ci95": list(wilson(1, 2)), "n": 2}
    assert changed["unread"] == 2 / 4
    assert changed["ceiling"] == {"value": pytest.approx(2 / 3), "n": 3, "reached": 1 / 3}
    lost = found["visual_reliance"]
    assert lost["value"] == 0.0
    assert lost["ci95"] == list(paired_interval([1, 0, 0, 1], [1, 1, 0, 0]))
    assert lost["strict"]["value"] == 1 / 4
    assert lost["ceiling"]["reached"] == 1 / 3
    assert "sensitivity_nearest" not in found


def test_shared_images_widen_the_interval(asked) -> None:
    given = arms(asked, lambda e: sees(e) if int(e.id[-1]) % 2 else guesses(e))
    alone = reliance(given, asked[2])["MRI"]
    for i, row in enumerate(sorted(given["tests"]["MRI"], key=lambda row: row["forced_correct"])):
        row["image"] = [f"image {i // 12}"]
    shared = reliance(given, asked[2])["MRI"]
    for name in ("visual_reliance", "sensitivity_nearest"):
        width, wider = (x[name]["ci95"][1] - x[name]["ci95"][0] for x in (alone, shared))
        assert shared[name]["value"] == alone[name]["value"]
        assert wider > 1.2 * width


def test_questions_without_an_image_rely_on_none(asked) -> None:
    blind = [replace(e, images=()) for e in asked[0]["MRI"]]
    given = {"tests": {"MRI": rows(blind, guesses)}, "blank_image": {"MRI": rows(blind, guesses)}}
    assert reliance(given, asked[2]) == {"MRI": {}}
    assert reliance({"tests": {"MRI": []}}, {}) == {"MRI": {}}


def test_nearest_images_of_an_unknown_answer_stand_apart(asked) -> None:
    unknown = {e.id for e in asked[0]["MRI"][:40]}
    oracle = {**asked[2], "nearest_image": {"MRI": dict(asked[2]["nearest_image"]["MRI"])}}
    oracle["nearest_image"]["MRI"] |= dict.fromkeys(unknown)
    found = reliance(arms(asked, sees), oracle)["MRI"]
    assert found["sensitivity_nearest"]["n"] == N - 40
    apart = found["sensitivity_nearest_unknown"]
    assert (apart["n"], apart["ceiling"]) == (40, {"value": None, "n": 0, "reached": None})


def test_the_table_says_what_is_sure(asked) -> None:
    def table(rule: Rule) -> dict:
        made = {model: arms(asked, rule) for model in ("base", "trained")}
        return tabulate(made, "MRI", oracle=asked[2])

    seeing, guessing = table(sees), table(guesses)
    lost = seeing["reliance"]["trained"]["MRI"]["visual_reliance"]
    shares = f"{100 * lost['value']:.1f} of {100 * lost['ceiling']['value']:.1f}"
    assert f"Visual reliance, of an oracle's, in points: MRI {shares}." in seeing["verdicts"]
    assert not any("reliance" in verdict for verdict in guessing["verdicts"])
    lines = render.text(guessing).splitlines()
    cells = [line.split()[2] for line in lines if line.startswith("  visual reliance")]
    assert cells == ["+0.0", "+0.0"]
    shown = render.text(seeing)
    assert "none is right" in shown
    assert "no image" in shown


def test_more_sentences_ask_for_more_to_be_sure(asked) -> None:
    """Ten questions lost and none won have p 0.002: sure alone, not among ten modalities."""

    def table(modalities: int) -> list[str]:
        own = rows(asked[0]["MRI"], lambda e: e.gold)
        other = [row | {"forced_correct": i >= 10} for i, row in enumerate(own)]
        names = [f"M{i}" for i in range(modalities)]
        asked_of = {"tests": own, "blank_image": own, "shuffled_image": other}
        given = {arm: dict.fromkeys(names, some) for arm, some in asked_of.items()}
        prior = {"majority_letter": dict.fromkeys(names, rows(asked[0]["MRI"], guesses))}
        return tabulate({"base": given}, "M0", prior)["verdicts"]

    assert table(1)[0].endswith("in points: M0 8.3 of -.")
    assert not any("reliance" in verdict for verdict in table(10))


THOUGHTS = [
    ("side", "It lies left."),
    ("size", "Large."),
    ("side", "It lies left."),
    ("side", None),
]


def test_thoughts_are_removed_halved_and_exchanged() -> None:
    given = [("side", "It lies left."), ("size", "Large."), ("side", "It lies left.")]
    given += [("side", None), ("side", "It lies far to the right.")]
    some = [{"question_type": kind, "forced_reasoning": thought} for kind, thought in given]
    found = altered_thoughts(some)
    assert found["same_after_none"] == ["", "", "", None, ""]
    assert found["same_after_half"] == ["It", "", "It", None, "It lies far"]
    right = "It lies far to the right."
    assert found["same_after_other"] == [right, None, right, None, "It lies left."]


def test_a_choice_stays_or_not() -> None:
    row = {"forced_answer": "B"}
    name, found = "same_after_half", {"id": "1", "closed": True}
    assert stays(name, found, row, "It", [-2.0, -0.1]) == found | {name: True}
    assert stays(name, found, row, "It", [-0.1, -2.0]) == found | {name: False}
    assert stays(name, found, row, None, [-0.1, -2.0])[name] is None
    assert stays(name, found, row, "It", [])[name] is None
    some = [{"closed": True, name: x} for x in (True, False, True, None)]
    assert measured(some) == {name: 2 / 3, f"{name} missing": 1}


def test_the_sentence_names_where_no_reliance_is_shown(asked) -> None:
    tests, controls, _ = asked
    made = {}
    for arm, some in arms(asked, sees).items():
        blind = rows({"tests": tests, **controls}[arm]["MRI"], guesses)
        made[arm] = {"MRI": some["MRI"], "CT": blind}
    (verdict,) = [x for x in tabulate({"base": made}, "MRI")["verdicts"] if "reliance" in x]
    assert verdict.endswith(" of -, CT none that is shown.")
