"""What is kept of the steps: metrics.jsonl."""

import json
import math

from grpo.run.metrics_log import MetricsLog, history

STEPS = [
    {"step": 1, "reward": 0.5, "rewards/format/mean": 0.25, "rewards/f1/mean": math.nan},
    {"step": 2, "reward": 0.75, "rewards/format/mean": 0.5, "val/accuracy": 0.5},
]


def test_a_line_a_step_is_on_disk_before_the_next(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.add(STEPS[0])
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == STEPS[0] | {"rewards/f1/mean": None}


def test_what_is_read_back_is_what_was_written_and_a_second_log_appends(tmp_path):
    assert history(tmp_path) == []
    for step in STEPS:
        with MetricsLog(tmp_path) as log:
            log.add(step)
            assert log.lines.tell() == (tmp_path / "metrics.jsonl").stat().st_size
    first, second = history(tmp_path)
    assert math.isnan(first.pop("rewards/f1/mean"))
    assert [first, second] == [{k: v for k, v in step.items() if v == v} for step in STEPS]
