"""The grader: blanks are not begun, the project's functions are right, and typical errors, most of
them from the traps of the exercises, are wrong and are told why."""

import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from torch import Tensor

from tests.exercises import grader
from tests.exercises.wrong_answers import WRONG_ANSWERS, std_of_g
from tests.grpo.test_interfaces import parameters
from tests.programs import Program

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q")


@pytest.mark.parametrize(
    ("flags", "code", "verdict"), [((), 1, grader.NOT_BEGUN), (("--solution",), 0, grader.RIGHT)]
)
def test_each_blank_fails_in_one_line_and_each_solution_passes(flags, code, verdict):
    done = Program(*PYTEST, "tests/exercises", *flags).finish()
    assert done.returncode == code, done.stdout + done.stderr
    shown = re.findall(r"^(\d) (\S+) +(.+)$", done.stdout, re.M)
    assert shown == [(blank.number, name, verdict) for name, blank in grader.BLANKS.items()]
    assert {number for number, _, _ in shown} == {*"12345678"}
    assert "Traceback" not in done.stdout


def test_one_exercise_is_graded_alone_and_the_suite_grades_none():
    one = Program(*PYTEST, "tests/exercises/exercise_4_kl.py", "--solution").finish()
    assert (one.returncode, len(re.findall(r"^\d \w+ +right$", one.stdout, re.M))) == (0, 1)
    suite = Program(*PYTEST, "--collect-only", "-o", "testpaths=tests/exercises", "-m", "").finish()
    found = set(re.findall(r"^(\S+)::", suite.stdout, re.M))
    assert found == {"tests/exercises/test_grader.py"}, suite.stdout


def test_a_blank_has_the_signature_of_the_projects_function():
    for name in grader.BLANKS:
        method = name.partition(".")[2]
        blank, ours = (
            attrgetter(method)(found) if method else found
            for found in (grader.answer(name), grader.solution(name))
        )
        assert blank is not ours
        assert parameters(blank) == parameters(ours), name


def test_an_answer_that_fails_is_shown_with_its_error():
    def answer(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return logprobs @ ref_logprobs[:3]

    found = grader.verdict("k3_kl", lambda _: answer)
    assert re.match(r"wrong: RuntimeError: .*size", found)
    assert grader.verdict("k3_kl", lambda _: lambda *_: None).startswith("wrong: KL: NoneType in")
    assert "shape () in place of (40,)" in grader.verdict("k3_kl", lambda _: lambda p, q: p.sum())


@pytest.mark.parametrize("name", grader.BLANKS)
def test_typical_errors_are_wrong_and_are_told_what_differs(name):
    found = {
        answer.__name__: grader.verdict(name, lambda _, answer=answer: answer)
        for answer, _ in WRONG_ANSWERS[name]
    }
    print(f"\n{name}", *(f"{error}: {verdict}" for error, verdict in found.items()), sep="\n")
    assert len(found) >= 2
    for answer, told in WRONG_ANSWERS[name]:
        assert re.match(f"wrong: {told}", found[answer.__name__]), found


def test_the_manual_shows_what_a_typical_error_is_told():
    found = grader.verdict("group_advantages", lambda _: std_of_g)
    assert found in " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
