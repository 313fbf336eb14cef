"""What is kept of the steps: metrics.jsonl, and TensorBoard's files when they are asked for."""

import json
import math
import sys

import pytest

from grpo.run.metrics_log import MetricsLog, check_tensorboard, history
from grpo.settings.config import Config
from grpo.settings.errors import UsageError

STEPS = [
    {"step": 1, "reward": 0.5, "rewards/format/mean": 0.25, "rewards/f1/mean": math.nan},
    {"step": 2, "reward": 0.75, "rewards/format/mean": 0.5, "val/accuracy": 0.5},
]


def test_a_line_a_step_is_on_disk_before_the_next(tmp_path):
    with MetricsLog(tmp_path, Config()) as log:
        log.add(STEPS[0])
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == STEPS[0] | {"rewards/f1/mean": None}
    assert not (tmp_path / "tensorboard").exists()


def test_what_is_read_back_is_what_was_written_and_a_second_log_appends(tmp_path):
    assert history(tmp_path) == []
    for step in STEPS:
        with MetricsLog(tmp_path, Config()) as log:
            log.add(step)
            assert log.lines.tell() == (tmp_path / "metrics.jsonl").stat().st_size
    first, second = history(tmp_path)
    assert math.isnan(first.pop("rewards/f1/mean"))
    assert [first, second] == [{k: v for k, v in step.items() if v == v} for step in STEPS]


def test_tensorboard_reads_the_same_names_and_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, Config(tensorboard=True)) as log:
        for metrics in STEPS:
            log.add(metrics)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    read = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert read == {
        "reward": [(1, 0.5), (2, 0.75)],
        "rewards/format/mean": [(1, 0.25), (2, 0.5)],
        "val/accuracy": [(2, 0.5)],
    }


def test_without_the_package_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if not installed
    check_tensorboard(Config())
    with pytest.raises(UsageError, match="pip install tensorboard") as error:
        check_tensorboard(Config(tensorboard=True))
    assert str(error.value).startswith("--tensorboard: ")
    assert "\n" not in str(error.value)
