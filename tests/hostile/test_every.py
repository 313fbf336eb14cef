"""`try_every` tries all values, and names all that fail."""

import signal
from pathlib import Path

import pytest

from tests.hostile import watch
from tests.hostile.every import first_by_default, try_every


def test_all_values_are_tried_and_all_that_fail_are_named() -> None:
    tried = []

    def check(value: int) -> None:
        tried.append(value)
        if value == 2:
            raise ValueError("no two")
        if value == 3:
            pytest.fail("no three")

    with pytest.raises(AssertionError) as error:
        try_every(check, [1, 2, 3, 4])
    assert tried == [1, 2, 3, 4]
    assert str(error.value).splitlines() == [
        "2 values fail:", "2: ValueError: no two", "3: Failed: no three"
    ]  # fmt: skip
    assert isinstance(error.value.__cause__, ValueError)


def test_an_input_that_writes_elsewhere_is_named(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    watch.watch(tmp_path / "own")
    with pytest.raises(AssertionError, match=r"1 values fail:\n'x': AssertionError: noted: .*open"):
        try_every(lambda text: outside.write_text(text), ["x"])


def test_an_input_that_takes_time_without_end_is_named_and_the_next_one_is_tried() -> None:
    def check(name: str) -> None:
        if name == "endless":
            signal.setitimer(signal.ITIMER_PROF, 0.05)  # in place of a minute
            while True:
                pass

    with pytest.raises(AssertionError, match="1 values fail:\n'endless': TimeoutError"):
        try_every(check, ["endless", "quick"])
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0  # or a later test would meet the limit


def test_the_default_run_has_the_first_case_only() -> None:
    first, *others = first_by_default([("a", 1), ("b", 2)])
    assert first == ("a", 1)
    assert [(case.values, [mark.name for mark in case.marks]) for case in others] == [
        (("b", 2), ["exhaustive"])
    ]
