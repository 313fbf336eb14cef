"""A control of training: right answers permuted among the questions of the same options."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from data.evaluation_questions import load_tests, load_validation
from data.example import VQAExample, columns, one_asked
from data.load import LeftOut, load_split
from data.phantom.questions import load
from data.training_questions import load_questions, sft_target, with_shuffled_answers
from evaluate import report
from grpo.settings.config import Config
from grpo.settings.options import Options

POOL = load("MRI", split="train", size=480)
SHUFFLED = with_shuffled_answers(POOL, seed=1)
OPEN = [
    VQAExample(f"{kind}{i}", (), "?", (), 0, "MRI", kind, references=(f"{kind} {i}", f"or {i}"))
    for kind in ("", "organ", "plane")
    for i in range(30)
]


def kind(example: VQAExample) -> tuple[frozenset[str], str]:
    """The options in any order; of an open question its type."""
    return frozenset(example.options), "" if example.options else example.question_type


def right_answers(examples: list[VQAExample]) -> dict[tuple, Counter]:
    """How often each answer is right, by the kind of question."""
    found = defaultdict(Counter)
    for example in examples:
        found[kind(example)][example.right_answers] += 1
    return found


def test_each_answer_is_right_as_often_as_before_among_questions_of_the_same_options():
    assert right_answers(SHUFFLED) == right_answers(POOL)
    assert len(right_answers(POOL)) > 10, "four options, and every pair of them"
    shuffled = with_shuffled_answers(OPEN, seed=1)
    assert right_answers(shuffled) == right_answers(OPEN)
    assert sum(a.references != b.references for a, b in zip(OPEN, shuffled, strict=True)) > 70


def test_of_options_with_one_answer_the_places_are_permuted_among_as_many_options():
    """As in real sets, where no two questions have the same options, or "no" is always right."""
    own = [replace(e, options=tuple(f"{x} {e.id}" for x in e.options)) for e in POOL]
    same = [replace(e, id=f"{e.id}-", options=("yes", "no"), gold=1) for e in POOL[:40]]
    for before in (own, same + own):
        after = with_shuffled_answers(before, seed=1)
        places = [Counter((len(e.options), e.gold) for e in found) for found in (before, after)]
        assert places[0] == places[1]
        moved = sum(a.gold != b.gold for a, b in zip(before, after, strict=True))
        assert moved > len(before) / 4
        assert [e.options for e in after] == [e.options for e in before]


def test_all_else_stays_in_its_place_but_what_shows_the_image():
    for before, after in zip([*POOL, *OPEN], with_shuffled_answers([*POOL, *OPEN], 1), strict=True):
        label = {"gold": before.gold, "references": before.references}
        shown = {"reasoning": before.reasoning, "findings": before.findings}
        assert replace(after, **label, **shown) == before
        assert (after.reasoning, after.findings) == ("", None)


def test_about_the_share_of_chance_keeps_its_answer():
    """Of each kind: the sum of the squared shares of its answers."""
    kept = sum(a.answer == b.answer for a, b in zip(POOL, SHUFFLED, strict=True))
    counts = right_answers(POOL).values()
    expected = sum(sum(n * n for n in c.values()) / c.total() for c in counts)
    assert abs(kept - expected) < 4 * (len(POOL) / 4) ** 0.5  # four deviations
    assert expected < 0.6 * len(POOL)


def test_the_permutation_is_a_function_of_the_seed():
    assert with_shuffled_answers(POOL, seed=1) == SHUFFLED
    assert with_shuffled_answers(POOL, seed=2) != SHUFFLED
    golds = [[e.gold for e in with_shuffled_answers(POOL, seed)] for seed in range(8)]
    assert len(set(map(tuple, golds))) == 8


def test_what_is_learned_from_follows_the_permuted_label():
    target = sft_target(Config(method="sft", shuffle_answers=True), SHUFFLED)
    known = columns(SHUFFLED)
    for i, example in enumerate(SHUFFLED):
        assert target(example).endswith(f"<answer>{example.letter}</answer>")
        assert (known["answer"][i], known["references"][i]) == (example.letter, (example.answer,))
        assert one_asked(example, "open").answer == example.answer


def test_training_is_permuted_by_the_runs_seed_and_said_and_nothing_else_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"train_size": 60, "val_size": 12, "eval_size": 12, "eval_every": 1}
    plain = Config(seed=5, data_seed=7, **sizes)
    config = replace(plain, shuffle_answers=True)
    examples, validation, tests, _ = load_questions(config, lambda *_: "")

    assert "--shuffle-answers: a control, " in capsys.readouterr().err
    assert examples == with_shuffled_answers(load_split(plain, "train", 60), seed=5)
    assert tests == load_tests(plain)
    assert validation == load_validation(plain, LeftOut())
    load_questions(plain, lambda *_: "")
    assert "permuted" not in capsys.readouterr().err


def test_the_table_of_such_a_run_says_so(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    table = {"rendered": {"parts": [{"title": "", "columns": [], "rows": []}], "footnotes": []}}
    for shuffled in (True, False):
        report(Options(), Config(shuffle_answers=shuffled), tmp_path, table)
        (title, *_) = capsys.readouterr().out.splitlines()
        assert ("greedy, a control: trained on permuted answers" in title) == shuffled
