"""Files and folders that are there whole or not at all, whatever ends the program."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # of all other files of a folder, as sha256sum -c reads it


def write_folder(place: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder of what `fill(folder)` writes into an empty one, and its SHA256SUMS.

    It is written under another name beside `place`, synced to the disk, and then renamed. Of a
    failure nothing is left.
    """
    part = place.with_name(f".{place.name}.part")
    sweep(place.parent)
    try:
        part.mkdir(parents=True)
        fill(part)
        (part / SUMS).write_text(_sums(part), encoding="utf-8")
        for path in (*part.rglob("*"), part):
            sync(path)
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(place.parent)


def check_folder(folder: Path) -> None:
    """Raise ValueError where a byte is not what it was, or a file is missing or too many."""
    written = (folder / SUMS).read_text(encoding="utf-8")
    if odd := {*_sums(folder).splitlines()} ^ {*written.splitlines()}:
        raise ValueError(f"{min(line[66:] for line in odd)} is not what {SUMS} says")


def remove_folder(folder: Path) -> None:
    """Take a folder away; half of one is never seen under its name."""
    aside = folder.with_name(f".{folder.name}.old")
    folder.rename(aside)
    shutil.rmtree(aside)


def sweep(parent: Path) -> None:
    """Take away what a kill left of folders that were being written or removed."""
    for rest in (*parent.glob(".*.part"), *parent.glob(".*.old")):
        shutil.rmtree(rest)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sums(folder: Path) -> str:
    """The lines of SHA256SUMS for all other files of a folder."""
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it: a kill leaves no half of it."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
