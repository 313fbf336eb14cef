"""tests/lowest.txt pins the oldest package of each range in requirements.txt."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_lowest_pins_are_the_lower_ends_of_the_ranges():
    ranges = (ROOT / "requirements.txt").read_text()
    pins = (ROOT / "tests" / "lowest.txt").read_text()
    lower = re.findall(r"^(\w+)>=([\d.]+)", ranges, re.MULTILINE)
    assert {"torch", "transformers", "peft", "pytest"} <= dict(lower).keys()
    assert re.findall(r"^(\w+)==([\d.]+)\.\*$", pins, re.MULTILINE) == lower
