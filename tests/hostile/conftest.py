"""Every hostile case runs watched: no pickle, no program started, no write outside its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import watch


@pytest.fixture(autouse=True)
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test during which something happened that no input may bring about."""
    watch.watch(tmp_path_factory.getbasetemp())
    yield
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
