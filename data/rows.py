"""Rows of real data sets: what makes one usable, and what becomes of one that is not.

Every loader turns its rows into one form, a dict with the keys of a `jsonl` row (readers/jsonl.py),
and `read_files` does the rest. A bad row is left out and counted, never
repaired and never an error.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.example import VQAExample
from data.images import ImageSource
from data.readers.common import BadRow, NoFiles, Rows, images_under, labelled, require
from data.readers.parquet import ParquetImage

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
# Rows left out that are no fault of the data: --strict lets them pass.
NOT_ENGLISH, HELD_OUT = "question is not in English", "image or patient is also held out"
BY_DESIGN = (NOT_ENGLISH, HELD_OUT)
UNLABELLED = "OTHER"  # the modality of rows that name none
NOT_NUMBERS = (float("inf"), float("-inf"))  # nor is NaN, which is not equal to itself
LONGEST_NAME = 60  # of a modality: files are named after it
YES_NO = ("yes", "no")
TEXTS = ("question_type", "reasoning", "dataset", "patient")  # fields of a row taken as they are
Split = Literal["train", "val", "test"]
_SPLITS: dict[str, Split | None] = {
    "": None, "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Skipped:
    """One thing left out: why, in which file (under the data folder), and which row or question."""

    reason: str
    file: str
    row: str


class Listing(NamedTuple):
    """A whole data set, no image opened. `root` is the folder its image paths start from.

    `splits`: by id, the split of each question whose data set comes split.
    """

    root: Path
    examples: tuple[VQAExample, ...]
    skipped: tuple[Skipped, ...]
    splits: Mapping[str, Split]


def summary(skipped: Iterable[Skipped]) -> str:
    """One line that counts what was left out by reason, the most frequent first.

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
    """Text in lower case, single-spaced, without punctuation at its end, to compare answers.

    >>> fold("  No. ") == fold("no")
    True
    """
    return " ".join(text.split()).rstrip(" .,;:").casefold()


def read_files(
    path: Path,
    files: Sequence[Path],
    rows_of: Callable[[Path], Rows],
    to_row: Callable[[dict[str, Any], Path], dict[str, Any]],
    image_folders: Iterable[str] | None = None,
) -> Listing:
    """Every row of `files` as an example or as a `Skipped`.

    `path` is the folder that image paths start from, or a file in that folder. Raises `NoFiles` if
    there are no files.

    `rows_of` gives (number, row) of one file and may raise or hand over a `BadRow`; `to_row` puts a
    row of the data set, from the file it is given, into the common form. `image_folders`: of a
    data set whose rows name one image each, without its folder: where images lie, see images_under.
    Directories are listed once and no image is opened or stat-ed, so 90,000 rows take seconds.
    """
    if not files:
        raise NoFiles
    # image keys must not depend on the working directory
    root = Path(os.path.abspath(path.parent if path.is_file() else path))
    image_at = images_under(str(root), image_folders)
    examples: dict[str, VQAExample] = {}  # by id
    skipped: list[Skipped] = []
    splits: dict[str, Split] = {}
    for file in files:
        name, refused = os.path.relpath(os.path.abspath(file), root), set()
        for number, raw in _until_broken(rows_of, file):
            row_id = str(number)
            try:
                if isinstance(raw, BadRow):
                    raise raw
                require(isinstance(raw, dict), "row is not an object")
                row = to_row(raw, file)
                if image_folders is not None:
                    row["image"] = [row.get("image")]
                row_id = _text(row.get("id")) or _text(f"{file.stem}#{number}")
                while row_id in examples:  # ids key the splits and the draws
                    row_id += f"#{number}"
                split = _split(row.get("split"))
                examples[row_id] = _example(row_id, row, image_at)
                if split:
                    splits[row_id] = split
            except BadRow as bad:
                if row_id in refused:  # two rows of one id are two
                    row_id += f"#{number}"
                refused.add(row_id)
                skipped.append(Skipped(str(bad), name, row_id))
    return Listing(root, tuple(examples.values()), tuple(skipped), splits)


def _until_broken(rows_of: Callable[[Path], Rows], file: Path) -> Rows:
    """The rows of a file; a file that fails as a whole ends with one nameless bad row."""
    try:
        yield from rows_of(file)
    except BadRow as bad:
        yield "", BadRow(f"{bad}, with the rest of its file")


def _example(id: str, row: dict[str, Any], image_at: Callable[[Any], ImageSource]) -> VQAExample:
    """A row in the common form, checked. Raises `BadRow`."""
    question = _text(row.get("question"))
    require(question, "question is blank")
    answer_type = _text(row.get("answer_type")).lower()
    answer = _answer(row.get("options"), row.get("answer"), _text(row.get("label")), answer_type)
    modality = modality_name(_text(row.get("modality")) or UNLABELLED)
    require(0 < len(modality) <= LONGEST_NAME, "modality is unknown")
    images, findings = _listed(row.get("image")), row.get("findings")
    return VQAExample(
        id=id,
        question=question,
        **answer,
        images=tuple(i if isinstance(i, ParquetImage) else image_at(i) for i in images),
        modality=modality,
        **{name: _text(row.get(name)) for name in TEXTS},
        findings=None if findings is None else _texts(findings),
        answer_type=answer_type,
        extra=row.get("extra", {}),
    )


def _answer(options: Any, answer: Any, label: str, answer_type: str) -> dict[str, Any]:
    """`options`, `gold` and `references` of a row.

    Without options an answer is wanted in words, but for yes and no: they are put as options,
    unless the data set itself calls the question open. With options, `answer` is the text of the
    right one and `label` its letter, counted among the options as the row lists them. If a row has
    both, they must not name two options. A label equal to `answer` may be a text only.
    """
    if options is None:
        references = _texts(answer)
        require(references, "answer is blank")
        folded = fold(references[0])
        if len(references) == 1 and folded in YES_NO and answer_type != "open":
            return {"options": YES_NO, "gold": YES_NO.index(folded), "references": ()}
        return {"options": (), "gold": 0, "references": references}
    require(isinstance(options, list), "options are not a list")
    texts = list(map(_text, options))
    options = tuple(filter(None, texts))
    require(2 <= len(options) <= 26, "not 2 to 26 options")
    names = [fold(text) for text in options]
    require(len(set(names)) == len(names), "two options are equal")
    text, right = _text(answer), labelled(fold(label), list(map(fold, texts)))
    require(right or label in ("", text), "answer is none of the options")
    require(fold(text) not in names or right in ("", fold(text)), "letter and answer disagree")
    right = right or fold(text)
    require(right in names, "answer is none of the options")
    return {"options": options, "gold": names.index(right), "references": ()}


def _split(value: Any) -> Split | None:
    """The split that a row names, None if it names none."""
    name = _text(value).lower()
    require(name in _SPLITS, "split is not train, val or test")
    return _SPLITS[name]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _texts(value: Any) -> tuple[str, ...]:
    """One text or a list of them, without blanks and repetitions."""
    by_name: dict[str, str] = {}
    for text in map(_text, _listed(value)):
        by_name.setdefault(fold(text), text)
    return tuple(text for name, text in by_name.items() if name)


def _text(value: Any) -> str:
    """A JSON scalar as one line of valid Unicode; null is blank."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or value in NOT_NUMBERS or value != value:
        raise BadRow("a text field is not text")
    return " ".join(str(value).split()).encode("utf-8", "replace").decode()
