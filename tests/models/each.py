"""One test for many values, which names every value that fails."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def failures(check: Callable[..., None], cases: Iterable[tuple[Any, ...]]) -> dict[str, str]:
    """The error of every case for which `check` fails."""
    found = {}
    for case in cases:
        try:
            check(*case)
        except (Exception, pytest.fail.Exception) as error:
            found[repr(case)] = repr(error)
    return found
