"""Every hostile case runs watched: no pickle, no program started, no write outside its folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import watch

# Only so that a broken case ends; a sound one takes hundredths of a second.
WORK = 60  # seconds of this process's own time, which something quadratic would exceed
PATIENCE = 1200  # seconds of anybody's, which waiting on a pipe would exceed


@pytest.fixture(autouse=True)
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test during which something happened that no input may bring about."""

    def waited(*_: object) -> None:
        raise TimeoutError("this input is waited on, or worked at, without end")

    signal.signal(signal.SIGPROF, waited)
    signal.signal(signal.SIGALRM, waited)
    signal.setitimer(signal.ITIMER_PROF, WORK)
    signal.alarm(PATIENCE)
    watch.watch(tmp_path_factory.getbasetemp())
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    noted = list(watch.noted)
    watch.watch(None)
    assert noted == []


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model's folder of one's own: the large file is linked, the rest copied."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, folder / file.name)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder
