"""Every hostile case is watched: no unpickling, no program started, no write outside its folder."""

from collections.abc import Iterator

import pytest

from tests.hostile import watch


@pytest.fixture(autouse=True)
def watched(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test during which an event is noted that no input may cause."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    watch.limit_time()
    watch.watch(tmp_path_factory.getbasetemp())
    yield
    watch.end_limit()
    noted = list(watch.noted)
    watch.watch(None)
    assert noted == []
