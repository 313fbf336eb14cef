"""Open questions and --metrics in rows, figures and the table."""

import math
from types import SimpleNamespace

import pytest

from data.example import VQAExample
from rewards.evaluation import text as render
from rewards.evaluation.predictions import answered, drawn, kept_rows
from rewards.evaluation.samples import sampled
from rewards.evaluation.scores import cell, gain, headline, letter_bias, measured
from rewards.evaluation.table import MEASURES, TESTS, tabulate

CLOSED = VQAExample("c", (), "Is there a mass?", ("yes", "no"), 0, "CT", "ABN")
OPEN = VQAExample("o", (), "Where is it?", (), 0, "CT", "POS", references=("left lung", "left"))
WORDS = VQAExample(
    "w", (), "Lung or liver?", (), 0, "CT", "ORG", references=("lung",), answer_type="CLOSED"
)


def say(example: VQAExample, said: str, thought: str = "I see.") -> dict:
    logprobs = [math.log(0.25), math.log(0.75)][: len(example.options)]
    text = f"<think>{thought}</think><answer>{said}</answer>"
    answer = SimpleNamespace(
        text=text, length=9, truncated=False, thought=thought, letter_logprobs=logprobs
    )
    return answered(example, answer)


def test_an_open_answer_is_right_in_any_wording_of_the_references() -> None:
    wrong = {}
    for said, correct, f1 in (
        ("The left lung.", True, 1.0),
        ("left", True, 1.0),
        ("left side", False, 2 / 3),  # beside "left": 2 * 1 / (2 + 1)
        ("right", False, 0.0),
        ("", False, 0.0),
    ):
        row = say(OPEN, said)
        found = [row[n] for n in ("correct", "formatted", "forced_answer", "forced_correct", "f1")]
        if found != [correct, bool(said), None, None, pytest.approx(f1)]:
            wrong[said] = found
    assert wrong == {}


def test_closed_and_open_are_reported_apart() -> None:
    rows = [say(CLOSED, "A"), say(WORDS, "Lung"), say(OPEN, "left"), say(OPEN, "right")]
    figures = cell(rows)

    assert (figures["n"], figures["accuracy"]) == (2, 1.0)
    assert (figures["open"]["n"], figures["open"]["accuracy"]) == (2, 0.5)
    assert figures["open"]["f1"] == 0.5
    assert figures["forced_choice"] == 0.0  # of the one with options; B is likelier
    assert headline([say(OPEN, "left")])[0]["id"] == "o", "where all are open, they are the figure"


def test_a_table_of_open_questions_alone_has_no_forced_choice() -> None:
    base, trained = [say(OPEN, "right")], [say(OPEN, "left")]
    answers = {"base": {TESTS: {"CT": base}}, "trained": {TESTS: {"CT": trained}}}
    table = tabulate(answers, "CT")
    text = render.text(table)

    assert table["chance"] == {"CT": 0.0}
    assert gain(base, trained, "forced_correct") is None
    assert table["gains"]["trained"]["CT"]["accuracy"]["gain"] == 1.0
    assert "forced choice" not in text
    assert "token F1" in text


def test_drawn_answers_to_an_open_question_vote_by_meaning() -> None:
    said = ("Left.", "the left lung", "right", "")
    row = drawn(OPEN, [f"<answer>{words}</answer>" for words in said])

    assert row["answers"] == ["left lung", "left lung", "right", None]
    assert sampled([row | {"question_type": ""}])["pass@1"] == 0.5
    assert sampled([row])["majority@4"] == 1.0


def test_wrong_wordings_of_one_answer_vote_together() -> None:
    said = ("left", "Right.", "the left", "the right", "RIGHT", ".")
    row = drawn(OPEN, [f"<answer>{words}</answer>" for words in said])

    assert row["answers"] == ["left lung", "right", "left lung", "right", "right", None]
    assert sampled([row])["majority@6"] == 0.0, "right is the commoner answer"


def test_other_references_make_another_question(tmp_path) -> None:
    other = VQAExample("o", (), "Where is it?", (), 0, "CT", "POS", references=("right",))
    asked: list[VQAExample] = []

    def predict(missing):
        asked.extend(missing)
        return [say(example, "left") for example in missing]

    first = kept_rows(tmp_path / "x", [OPEN], predict)
    again = kept_rows(tmp_path / "x", [other], predict)

    assert asked == [OPEN, other]
    assert (first[0]["correct"], again[0]["correct"]) == (True, False)


def test_letter_bias_is_the_distance_of_two_shares() -> None:
    rows = [{"forced_answer": a, "gold": g} for a, g in ("AA", "AB", "AC", "BD")]

    assert letter_bias(rows) == 0.5  # A 3/4 against 1/4; C and D never: (2 + 0 + 1 + 1) / 8
    assert letter_bias([{"forced_answer": None, "gold": "left"}]) is None


def test_metrics_say_what_is_missing() -> None:
    rows = [
        {"closed": True, "reference_nll": 2.0, "reference_tokens": 4, "reasoning": 1.0},
        {"closed": True, "reference_nll": 4.0, "reference_tokens": 2, "reasoning": None},
    ]
    figures = measured(rows)

    assert figures["perplexity"] == pytest.approx(math.e)  # 6 nats over 6 tokens
    assert (figures["reasoning"], figures["reasoning missing"]) == (1.0, 1)
    apart = measured([*rows, {"closed": False, "reasoning": 0.5}])
    assert (apart["reasoning"], apart["open reasoning"]) == (1.0, 0.5)
    answers = {"base": {TESTS: {"CT": [say(CLOSED, "A")] * 2}, MEASURES: {"CT": rows}}}
    text = render.text(tabulate(answers, "CT"))
    assert "2.72" in text
    assert "100.0 (1 missing)" in text


def test_a_figure_of_some_modalities_is_a_dash_in_the_others() -> None:
    known = {"closed": True, "reference_nll": 2.0, "reference_tokens": 2}  # perplexity e
    closed, both = [known], [known, known | {"closed": False, "reference_tokens": 1}]  # e^2
    for figures, cells in (((closed, both), ["-", "7.39"]), ((both, closed), ["7.39", "-"])):
        arms = {TESTS: {m: [say(CLOSED, "A")] for m in ("CT", "MRI")}}
        arms[MEASURES] = dict(zip(("CT", "MRI"), figures, strict=True))
        shown = render.text(tabulate({"base": arms}, "CT")).splitlines()
        (line,) = (line for line in shown if line.startswith("  open perplexity"))
        assert line.split()[2:] == cells
        assert ["perplexity", "2.72", "2.72"] in map(str.split, shown)


def test_findings_are_scored_where_they_are_known() -> None:
    known = VQAExample(
        "k", (), "?", ("a", "b"), 0, "MRI", "t", findings=("small cyst, upper left",)
    )

    assert say(known, "A", "One lesion: small cyst, upper left.")["findings"] == 1.0
    assert say(CLOSED, "A")["findings"] is None
    assert cell([say(known, "A", "No lesion."), say(CLOSED, "A")])["findings"] == 0.0


def test_a_modality_without_options_has_controls_of_nothing() -> None:
    arms = {TESTS: {"CT": [say(CLOSED, "A")], "XRAY": [say(OPEN, "left")]}}
    blank = {"CT": [say(CLOSED, "B")], "XRAY": []}
    permuted = {"CT": [say(CLOSED, "A") | {"id": f"c~{k}"} for k in (0, 1)], "XRAY": []}
    controls = {"blank_image": blank, "permuted_options": permuted}
    table = tabulate({"base": arms | controls}, "CT")
    (line,) = (line for line in render.text(table).splitlines() if "blank image " in line)

    assert line.split()[2:] == ["0.0", "[0.0,", "79.3]", "-"]
    assert table["controls"]["base"]["permuted_options"]["XRAY"]["same_text"] is None
