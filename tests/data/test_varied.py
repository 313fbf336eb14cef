"""Diversity prompting and shuffled options: a function of (seed, step, question)."""

from collections import Counter

from data.example import VQAExample, in_all_ways, one_asked
from data.phantom import questions as phantom
from data.training_questions import question_order, reordered, varied
from rewards.answers import is_formatted
from tests.data.cases import check_each

WAYS = ("explain", "direct", "open")
POOL = phantom.load("MRI", split="train", size=48)
DRAW = question_order(POOL, seed=3, prompts_per_step=4)
SIZE = VQAExample("q", (), "How large?", ("small", "large", "huge"), 1, "MRI", "size")


def kind(example: VQAExample) -> str:
    return example.asked if example.options else "open"


def test_every_way_comes_up_about_equally_often():
    draw = varied(DRAW, 3, WAYS, shuffle_options=False)
    counts = Counter(kind(draw(step, slot, 0)) for step in range(75) for slot in range(4))
    assert set(counts) == set(WAYS)
    assert min(counts.values()) > 75  # of 300, 100 each expected; 75 is three deviations off


def test_a_question_is_asked_alike_in_any_slot_and_otherwise_in_another_step_or_run():
    def constant(step: int, slot: int, attempt: int) -> VQAExample:
        return SIZE

    draw = varied(constant, 3, WAYS, shuffle_options=True)
    here = [draw(step, 0, 0) for step in range(40)]
    assert here == [draw(step, 3, 2) for step in range(40)]
    assert here == [varied(constant, 3, WAYS, True)(step, 0, 0) for step in range(40)]
    assert here != [varied(constant, 4, WAYS, True)(step, 0, 0) for step in range(40)]
    assert len({kind(example) for example in here}) == 3


def test_shuffled_options_keep_the_right_answer_and_use_every_order():
    draw = varied(lambda *place: SIZE, 0, ("reason",), shuffle_options=True)
    seen = [draw(step, 0, 0) for step in range(120)]
    assert {example.answer for example in seen} == {"large"}
    assert len({example.options for example in seen}) == 6
    assert {example.letter for example in seen} == {"A", "B", "C"}


def test_one_way_and_options_as_they_are_change_nothing():
    draw = varied(DRAW, 3, ("reason",), shuffle_options=False)
    assert [draw(0, slot, 0) for slot in range(4)] == [DRAW(0, slot, 0) for slot in range(4)]


def check_reordered(order: list[int]):
    turned = reordered(SIZE, order)
    assert turned.options == tuple(SIZE.options[i] for i in order)
    assert turned.answer == SIZE.answer


def test_reordered_puts_option_order_i_in_place_i() -> None:
    check_each(check_reordered, [[0, 1, 2], [2, 0, 1], [1, 2, 0]])


def test_an_open_question_shows_no_option_and_is_answered_in_words():
    example = one_asked(SIZE, "open")
    assert "small" not in example.prompt
    assert "a few words" in example.prompt
    assert (example.letters, example.letter, example.answer) == ((), "", "large")
    assert example.completion("It fills a lobe.") == (
        "<think>It fills a lobe.</think><answer>large</answer>"
    )
    assert is_formatted(example.completion("So."), example.letters)


def test_the_other_ways_differ_in_the_instruction_alone():
    prompts = {way: in_all_ways([SIZE], [way])[0].prompt for way in ("reason", "explain", "direct")}
    assert len(set(prompts.values())) == 3
    assert len({prompt.rpartition("\n")[0] for prompt in prompts.values()}) == 1


def test_shuffling_leaves_an_open_question_alone():
    example = one_asked(SIZE, "open")
    assert varied(lambda *place: example, 0, ("reason",), True)(0, 0, 0) == example
