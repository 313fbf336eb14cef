"""Every hostile case is watched: no unpickling, no program started, no write outside its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import watch


@pytest.fixture(autouse=True)
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test during which an event is noted that no input may cause."""
    watch.limit_time()
    watch.watch(tmp_path_factory.getbasetemp())
    yield
    watch.end_limit()
    noted = list(watch.noted)
    watch.watch(None)
    assert noted == []


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder of the tiny model that a test may change; its weights are a link."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix == ".safetensors":
            os.link(file, folder / file.name)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder
