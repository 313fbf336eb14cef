"""What no hostile input may cause, found by Python's audit events; and a time limit.

Unpickling, starting a program, and writing outside the test's own folder are noted, in our code as
in Pillow, torch and transformers.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn"}

# Only so that a broken case ends; a sound one takes hundredths of a second.
WORK = 60  # seconds of this process's own time: quadratic work takes longer
PATIENCE = 1200  # seconds of the clock: waiting on a pipe takes longer

noted: list[str] = []  # the events of the test that runs
_own: tuple[str, ...] = ()  # where it may write; nothing is noted if this is empty


def limit_time() -> None:
    """Raise TimeoutError in this thread after WORK or PATIENCE seconds from now."""
    signal.signal(signal.SIGPROF, _end)
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_PROF, WORK)
    signal.alarm(PATIENCE)


def end_limit() -> None:
    """Take the time limit back."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)


def _end(*_: object) -> None:
    raise TimeoutError("this input takes time without end")


def watch(own: Path | None) -> None:
    """Note events from now on; with None, stop. An audit hook cannot be removed."""
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
