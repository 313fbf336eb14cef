"""Where what may be computed again is kept."""

import pwd

import pytest

from grpo.settings.config import cache_folder
from grpo.settings.errors import UsageError


def test_the_users_cache_is_looked_for_where_it_is_used(monkeypatch, tmp_path):
    """In a container that runs under any user's number there is no home."""
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["no such user"])
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder("none") is None
    assert cache_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match="no home folder for the cache; set HOME, or use --cache"):
        cache_folder("auto")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("auto") == tmp_path / ".cache" / "medvqa-grpo"
    for folder in ("~/of mine", str(tmp_path / "of mine")):
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        assert cache_folder("auto") == tmp_path / "of mine" / "medvqa-grpo"
