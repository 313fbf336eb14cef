"""What no hostile input may bring about, seen by Python itself: its audit events.

Unpickling, starting a program, and writing anywhere but in a test's own folder are noted, whoever
does it: our code, Pillow, torch or transformers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn"}

noted: list[str] = []  # of the test that runs
_own: tuple[str, ...] = ()  # where it may write; nothing is noted where there is no such place


def watch(own: Path | None) -> None:
    """Note events from now on, or no more (None). There is no way to take an audit hook back."""
    global _own
    _own = (f"{own.resolve()}{os.sep}", "/dev/null") if own else ()
    noted.clear()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _own:
        return
    if event == "pickle.find_class" or event in STARTS:
        noted.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (mode and set(mode) & set("wax+")):
            _note_outside(event, path)
    elif event in WRITES:
        _note_outside(event, arguments[event in ("os.symlink", "os.rename")])


def _note_outside(event: str, path: Any) -> None:
    if isinstance(path, str | bytes | os.PathLike):
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith(_own) and "__pycache__" not in place:
            noted.append(f"{event} {place}")


sys.addaudithook(_hook)
