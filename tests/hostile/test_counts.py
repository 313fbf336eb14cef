"""The table of README.md says how many cases there are, and no fewer are run."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_table_holds_no_more_cases_than_there_are(request: pytest.FixtureRequest) -> None:
    stated = {
        name: int(number)
        for name, number in re.findall(r"^\| \w.* \| `(\w+\.py)` \| (\d+) \|", _table(), re.M)
    }
    files = {file.name for file in HERE.glob("test_*.py")} - {Path(__file__).name}
    assert set(stated) == files
    assert sum(stated.values()) == int(re.search(r"\*\*(\d+)\*\*", _table())[1]) >= 300
    found = Counter(item.path.name for item in request.session.items if item.path.parent == HERE)
    whole = not request.config.option.keyword and not any(
        "::" in word for word in request.config.args
    )
    for name in stated.keys() & found.keys() if whole else ():
        assert found[name] >= stated[name], name


def _table() -> str:
    return (HERE / "README.md").read_text(encoding="utf-8")
