"""The fast paths are what these tests are about, and a tiny model is too small to take them."""

import pytest

from models import attention
from models.sampling import kv_cache as decode


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch):
    """Attention by blocks, and prompts' keys once for a group, whatever the size."""
    monkeypatch.setattr(attention, "DENSE", 0)
    monkeypatch.setattr(decode, "COPIES", 0)
