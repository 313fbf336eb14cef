"""PathVQA (He et al. 2020) as on the hub: data/{train,validation,test}-*.parquet.

A row: image, question, answer. Closed are the questions that are answered with yes or no. The
images are microscopy, gross specimens and drawings from textbooks: all count as PATHOLOGY.
"""

from pathlib import Path
from typing import Any

from data.readers.common import fields
from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files

EXPECTED = (
    "the folder that holds data/train-*.parquet, data/validation-*.parquet and data/test-*.parquet"
)


def read(path: Path) -> Listing:
    """All questions of a parquet file, or of those in a folder or its data/."""
    files = [path] if path.is_file() else parquet_files(path)
    return read_files(path, files, parquet_rows, _row)


def _row(raw: dict[str, Any]) -> dict[str, Any]:
    names = ("image", "question", "answer", "split")
    return {**fields(raw, *names), "modality": "PATHOLOGY", "dataset": "PathVQA"}
