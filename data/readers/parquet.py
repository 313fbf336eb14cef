"""Rows of parquet files as the Hugging Face hub holds them, with their images inside.

The column `image` is a struct {bytes, path}, or bytes; the column `images` is a list of these. An
image's bytes are read once for their hash when the file is listed, and again when it is opened:
nothing of them is kept between.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from data.images import explained, read_picture, rgb
from data.readers.common import BadRow, Rows, visible
from grpo.settings.errors import UsageError

GROUPS_HELD = 4  # row groups whose image bytes stay in memory, of 100 to 1,000 images each


@dataclass(frozen=True)
class ParquetImage:
    """An image in a row of a parquet file, decoded only when it is used."""

    file: Path
    row: int
    place: tuple[int, int]  # its row group, and its row in that
    sha256: str  # of its bytes, in hexadecimal

    @property
    def key(self) -> str:
        """File, row and hash: the first row of the file that has these bytes."""
        return f"{self.file}#{self.row}-{self.sha256[:16]}"

    def open(self) -> Image.Image:
        """The upright image in mode RGB.

        Raises UnusableImage as `ImageFile` does, and for a file that is no longer the one listed.
        """
        return explained(f"in row {self.row} of {self.file}", lambda: rgb(self._read()))

    def _read(self) -> Image.Image:
        group, row = self.place
        for content in map(_content, _images(self.file, group)[row]):
            if hashlib.sha256(content).hexdigest() == self.sha256:
                return read_picture(io.BytesIO(content))
        raise ValueError("the file has changed since it was listed")


def parquet_files(path: Path) -> list[Path]:
    """The file `path`, or the parquet files in a folder, or else in `data/` inside it."""
    if path.is_file():
        return [path]
    return visible(path.glob("*.parquet")) or visible(path.glob("data/*.parquet"))


def parquet_rows(file: Path) -> Rows:
    """(number, row by column) of a parquet file; a `BadRow` for each row of a damaged row group.

    `image` of a row lists its images, whichever column holds them. Raises UsageError where pyarrow
    is missing.
    """
    number, groups = 0, _groups_of(file)
    first: dict[str, ParquetImage] = {}  # hash -> where these bytes stand first
    for group in range(groups.num_row_groups):
        try:
            rows = groups.read_row_group(group).to_pylist()
        except Exception as error:  # a damaged page: pyarrow's own, OSError, UnicodeDecodeError
            rows = [_unreadable(error)] * groups.metadata.row_group(group).num_rows
        for i, row in enumerate(rows):
            if isinstance(row, dict):
                images = _listed(row)
                for k, image in enumerate(images):
                    if content := _content(image):
                        digest = hashlib.sha256(content).hexdigest()
                        place = ParquetImage(file, number, (group, i), digest)
                        image = first.setdefault(digest, place)
                    elif isinstance(image, dict):
                        image = image.get("path")
                    images[k] = image or ""
                row["image"] = images
            yield number, row
            number += 1


@lru_cache(maxsize=GROUPS_HELD)
def _images(file: Path, group: int) -> list[Any]:
    rows = _groups_of(file).read_row_group(group, columns=["image", "images"]).to_pylist()
    return list(map(_listed, rows))


def _listed(row: dict[str, Any]) -> list[Any]:
    images = row.get("images", row.get("image"))
    return images if isinstance(images, list) else [images]


def _content(image: Any) -> bytes:
    content = image.get("bytes") if isinstance(image, dict) else image
    return content if isinstance(content, bytes) else b""


def _unreadable(error: Exception) -> BadRow:
    return BadRow(f"parquet cannot be read ({type(error).__name__})")


def _groups_of(file: Path) -> Any:
    try:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(file, memory_map=True)
    except ImportError:
        problem = f"{file} needs pyarrow, which is not installed"
        raise UsageError(f"{problem}: pip install pyarrow") from None
    except Exception as error:
        raise _unreadable(error) from None
