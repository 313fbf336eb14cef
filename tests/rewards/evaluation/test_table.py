"""The table: figures against hand counts, intervals where images are shared, verdicts."""

import json

import pytest

from rewards.evaluation import text as render
from rewards.evaluation.scores import cell, gain, interval, macro_mean, permuted
from rewards.evaluation.statistics import paired_interval, wilson
from rewards.evaluation.table import over_seeds, tabulate, verdicts


def row(i: int, correct: bool, *, image: str | None = None, **fields) -> dict:
    """A question with two options, A right."""
    return {
        "id": f"q{i}",
        "image": [image or f"{i}.png"],
        "options": ["left", "right"],
        "gold": "A",
        "question_type": "side",
        "answer": "A" if correct else "B",
        "correct": correct,
        "formatted": True,
        "forced_answer": "A" if correct else "B",
        "forced_correct": correct,
        "length": 10,
        "constant": False,
        **fields,
    }


def rows(right: int, n: int, **fields) -> list[dict]:
    return [row(i, i < right, **fields) for i in range(n)]


def test_a_cell_counts_by_hand():
    some = [*rows(3, 4), row(4, False, answer=None, formatted=False, question_type="count")]
    found = cell(some)
    assert (found["n"], found["correct"], found["accuracy"]) == (5, 3, 0.6)
    assert found["ci95"] == list(wilson(3, 5))
    assert (found["format_rate"], found["accuracy_parsed"]) == (0.8, 0.75)
    assert found["by_type"]["count"]["correct"] == 0
    assert found["by_type"]["side"]["n"] == 4


def test_constant_questions_stand_apart():
    some = [*rows(1, 4), *(row(10 + i, True, constant=True) for i in range(6))]
    found = cell(some)
    assert (found["n"], found["correct"]) == (4, 1)
    assert (found["constant"]["n"], found["constant"]["correct"]) == (6, 6)
    only = [row(i, True, constant=True) for i in range(3)]
    assert cell(only)["n"] == 3, "where there is nothing else they are the headline"


def test_shared_images_widen_the_interval():
    alone = rows(50, 100)
    shared = [row(i, i < 50, image=f"{i // 10}.png") for i in range(100)]
    width = [high - low for low, high in (interval(alone), interval(shared))]
    assert width[1] > 1.5 * width[0]
    alike = [row(i, True, image=f"{i // 10}.png") for i in range(100)]
    assert interval(alike) == wilson(10, 10), "ten images, whatever the number of questions"


def test_images_with_equal_shares_right_have_an_interval_with_width():
    halves = [row(i, i % 2 > 0, image=f"{i // 2}.png") for i in range(20)]
    assert interval(halves) == wilson(5, 10), "each image has one right of two"


def test_a_blank_image_makes_no_questions_dependent():
    blank = [row(i, i < 5, image="blank/112x112") for i in range(10)]
    assert interval(blank) == wilson(5, 10)


def test_intervals_go_by_patient_where_it_is_given():
    """Ten patients of ten images each are as ten images; their blank images are theirs, too."""
    shared = [row(i, i < 50, image=f"{i // 10}.png") for i in range(100)]
    for image in (None, "blank/112x112"):
        of_patients = [row(i, i < 50, image=image, patient=f"{i // 10}") for i in range(100)]
        assert interval(of_patients) == interval(shared)
    right = [old | {"correct": i % 3 > 0} for i, old in enumerate(of_patients)]
    by_image = [old | {"correct": i % 3 > 0} for i, old in enumerate(shared)]
    assert gain(of_patients, right, "correct") == gain(shared, by_image, "correct")
    assert interval([row(i, i < 50, patient="") for i in range(100)]) == wilson(50, 100)


def test_gain_pairs_questions():
    before, after = rows(1, 4), rows(3, 4)
    found = gain(before, after, "correct")
    assert found["gain"] == 0.5
    assert found["ci95"] == list(paired_interval([1, 0, 0, 0], [1, 1, 1, 0]))
    assert found["mcnemar_p"] == 0.5
    shared = [row(i, False, image=f"{i // 10}.png") for i in range(100)]
    gained = [row(i, True, image=f"{i // 10}.png") for i in range(100)]
    ten = paired_interval([0] * 10, [1] * 10)
    assert gain(shared, gained, "correct")["ci95"] == list(ten), "ten images, all alike"


def test_nothing_is_known_of_a_gain_on_one_image_that_not_all_questions_share():
    before = [row(i, i == 19, image="one.png") for i in range(20)]
    after = [row(i, i != 19, image="one.png") for i in range(20)]
    found = gain(before, after, "correct")
    assert (found["gain"], found["ci95"]) == (pytest.approx(0.9), [-1.0, 1.0])


def test_the_macro_mean_of_one_cell_has_the_interval_of_that_cell():
    found = macro_mean([{"accuracy": 0.9, "ci95": [0.6, 0.95]}])
    assert (found["accuracy"], found["ci95"]) == (0.9, pytest.approx([0.6, 0.95]))


def test_the_macro_mean_counts_modalities_alike():
    cells = [{"accuracy": 0.5, "ci95": [0.4, 0.6]}, {"accuracy": 0.7, "ci95": [0.6, 0.8]}]
    found = macro_mean(cells)
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["ci95"][1] - found["ci95"][0] == pytest.approx(0.2 / 2**0.5)


def test_permuted_options_tell_text_from_letter():
    def turned(order: int, options: list[str], answer: str | None) -> dict:
        return row(0, answer == "A", options=options, answer=answer) | {"id": f"q~{order}"}

    by_text = [turned(0, ["left", "right"], "A"), turned(1, ["right", "left"], "B")]
    by_letter = [turned(0, ["left", "right"], "A"), turned(1, ["right", "left"], "A")]
    foreign = [turned(0, ["left", "right"], "A"), turned(1, ["right", "left"], "K")]
    assert permuted(foreign)["same_text"] == 0.0
    mute = [turned(0, ["left", "right"], None), turned(1, ["right", "left"], None)]
    assert [permuted(r)["same_text"] for r in (by_text, by_letter, mute)] == [1.0, 0.0, 0.0]


def test_the_orders_of_a_question_without_an_image_are_dependent():
    orders = [(f"q{q}", f"q{q}~{k}", q < 4 + k) for q in range(10) for k in range(4)]
    without = [row(0, right) | {"id": id, "image": []} for _, id, right in orders]
    own = [row(0, right) | {"id": id, "image": [f"{q}.png"]} for q, id, right in orders]
    assert permuted(without) == permuted(own)
    low, high = interval([row(i, right) for i, (*_, right) in enumerate(orders)])
    assert permuted(without)["ci95"][1] - permuted(without)["ci95"][0] > 1.3 * (high - low)


def answers(trained: int, blank: int, prior: float) -> tuple[dict, dict]:
    arms = {"tests": {"MRI": rows(trained, 200), "CT": rows(100, 200)}}
    controls = {"blank_image": {"MRI": rows(blank, 200), "CT": rows(100, 200)}}
    priors = [row(i, False) | {"correct": prior} for i in range(200)]
    base = {"tests": {"MRI": rows(90, 200), "CT": rows(100, 200)}} | controls
    return {"base": base, "trained": arms | controls}, {
        "options_prior": {"MRI": priors, "CT": rows(100, 200)}
    }


def test_the_whole_table_and_its_two_faces():
    table = tabulate(*answers(150, 100, 0.5)[:1], "MRI", answers(150, 100, 0.5)[1])
    assert json.loads(json.dumps(table))["results"]["trained"]["MRI"]["correct"] == 150
    assert table["chance"] == {"MRI": 0.5, "CT": 0.5}
    assert table["gains"]["trained"]["MRI"]["accuracy"]["gain"] == pytest.approx(0.3)
    assert table["controls"]["trained"]["options_prior"]["MRI"]["accuracy"] == pytest.approx(0.5)
    assert verdicts(table) == []
    text, markdown = render.text(table), render.markdown(table)
    for face in (text, markdown):
        assert "75.0 [68.6, 80.5]" in face
        assert "+30.0" in face
    assert max(map(len, text.splitlines())) <= 102


CONTROLS = (  # right answers of 200 by the trained model and without an image, the prior's share
    (150, 148, 0.5, "with a blank image it scores 74.0; trained's 75.0 there says little about"),
    (190, 130, 0.5, "with a blank image it scores 65.0; trained's 95.0 there is not all seeing"),
    (130, 90, 0.6, "the options alone score 60.0; trained's 65.0 there says little about"),
    (150, 100, 0.987, "the options alone score 98.7; trained's 75.0 there says little about"),
)


def test_a_control_that_explains_the_result_gets_a_sentence():
    wrong = []
    for trained, blank, prior, says in CONTROLS:
        given, priors = answers(trained, blank, prior)
        sentences = verdicts(tabulate(given, "MRI", priors))
        if len(sentences) != 1 or not sentences[0].startswith(f"MRI: {says}"):
            wrong.append((says, sentences))
    assert wrong == []


def test_in_a_control_each_model_is_a_test_and_a_prior_is_one_test_for_all():
    """The p of 118 right of 200 is 0.0066, that of 120 is 0.0028: below 0.01 as one test, and as
    one of three, but no more as one of two and one of four."""

    def said(blank: int, **priors: dict) -> list[str]:
        arms = {"blank_image": {"MRI": rows(blank, 200)}}
        tests = {"base": {"MRI": rows(90, 200)}, "trained": {"MRI": rows(190, 200)}}
        given = {model: {"tests": answered} | arms for model, answered in tests.items()}
        return verdicts(tabulate(given, "MRI", priors))

    assert said(118) == [], "two tests, though both models are equally often right"
    (sentence,) = said(90, options_prior={"MRI": rows(120, 200)})
    assert sentence.startswith("MRI: the options alone score 60.0; trained's 95.0 there is not")


def test_a_control_without_questions_says_nothing():
    """One image alone cannot be shuffled."""
    given, _ = answers(150, 100, 0.5)
    for arms in given.values():
        arms["shuffled_image"] = {"MRI": [], "CT": []}
    table = tabulate(given, "MRI")
    assert table["controls"]["trained"]["shuffled_image"]["MRI"]["accuracy"] is None
    assert verdicts(table) == []
    assert "shuffled image" in render.text(table)


def test_ways_of_asking_are_compared_with_the_base_asked_alike():
    ways = {
        "base": {"tests": {"MRI": rows(10, 100)}},
        "base, direct": {"tests": {"MRI": rows(30, 100)}},
        "trained": {"tests": {"MRI": rows(40, 100)}},
        "trained, direct": {"tests": {"MRI": rows(40, 100)}},
        "other-run": {"tests": {"MRI": rows(60, 100)}},
    }
    table = tabulate(ways, "MRI")
    gains = {name: gain["MRI"]["accuracy"]["gain"] for name, gain in table["gains"].items()}
    assert gains == {"trained": 0.3, "trained, direct": 0.1, "other-run": 0.5}
    assert table["ood_mean"] == {}
    assert "other-run" in render.text(table)


def test_seeds_are_summed_up_by_students_t():
    others = {"format_rate": 0.5, "forced_choice": None, "letter_bias": 0.1, "findings": None}
    results = {
        name: {"MRI": {**others, "accuracy": accuracy, "mean_length": 100 * accuracy}}
        for name, accuracy in (("trained", 0.7), ("b", 0.72), ("c", 0.77))
    }
    metrics = {"trained": {"MRI": {"perplexity": 2.0}}, "b": {"MRI": {"perplexity": 4.0}}}
    table = {"chance": {"MRI": 0.5}, "results": results, "metrics": metrics}
    found = over_seeds(table, ["trained", "b", "c"])[""]["MRI"]

    assert found["seeds"] == 3
    assert [round(x, 2) for x in (found["accuracy"], *found["ci95"])] == [0.73, 0.64, 0.82]
    assert found["mean_length"] == pytest.approx(73.0)
    assert found["forced_choice"] is None
    assert found["metrics"] == {"perplexity": 3.0}, "over the runs that have it"
