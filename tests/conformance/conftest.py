"""The fast paths are what the conformance tests are about, and a tiny model is too small for them."""

import pytest

from models import attention, decode


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch):
    """Attention by blocks, and prompts' keys once for a group, whatever the size."""
    monkeypatch.setattr(attention, "DENSE", 0)
    monkeypatch.setattr(decode, "COPIES", 0)
