"""A signal asks a run to stop after its step; none is lost, and an ignored one stays ignored."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from grpo.loop import grpo
from grpo.optim import adamw
from grpo.run import interrupt
from grpo.run.checkpoint import Checkpointer, newest
from grpo.run.interrupt import Halted, Stop
from grpo.run.metrics_log import Trackers
from grpo.run.progress import Progress
from grpo.run.recorder import Recorder
from tests.grpo.cases import config, draw, reward


def test_a_signal_during_the_exchange_of_signals_is_not_lost(tmp_path, monkeypatch):
    """It came after the others were told: all processes hear of it at the next step."""
    with Stop(tmp_path, quiet=True) as stop:

        def exchange(own):
            signal.raise_signal(signal.SIGTERM)
            return [own]

        monkeypatch.setattr(interrupt, "gathered", exchange)
        assert not stop.wanted()
        monkeypatch.undo()
        assert stop.wanted()
        with pytest.raises(Halted, match="stopped by SIGTERM after step 3"):
            stop.halt("after step 3")


def test_a_stopped_run_whose_adapter_cannot_be_written_can_go_on(fresh, tmp_path):
    """A full disk, or what lies in the way: the checkpoint is there, so the command is named."""
    c, policy = config(steps=5, save_every=0, sample_every=0), fresh()
    optimizer = adamw(policy.parameters(), c)
    (tmp_path / "adapter").write_text("in the way")
    checkpointer = Checkpointer(tmp_path, policy, optimizer, c, "origin", time.monotonic())

    def run(stop: Stop) -> None:
        progress = Progress(c, lambda question: {})
        trackers = Trackers(tmp_path)
        with Recorder(checkpointer, stop, progress, trackers).recording() as record:
            for step in grpo(policy, optimizer, draw, reward, c):
                signal.raise_signal(signal.SIGTERM)
                record.record(step)

    with Stop(tmp_path, quiet=True) as stop, pytest.raises(Halted, match="adapter: cannot be"):
        run(stop)
    assert newest(tmp_path).step == 1


def test_an_error_while_files_open_or_close_names_the_command(fresh, tmp_path):
    c, policy = config(steps=2, save_every=1, sample_every=0), fresh()
    optimizer = adamw(policy.parameters(), c)

    def run(steps: Iterator) -> None:
        checkpointer = Checkpointer(tmp_path, policy, optimizer, c, "origin", time.monotonic())
        progress = Progress(c, lambda question: {})
        stop, trackers = Stop(tmp_path, quiet=True), Trackers(tmp_path)
        recorder = Recorder(checkpointer, stop, progress, trackers)
        with recorder.recording():
            for step in steps:
                recorder.record(step)
            os.close(recorder.log.lines.fileno())  # so that closing it fails

    with pytest.raises(Halted, match="Bad file descriptor; mend that"):
        run(grpo(policy, optimizer, draw, reward, c))
    assert newest(tmp_path).step == 2
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(Halted, match=r"/metrics\.jsonl: Is a directory; mend that"):
        run(iter([]))
