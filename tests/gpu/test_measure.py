"""measure.py goes through on a CPU, so that nothing but the card is new on the day."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.gpu import measure
from tests.gpu.machine import SMALL


def failures(record: dict) -> list:
    return [row for row in record["rows"] if "failed" in row]


def test_rates_attention_and_drawing_go_through():
    for part in (1, 2):
        record = measure.measured(part, SMALL, None)
        assert record["rows"]
        assert not failures(record)
        assert record["machine"]["torch"]
    drawn = [row for row in record["rows"] if row["what"] == "drawing"]
    assert all(row["same_tokens"] for row in drawn)


def test_a_section_that_fails_is_recorded_and_the_next_one_runs(monkeypatch):
    def broken(size):
        yield {"what": "before"}
        raise ValueError("no such kernel")

    def whole(size):
        yield {"what": "after", "ms": 1 / 3}

    monkeypatch.setitem(measure.PARTS, 1, ("broken", (broken, whole)))
    rows = measure.measured(1, SMALL, None)["rows"]
    assert [row.get("what", row.get("failed")) for row in rows] == ["before", "broken", "after"]
    assert "no such kernel" in rows[1]["error"]
    assert rows[2]["ms"] == 0.333333


@pytest.mark.slow
@pytest.mark.parametrize("part", [3, 4, 5, 6, 7, 8, 9])
def test_a_part_goes_through(part, tmp_path):
    words = ["--part", str(part), "--small", "--out", str(tmp_path)]
    program = [sys.executable, measure.__file__, *words]
    subprocess.run(program, check=True, capture_output=True, timeout=300)
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert not failures(record)
    rows = {row.get("what"): row for row in record["rows"]}
    if part == 4:
        assert rows["graphs draw what calls draw"]["same"]
        assert rows["a longer rollout begins with the shorter"]["same"]
    elif part == 5:
        assert rows["drawn against scored"]["max"] < 0.1
        assert rows["KL at the start"]["max"] == 0.0
    elif part == 6:
        assert rows["plan"]["figures"]
        assert rows["passes"]["update_s"] > 0
    elif part == 7:
        assert rows["step"]["step"] == 3
    elif part == 9 and importlib.util.find_spec("trl") is None:
        assert "absent" in rows["TRL"]
