"""Many values through one check, all of them tried."""

from collections.abc import Callable, Iterable
from typing import Any


def check_each(check: Callable[[Any], None], values: Iterable[Any]) -> None:
    """Call `check` with every value. Raises AssertionError that names every value that fails."""
    failed = []
    for value in values:
        try:
            check(value)
        except AssertionError as error:
            failed.append(f"{value}: {error}")
    assert not failed, "\n".join(failed)
