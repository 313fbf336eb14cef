"""The fast paths are what these tests are about, and a tiny model is too small to take them."""

import pytest

from models import attention


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch):
    """Attention by blocks, whatever the size."""
    monkeypatch.setattr(attention, "DENSE", 0)
