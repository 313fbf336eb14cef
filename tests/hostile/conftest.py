"""Every hostile case runs watched: no pickle, no program started, no write outside its folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import watch

PATIENCE = 100  # seconds, a thousand times what any case takes: only so that a broken one ends


@pytest.fixture(autouse=True)
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test during which something happened that no input may bring about."""

    def waited(*_: object) -> None:
        raise TimeoutError("this input is waited on, or worked at, without end")

    signal.signal(signal.SIGALRM, waited)
    signal.alarm(PATIENCE)
    watch.watch(tmp_path_factory.getbasetemp())
    yield
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
