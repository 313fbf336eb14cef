"""Helpers of all readers: read text, JSON and CSV files, and find the images that rows name."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from data.images import ImageFile

IMAGE_DEPTH = 3  # folders below the data folder in which `images_under` looks
Rows = Iterator[tuple[int | str, Any]]  # number of a row in its file, and the row or a `BadRow`
# A letter as data sets write it, after `fold`: "b", "(b)", "b)", "option b", "b: left".
LABEL = re.compile(r"(?:(?:option|choice|answer)[ :]*)?\(?([a-z])(?:[).:]+ ?(.*))?")
NOT_UTF_8 = "line is not UTF-8"
ENDINGS = ("", ".jpg", ".png", ".jpeg")  # of images that are named without one


class NoFiles(Exception):
    """A data set has no files at the place where it was looked for."""


class BadRow(Exception):
    """One row cannot be used. The message names no detail, so equal faults are counted."""


def require(holds: Any, problem: str) -> None:
    """Raises `BadRow` with the problem of a row where a condition does not hold."""
    if not holds:
        raise BadRow(problem)


def read_text(file: Path, errors: str = "strict") -> str:
    """The text of a file; one that is not readable UTF-8 is a `BadRow`.

    With `errors` "surrogateescape", `is_text` tells the lines that are not.
    """
    try:
        return file.read_text(encoding="utf-8-sig", errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRow(f"file cannot be read ({type(error).__name__})") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text; anything else, absurd nesting included, is a `BadRow`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("broken JSON") from None


def json_list(file: Path) -> Rows:
    """(index, row) of a file that holds one JSON list."""
    rows = parse_json(read_text(file))
    require(isinstance(rows, list), "file is not a JSON list")
    return enumerate(rows)


def json_files(path: Path, name: str) -> list[Path]:
    """The file `path`, or of a folder the file of that name if there, else every JSON file."""
    one = path if path.is_file() else path / name
    return [one] if one.is_file() else visible(path.glob("*.json"))


def text_lines(file: Path) -> Rows:
    """(line number from 1, {"line": its text}) of a text file; blank lines are nothing."""
    for number, line in enumerate(read_text(file, "surrogateescape").split("\n"), start=1):
        if line.strip():
            yield number, {"line": line} if is_text(line) else BadRow(NOT_UTF_8)


def is_text(line: str) -> bool:
    """Whether a line of a file was UTF-8, see `read_text`."""
    return not re.search("[\udc80-\udcff]", line)


def csv_rows(file: Path) -> Rows:
    """(line number from 1, row by column) of a CSV file whose first line names the columns.

    A quotation mark that opens a cell by mistake costs its own line only: it is one if its line and
    another line of its row have all columns by themselves.
    """
    lines = list(io.StringIO(read_text(file, "surrogateescape"), newline=""))
    names, at = _record(lines)
    require(names and at == 1, "broken CSV")
    while at < len(lines):
        cells, length = _record(map(lines.__getitem__, range(at, len(lines))))
        others = [len(_record([line])[0]) for line in lines[at + 1 : at + length]]
        swallows = lines[at].count(",") >= len(names) - 1 and len(names) in others
        if swallows or (not cells and lines[at].strip()):
            length = 1
            yield at + 1, BadRow("broken CSV")
        elif not all(map(is_text, cells)):
            yield at + length, BadRow(NOT_UTF_8)
        elif cells:
            row = zip(names, cells + [""] * len(names), strict=False)
            yield at + length, {name.strip(): cell for name, cell in row}
        at += length


def _record(lines: Iterable[str]) -> tuple[list[str], int]:
    """The cells of the first row of a CSV file, and how many lines it takes; no cells if broken."""
    rows = csv.reader(lines)
    try:
        return next(rows, []), rows.line_num
    except csv.Error:
        return [], 1


def split_named(name: str) -> str:
    """The split that a file or folder is named after; "" for none.

    >>> [split_named(n) for n in ("train_2.csv", "C1_Modality_val.txt", "VQAMed_Test.txt", "a")]
    ['train', 'val', 'test', '']
    """
    found = re.search(r"(?<![a-z])(train|val|test)", name.lower())
    return found[1] if found else ""


def fields(row: dict[str, Any], *names: str, **renamed: str) -> dict[str, Any]:
    """The named fields of a row, some under new names; None for one that the row lacks.

    >>> fields({"question": "Which?", "qid": 7}, "question", "answer", id="qid")
    {'question': 'Which?', 'answer': None, 'id': 7}
    """
    return {new: row.get(old) for new, old in ({n: n for n in names} | renamed).items()}


def labelled(label: str, names: Sequence[str]) -> str:
    """The option that a label means; "" if it means none. All are folded (data/rows.py: fold).

    Raises `BadRow` if the options have letters of their own, in another order.

    >>> [labelled(label, ["left", "right"]) for label in ("b", "(a)", "b: right", "b: left", "c")]
    ['right', 'left', 'right', '', '']
    """
    found = LABEL.fullmatch(label)
    place = ascii_lowercase.index(found[1]) if found else len(names)
    if place >= len(names):
        return ""
    own = [match[1] for match in map(LABEL.fullmatch, names) if match and match[2]]
    require(len(own) < len(names) or own[place] == found[1], "letter and answer disagree")
    return names[place] if found[2] in (None, "", names[place]) else ""


def visible(files: Iterable[Path]) -> list[Path]:
    """Files in order, without the "._name" that a zip packed on a Mac leaves beside every one."""
    return sorted(file for file in files if file.name[0] != "." and file.is_file())


def links_out(folder: str, root: str) -> dict[str, bool]:
    """The names of what lies in a folder, and whether each is or lies behind a link out of `root`;
    none where it cannot be listed.

    Only links are looked into, so that a folder of 10,000 images costs one listing.
    """

    def leaves(path: str) -> bool:
        return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))

    try:
        outside = leaves(folder)
        with os.scandir(folder) as entries:
            return {e.name: outside or (e.is_symlink() and leaves(e.path)) for e in entries}
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the path
        return {}


def images_under(root: str, first: Iterable[str] | None) -> Callable[[Any], ImageFile]:
    """`image_at(path)`: the image at a path under `root`, each of whose folders is listed once.

    Where folders `first` are given, a path may also start in one of them, or in any other folder:
    the archives of a data set unpack into folders that no row names.
    """
    listed = cache(links_out)
    places = {} if first is None else _places(root, first)

    def image_at(path: Any) -> ImageFile:
        require(isinstance(path, str) and path, "image path is blank")
        # "xmlab1/source.jpg" lies wherever xmlab1 does
        head, *rest = path.strip().split("/")
        known = next((head + end for end in ENDINGS if head + end in places), head)
        path = "/".join([places.get(known, head), *rest])
        full = os.path.normpath(os.path.join(root, path))
        require(full.startswith(root + os.sep), "image path leaves the data folder")
        folder, name = os.path.split(full)
        leaves = listed(folder, root)
        require(name in leaves, "image is missing")
        require(not leaves[name], "image is a link that leaves the data folder")  # as ".." would
        return ImageFile(Path(full))

    return image_at


def _places(root: str, first: Iterable[str]) -> dict[str, str]:
    """Name -> path from `root` of the first file or folder of that name.

    `root` comes first, then the folders `first`, then the others, by depth and name. Each is listed
    once, none opened.
    """
    folders = [Path(root), *(Path(root, name) for name in first)]
    for pattern in ("*/" * depth for depth in range(1, IMAGE_DEPTH + 1)):
        folders += sorted(path for path in Path(root).glob(pattern) if path.name[0] != ".")
    places: dict[str, str] = {}
    for folder in dict.fromkeys(folders):
        inside = os.path.relpath(folder, root)
        for name in sorted(links_out(str(folder), root)):
            places.setdefault(name, os.path.normpath(os.path.join(inside, name)))
    return places
