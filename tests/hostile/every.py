"""Try every value in one test, and report all values that fail."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.hostile import watch


def try_every(check: Callable[[Any], Any], values: Iterable[Any]) -> None:
    """Call `check` with each value. Fails afterwards, with one line for each value that failed.

    Each value has the time limit of a test, and is watched as a test is. The traceback is that of
    the first value that failed.
    """
    failed: list[str] = []
    first: BaseException | None = None
    for value in values:
        watch.limit_time()
        try:
            check(value)
            if watch.noted:
                raise AssertionError(f"noted: {watch.noted}")
        except (Exception, pytest.fail.Exception) as error:
            first = first or error
            failed.append(f"{value!a:.80}: {type(error).__name__}: {error}")
        watch.noted.clear()
    watch.end_limit()  # a test outside of this folder has no fixture that does
    if failed:
        raise AssertionError("\n".join([f"{len(failed)} values fail:", *failed])) from first


def first_by_default(cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrised test: the default run tries the first of them only."""
    first, *others = cases
    marked = [case if isinstance(case, tuple) else (case,) for case in others]
    return [first, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in marked)]
