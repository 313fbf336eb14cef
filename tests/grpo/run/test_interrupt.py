"""A signal asks a run to stop after its step; none is lost, and an ignored one stays ignored."""

from __future__ import annotations

import signal

import pytest

from grpo.run import interrupt
from grpo.run.interrupt import Halted, Stop


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
