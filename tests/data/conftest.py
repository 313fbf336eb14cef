"""Small data sets in the exact formats of the real ones, written by the tests that use them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.sets import parquet_bytes


def write_image(path: Path, number: int) -> Path:
    """A small PNG whose bytes differ from those of any other number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = bytes((number >> shift) & 255 for shift in (0, 8, 16))
    Image.frombytes("RGB", (4, 4), colours * 16).save(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests compare out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def picture() -> Callable[[Path, int], Path]:
    return write_image


class OmniFolder:
    """A folder in OmniMedVQA's layout. `row` makes a good row and its image; `write` a file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec = f"omnimedvqa:{root}"
        (root / "Images").mkdir(parents=True)
        (root / "QA_information" / "Open-access").mkdir(parents=True)

    def row(self, number: int, image: str = "", **changes: Any) -> dict[str, Any]:
        path = f"Images/Set (a) & b/{image or f'{number:04d} (1)%.png'}"
        if not (self.root / path).exists():
            write_image(self.root / path, number)
        row = {
            "dataset": "Set",
            "question_id": f"Set_{number:05d}",
            "question_type": "Disease Diagnosis",
            "question": "What is shown?",
            "gt_answer": "Cyst, simple",
            "image_path": path,
            "option_A": "Nothing",
            "option_B": "Cyst, simple",
            "option_C": "Abscess",
            "option_D": "Fracture",
            "modality_type": "MR (Mag-netic Resonance Imaging)",
            **changes,
        }
        return {
            key: value for key, value in row.items() if value is not ...
        }  # ... leaves a key out

    def write(self, rows: Any, name: str = "Set.json", access: str = "Open-access") -> None:
        file = self.root / "QA_information" / access / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")


@pytest.fixture
def omni(tmp_path: Path) -> OmniFolder:
    return OmniFolder(tmp_path / "omni")


@pytest.fixture
def parquet() -> Callable[..., bytes]:
    """Writes rows as the hub does, image given by number. Skips where pyarrow is not installed."""
    pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    return parquet_bytes
