"""A hub of one's own that a download is led to."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from data.load import read
from data.readers import download
from tests.data.hub import Hub


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data sets land."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BLOCK", 1000)
    return tmp_path / "cache" / "medvqa-grpo" / "data"


@pytest.fixture
def serve(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    """Serves `files` as data set `name` of the hub; by default their hashes are the known ones."""
    hubs: list[Hub] = []

    def start(name: str, files: dict[str, bytes], revision: str = "main", **sha256: str) -> Hub:
        hubs.append(Hub(download.HUB[name].repo.partition("@")[0], files))
        known = sha256 or {file: hashlib.sha256(files[file]).hexdigest() for file in files}
        hashes = {file: known.get(file, "") for file in files}
        source = download.HubData(f"{hubs[-1].repo}@{revision}", hashes)
        monkeypatch.setitem(download.HUB, name, source)
        constants = huggingface_hub.constants  # they were read from the environment on import
        monkeypatch.setattr(constants, "ENDPOINT", hubs[-1].url)
        template = hubs[-1].url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        read.cache_clear()
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.stop()
    read.cache_clear()
