"""PathVQA (He et al. 2020) as on the hub: data/{train,validation,test}-*.parquet.

A row: image, question, answer. Closed are the questions that are answered with yes or no. The
images are microscopy, gross specimens and drawings from textbooks: all count as PATHOLOGY.
"""

from pathlib import Path
from typing import Any

from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files
from grpo.settings.errors import UsageError


def read(path: Path) -> Listing:
    """All questions of a parquet file, or of those in a folder or its data/."""
    files = [path] if path.is_file() else parquet_files(path)
    if not files:
        raise UsageError(
            f"path-vqa:{path}: no data there; expected the folder that holds data/train-*.parquet, "
            f"data/validation-*.parquet and data/test-*.parquet"
        )
    return read_files(path.parent if path.is_file() else path, files, parquet_rows, _row)


def _row(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "image": raw["image"],
        "question": raw.get("question"),
        "answer": raw.get("answer"),
        "modality": "PATHOLOGY",
        "dataset": "PathVQA",
        "split": raw["split"],
    }
