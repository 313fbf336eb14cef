"""The priors against a slow oracle, on questions that teach nothing and on some that leak."""

import random
from fractions import Fraction
from itertools import product

import pytest

from data.controls.priors import Prior, by_letter, by_text
from data.example import VQAExample
from data.phantom import questions as phantom
from tests.data.cases import check_each

MODALITIES = phantom.MODALITIES
WORDS = ("yes", "no", "left", "right", "a cyst", "nothing", "glioma")


def question(*options: str, gold: int = 0) -> VQAExample:
    return VQAExample("1", (), "Which?", options, gold, "MRI", "")


def random_questions(generator: random.Random, count: int) -> list[VQAExample]:
    """Options of varying number; spelt with stops and capitals now and then."""
    spell = (str, str.upper, "{}.".format, " {} ".format)
    return [
        question(
            *(generator.choice(spell)(word) for word in generator.sample(WORDS, number)),
            gold=generator.randrange(number),
        )
        for number in generator.choices((2, 3, 4), k=count)
    ]


def expected_hits(training: list[VQAExample], test: list[VQAExample]) -> Fraction:
    """Every training question read again for every option of every test question."""

    def plain(text: str) -> str:
        return text.strip().rstrip(".").lower()

    hits = Fraction(0)
    for asked in test:
        scores = []
        for option in asked.options:
            seen = [e for e in training if plain(e.options[e.gold]) == plain(option)]
            scores.append(len(seen))
        if scores[asked.gold] == max(scores):
            hits += Fraction(1, scores.count(max(scores)))
    return hits


def check_options_prior(seed: int) -> None:
    generator = random.Random(seed)
    training = random_questions(generator, generator.choice((1, 5, 40)))
    test = random_questions(generator, 30)
    accuracy = Prior(by_text, training).score(test)["accuracy"]
    assert accuracy == pytest.approx(float(expected_hits(training, test) / len(test)))


def test_the_options_prior_agrees_with_counting_by_hand() -> None:
    check_each(check_options_prior, range(20))


def test_a_tie_is_worth_its_expected_value_wherever_the_right_option_stands() -> None:
    prior = Prior(by_text, [question("x", "y"), question("z", "y")])
    for gold, chance in enumerate((1 / 2, 0, 1 / 2, 0)):
        asked = question("x", "y", "Z.", "new", gold=gold)
        assert prior.best(asked.options) == [0, 2]
        assert prior.chance_right(asked) == chance


def test_a_prior_that_has_seen_nothing_scores_chance() -> None:
    test = random_questions(random.Random(0), 60)
    for prior in (Prior(by_text, []), Prior(by_letter, [])):
        score = prior.score(test)
        assert score["n"] == 60
        assert score["accuracy"] == pytest.approx(score["chance"])


def test_no_questions_have_no_accuracy() -> None:
    assert Prior(by_text, []).score([]) == {"n": 0, "accuracy": None, "chance": None}


def test_the_options_prior_sees_neither_letter_nor_question_nor_image() -> None:
    training = [question("right", "wrong", gold=0)] * 3
    prior = Prior(by_text, training)
    assert prior.score([question("wrong", "new", "right", gold=2)])["accuracy"] == 1
    assert prior.score([question("right", "wrong", gold=1)])["accuracy"] == 0


def test_the_majority_letter_is_learned_for_each_number_of_options() -> None:
    training = [
        *[question("a", "b", gold=1)] * 3,
        *[question("a", "b", gold=0)] * 2,
        *[question("a", "b", "c", "d", gold=3)] * 5,
    ]
    prior = Prior(by_letter, training)
    assert prior.best(("p", "q")) == [1]
    assert prior.best(("p", "q", "r", "s")) == [3]
    assert prior.best(("p", "q", "r")) == [0, 1, 2]  # never met
    assert prior.score(training)["accuracy"] == 8 / 10


def check_stratified(case: tuple[int, int]) -> None:
    """Whatever the training questions happened to be: the test deck is exactly balanced."""
    size, seed = case
    training = phantom.load("MRI", split="train", size=size, seed=seed)
    for modality in MODALITIES:
        test = phantom.load(modality, split="test", size=240)
        assert Prior(by_text, training).score(test)["accuracy"] == pytest.approx(0.45)
        assert Prior(by_letter, training).score(test)["accuracy"] == pytest.approx(0.45)


@pytest.mark.slow
def test_on_stratified_phantoms_no_prior_leaves_chance() -> None:
    check_each(check_stratified, product([100, 600], range(5)))


def check_leaky(modality: str) -> None:
    training = phantom.load(modality, split="train", size=280, variant="leaky")
    prior = Prior(by_text, training)
    for other in MODALITIES:
        test = phantom.load(other, split="test", size=280, variant="leaky")
        leaks = [e for e in test if e.question_type == "modality"]
        rest = [e for e in test if e.question_type != "modality"]
        assert len(leaks) == 40
        assert prior.score(leaks)["accuracy"] == (1 if other == modality else 0)
        assert prior.score(rest)["accuracy"] == pytest.approx(0.45)


def test_on_leaky_phantoms_the_options_prior_answers_what_leaks() -> None:
    check_each(check_leaky, MODALITIES)
