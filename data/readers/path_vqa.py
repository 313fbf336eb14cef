"""PathVQA (He et al. 2020) as on the hub: data/{train,validation,test}-*.parquet.

A row: image, question, answer. Closed are the questions that are answered with yes or no. The
images are microscopy, gross specimens and drawings from textbooks: all count as PATHOLOGY.
"""

from pathlib import Path
from typing import Any

from data.readers.common import fields, split_named
from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files

EXPECTED = "the folder that holds data/{train,validation,test}-*.parquet"
SAME = {"modality": "PATHOLOGY", "dataset": "PathVQA"}  # in all rows


def read(path: Path) -> Listing:
    """All questions of a parquet file, or of those in a folder or its data/."""
    return read_files(path, parquet_files(path), parquet_rows, _row)


def _row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    return {**fields(raw, "image", "question", "answer"), **SAME, "split": split_named(file.name)}
