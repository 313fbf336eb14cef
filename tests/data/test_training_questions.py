"""The order of questions is a function of its arguments: nothing to save, nothing to lose."""

from collections import Counter

from data.phantom.questions import load
from data.training_questions import question_order

EXAMPLES = load("MRI", split="train", size=30)


def asked(seed: int, prompts_per_step: int, steps: int) -> list[str]:
    draw = question_order(EXAMPLES, seed, prompts_per_step)
    return [draw(s, slot, 0).id for s in range(steps) for slot in range(prompts_per_step)]


def test_every_epoch_asks_each_question_once_in_a_new_order():
    ids = asked(0, 6, 15)
    epochs = [ids[i : i + 30] for i in (0, 30, 60)]
    assert all(Counter(epoch) == Counter(e.id for e in EXAMPLES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_epochs_go_on_across_steps_that_do_not_divide_them():
    assert asked(0, 7, 10)[:30] == asked(0, 6, 5)


def test_seeds_give_other_orders_and_a_later_look_the_same():
    assert asked(0, 6, 5) != asked(1, 6, 5)
    draw = question_order(EXAMPLES, 0, 6)
    later = [draw(4, slot, 0).id for slot in range(6)]  # without having asked steps 0 to 3
    assert later == asked(0, 6, 5)[24:]


def test_another_attempt_takes_another_question_by_its_own_key():
    draw = question_order(EXAMPLES, 0, 6)
    tries = [draw(0, 0, attempt).id for attempt in range(1, 40)]
    assert len(set(tries)) > 15
    assert tries == [question_order(EXAMPLES, 0, 6)(0, 0, a).id for a in range(1, 40)]
