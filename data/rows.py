"""Rows of real data sets: what makes one usable, and what becomes of one that is not.

Every loader turns its rows into one form, a dict with the keys of a `jsonl` row (data/jsonl.py),
and `read_files` does the rest. A bad row is not guessed at and stops nothing: it is left out and
counted.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data.example import ImageFile, VQAExample

# Tried in this order: "OCT (Optical Coherence Tomography" must not become CT.
_MODALITY_PATTERNS = {
    "OCT": r"\boct\b|optical coherence",
    "CT": r"\bct\b|computed tomograph",
    "MRI": r"\bmri?\b|magnetic resonance|mag-netic",
    "XRAY": r"\bx[\s_-]?ray|radiograph",
    "DERMOSCOPY": r"dermoscop|dermatoscop",
    "FUNDUS": r"fundus",
    "MICROSCOPY": r"microscop",
    "ULTRASOUND": r"ultrasound|sonograph",
}
UNLABELLED = "OTHER"  # the modality of rows that name none


class BadRow(Exception):
    """Why one row cannot be used, in a few words that repeat from row to row: they are counted."""


@dataclass(frozen=True, order=True)
class Skipped:
    """One thing left out: why, in which file (under the data folder), and which row or question."""

    reason: str
    file: str
    row: str


class Listing(NamedTuple):
    """A whole data set, no image opened. `root` is the folder its image paths start from."""

    root: Path
    examples: tuple[VQAExample, ...]
    skipped: tuple[Skipped, ...]


def summary(skipped: Iterable[Skipped]) -> str:
    """What was left out, by reason, the commonest first.

    >>> summary([Skipped("image is missing", "a.json", "7"), Skipped("broken JSON", "b.json", "")])
    '2 left out (1 broken JSON, 1 image is missing)'
    """
    reasons = Counter(sorted(item.reason for item in skipped))  # of equal counts, by name
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} left out" + (f" ({listed})" if listed else "")


@lru_cache(maxsize=1024)
def modality_name(text: str) -> str:
    """One spelling a modality: OmniMedVQA's eight by name, any other in capitals, "" for unknown.

    >>> [modality_name(text) for text in ("MR (Mag-netic Resonance Imaging)", "x_ray", "unknown")]
    ['MRI', 'XRAY', '']
    """
    lowered = text.lower().strip()
    for name, pattern in _MODALITY_PATTERNS.items():
        if re.search(pattern, lowered):
            return name
    return "" if lowered == "unknown" else re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_")


def fold(text: str) -> str:
    """Text without what no reader tells answers apart by: case, spacing, a stop at the end.

    >>> fold("  No. ") == fold("no")
    True
    """
    return " ".join(text.split()).rstrip(" .,;:").casefold()


def read_files(
    root: Path,
    files: Iterable[Path],
    rows_of: Callable[[Path], Iterator[tuple[int, Any]]],
    to_row: Callable[[dict[str, Any]], dict[str, Any]],
) -> Listing:
    """Every row of `files` as an example or as a `Skipped`.

    `rows_of` gives (number, row) of one file and may raise or hand over a `BadRow`; `to_row` puts a
    row of the data set into the common form. Directories are listed once and no image is opened or
    stat-ed, so 90,000 rows take seconds.
    """
    root = Path(os.path.abspath(root))  # image keys must not depend on the working directory
    examples: list[VQAExample] = []
    skipped: list[Skipped] = []
    listed: dict[str, set[str]] = {}
    ids: set[str] = set()
    for file in files:
        name = os.path.relpath(os.path.abspath(file), root)
        for number, raw in _until_broken(rows_of, file):
            row_id = str(number)
            try:
                if isinstance(raw, BadRow):
                    raise raw
                if not isinstance(raw, dict):
                    raise BadRow("row is not an object")
                row = to_row(raw)
                row_id = _text(row.get("id")) or f"{file.stem}#{number}"
                while row_id in ids:  # ids key the splits and the draws
                    row_id += f"#{number}"
                examples.append(_example(row_id, row, str(root), listed))
                ids.add(row_id)
            except BadRow as bad:
                skipped.append(Skipped(str(bad), name, row_id))
    return Listing(root, tuple(examples), tuple(skipped))


def _until_broken(
    rows_of: Callable[[Path], Iterator[tuple[int, Any]]], file: Path
) -> Iterator[tuple[int | str, Any]]:
    """The rows of a file; a file that fails as a whole ends with one nameless bad row."""
    try:
        yield from rows_of(file)
    except BadRow as bad:
        yield "", bad


def json_list(file: Path) -> Iterator[tuple[int, Any]]:
    """(index, row) of a file that holds one JSON list."""
    rows = parse_json(read_text(file))
    if not isinstance(rows, list):
        raise BadRow("file is not a JSON list")
    return iter(enumerate(rows))


def read_text(file: Path) -> str:
    """The text of a file; one that is not readable UTF-8 is a `BadRow`."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRow(f"file cannot be read ({type(error).__name__})") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text; anything else, absurd nesting included, is a `BadRow`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("broken JSON") from None


def _example(id: str, row: dict[str, Any], root: str, listed: dict[str, set[str]]) -> VQAExample:
    """A row in the common form, checked. Raises `BadRow`."""
    question = _text(row.get("question"))
    if not question:
        raise BadRow("question is blank")
    options = row.get("options")
    if not isinstance(options, list):
        raise BadRow("options are not a list")
    options = tuple(text for text in map(_text, options) if text)
    if not 2 <= len(options) <= 26:
        raise BadRow("not 2 to 26 options")
    folded = [fold(text) for text in options]
    if len(set(folded)) < len(folded):
        raise BadRow("two options are equal")
    answer = fold(_text(row.get("answer")))
    if answer not in folded:
        raise BadRow("answer is none of the options")
    modality = modality_name(_text(row.get("modality")) or UNLABELLED)
    if not modality:
        raise BadRow("modality is unknown")
    images = row.get("image")
    paths = [] if images is None else images if isinstance(images, list) else [images]
    return VQAExample(
        id=id,
        images=tuple(_find_image(path, root, listed) for path in paths),
        question=question,
        options=options,
        gold=folded.index(answer),
        modality=modality,
        question_type=_text(row.get("question_type")),
        reasoning=_text(row.get("reasoning")),
        dataset=_text(row.get("dataset")),
    )


def _text(value: Any) -> str:
    """A JSON scalar as one line of valid Unicode; null is blank."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow("a text field is not text")
    return " ".join(str(value).split()).encode("utf-8", "replace").decode()


def _find_image(path: Any, root: str, listed: dict[str, set[str]]) -> ImageFile:
    """The image at `path` under `root`. `listed` keeps the names in each directory met so far."""
    if not isinstance(path, str) or not path:
        raise BadRow("image path is blank")
    full = os.path.normpath(os.path.join(root, path))
    if not full.startswith(root + os.sep):
        raise BadRow("image path leaves the data folder")
    folder, name = os.path.split(full)
    if folder not in listed:
        try:
            listed[folder] = set(os.listdir(folder))
        except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the path
            listed[folder] = set()
    if name not in listed[folder]:
        raise BadRow("image is missing")
    return ImageFile(Path(full))
