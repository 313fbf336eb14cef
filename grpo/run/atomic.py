"""Files and folders that exist whole or not at all, even if the program stops midway."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # the checksums of all other files of a folder, as sha256sum -c reads them


def write_folder(place: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `place` of what `fill(folder)` writes into an empty one, and its SHA256SUMS.

    The folder is written under another name beside `place`, synced to the disk and then renamed.
    If anything fails, nothing is left of it.
    """
    part = place.with_name(f".{place.name}.part")
    try:
        part.mkdir(parents=True)
        fill(part)
        (part / SUMS).write_text("\n".join([*_sums(part), ""]), encoding="utf-8")
        for path in (*part.rglob("*"), part):
            sync(path)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # not there any more if nothing failed
    sync(place.parent)


def check_folder(folder: Path) -> None:
    """Raise ValueError if a byte has changed, or a file is missing or new."""
    written = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    if different := {*_sums(folder)} ^ {*written}:
        raise ValueError(f"{min(line[66:] for line in different)} is not what {SUMS} says")


def remove_folder(folder: Path) -> None:
    """Delete a folder; a part of it never remains under its name."""
    aside = folder.with_name(f".{folder.name}.old")
    folder.rename(aside)
    shutil.rmtree(aside)


def sweep(parent: Path) -> None:
    """Delete what a killed program left of folders that it was writing or deleting."""
    for rest in (*parent.glob(".*.part"), *parent.glob(".*.old")):
        shutil.rmtree(rest)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sums(folder: Path) -> list[str]:
    """Return the lines of SHA256SUMS for all other files of a folder, by path."""
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        lines.append(f"{digest}  {file.relative_to(folder).as_posix()}")
    return lines


def write_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    write_whole(Path(path), (json.dumps(record, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it, so that a kill leaves no half of it and two
    writers do not mix. A pipe, a link or /dev/stdout stays what it is."""
    part = path
    if not path.is_symlink() and (path.is_file() or not path.exists()):
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
