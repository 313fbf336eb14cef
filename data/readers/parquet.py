"""Rows of parquet files as the Hugging Face hub holds them, with their images inside.

The column `image` is a struct {bytes, path}, or bytes. An image's bytes are read once for their
hash when the file is listed, and again when it is opened: nothing of them is kept between.
"""

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from data.images import decoded, read_picture
from data.readers.common import BadRow, split_named, visible
from grpo.settings.errors import UsageError

IMAGE = "image"
GROUPS_HELD = 4  # row groups whose image bytes stay in memory, of 100 to 1,000 images each


@dataclass(frozen=True)
class ParquetImage:
    """An image in a row of a parquet file, decoded only when it is used."""

    file: Path
    row: int
    sha256: str  # of its bytes, in hexadecimal

    @property
    def key(self) -> str:
        """File, row and hash: the first row of the file that has these bytes."""
        return f"{self.file}#{self.row}-{self.sha256[:16]}"

    def open(self) -> Image.Image:
        """The upright image in mode RGB.

        Raises UnusableImage as `ImageFile` does, and for a file that is no longer the one listed.
        """
        return decoded(f"in row {self.row} of {self.file}", self._read)

    def _read(self) -> Image.Image:
        content = _bytes_of(self.file, self.row)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError("the file has changed since it was listed")
        return read_picture(io.BytesIO(content))


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, or in `data/` inside it."""
    return visible(folder.glob("*.parquet")) or visible(folder.glob("data/*.parquet"))


def parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(number, row by column) of a parquet file, with the split that the file is named after.

    Raises UsageError where pyarrow is not installed.
    """
    groups = _groups_of(file)
    first: dict[str, ParquetImage] = {}  # hash -> where these bytes stand first
    number = 0
    for group in range(groups.num_row_groups):
        for row in _rows_of(groups, group):
            content = _content(row.get(IMAGE))
            if content is not None:
                digest = hashlib.sha256(content).hexdigest()
                row[IMAGE] = first.setdefault(digest, ParquetImage(file, number, digest))
            elif isinstance(row.get(IMAGE), dict):
                row[IMAGE] = row[IMAGE].get("path")
            yield number, {**row, IMAGE: row.get(IMAGE) or "", "split": split_named(file.name)}
            number += 1


def _bytes_of(file: Path, row: int) -> bytes:
    """The bytes of the image in a row, as they are in the file."""
    starts = _starts(file)
    group = bisect_right(starts, row) - 1
    return _content(_images(file, group)[row - starts[group]]) or b""


@lru_cache(maxsize=64)
def _starts(file: Path) -> list[int]:
    """The first row of each row group, and the number of rows."""
    metadata = _groups_of(file).metadata
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return list(accumulate(counts, initial=0))


@lru_cache(maxsize=GROUPS_HELD)
def _images(file: Path, group: int) -> list[Any]:
    return _groups_of(file).read_row_group(group, columns=[IMAGE])[IMAGE].to_pylist()


def _content(image: Any) -> bytes | None:
    content = image.get("bytes") if isinstance(image, dict) else image
    return content if isinstance(content, bytes) and content else None


def _rows_of(groups: Any, group: int) -> list[dict[str, Any]]:
    try:
        return groups.read_row_group(group).to_pylist()
    except Exception as error:  # a damaged page: pyarrow's own, OSError, UnicodeDecodeError
        raise BadRow(f"parquet cannot be read ({type(error).__name__})") from None


def _groups_of(file: Path) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        problem = f"{file} needs pyarrow, which is not installed"
        raise UsageError(f"{problem}: pip install pyarrow") from None
    try:
        return ParquetFile(file, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadRow(f"parquet cannot be read ({type(error).__name__})") from None
