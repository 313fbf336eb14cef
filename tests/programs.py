"""The programs that tests start: default signals, and a time limit on every wait.

`Program` runs any command. `run` runs train.py or evaluate.py as a user does, in a process that is
forked from one with all imports made: the imports take ten times as long as a short run.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300.0  # seconds that a test waits for anything a program does
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train", "evaluate"])

# A process inherits the signals that its parent ignores: SIGINT, where pytest is a background job.
# Programs start through these lines of Python and not with a preexec_fn, because Python that runs
# between fork and exec may hang where the tests have threads.
DEFAULT_SIGNALS = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""

running: list["Program"] = []  # all that were started and not ended


class Program(subprocess.Popen):
    """A running command, the leader of a process group of its own, with default signals."""

    def __init__(
        self,
        *words: str,
        where: Path = ROOT,
        settings: Mapping[str, str] | None = None,
        **pipes: Any,
    ) -> None:
        """Start `words` in the folder `where`, with more environment variables (`settings`).

        `pipes` are further arguments of Popen.
        """
        self.words = words
        # Files, because a program waits where a pipe is full; they are open as long as it is known.
        out, err = self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        super().__init__(
            [sys.executable, "-ISc", DEFAULT_SIGNALS, *words],
            cwd=where,
            env={**os.environ, **(settings or {})},
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, **pipes},
        )
        running.append(self)

    @property
    def out(self) -> str:
        """What the program has written to stdout so far."""
        return _text(self.files[0])

    @property
    def err(self) -> str:
        """What the program has written to stderr so far."""
        return _text(self.files[1])

    def wait_for(self, condition: Callable[[], bool], limit: float = LIMIT) -> None:
        """Wait until `condition()`. Fails if the program ends first, or after `limit` seconds."""
        last = time.monotonic() + limit
        while True:
            ended = self.poll() is not None
            if condition():
                return
            if ended or time.monotonic() > last:
                self.end()
                what = f"ended with {self.returncode}" if ended else f"did not do so in {limit} s"
                pytest.fail(f"{self.words} {what}, and wrote:\n{self.err[-3000:]}")
            time.sleep(0.001)

    def finish(self, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Wait for the program's end. Fails after `limit` seconds. Nothing is left running."""
        try:
            self.wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.words} did not end in {limit} s, and wrote:\n{self.err[-3000:]}")
        finally:
            self.end()
        return subprocess.CompletedProcess(self.words, self.returncode, self.out, self.err)

    def end(self) -> None:
        """Kill the program, if it still runs, and every process that it has started."""
        if self.poll() is None:
            kill_all(self.pid)
            self.wait(LIMIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what a program left that ended by itself
        if self in running:
            running.remove(self)


def _text(file: BinaryIO) -> str:
    """A file's text. pread: the program writes where the file's position is, which must stay."""
    size = os.fstat(file.fileno()).st_size
    text = os.pread(file.fileno(), size, 0).decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def children(pid: int) -> list[int]:
    """The processes that a process has started, the oldest first."""
    words = ["pgrep", "-P", str(pid)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
    return [int(word) for word in found.stdout.split()]


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def kill_all(pid: int) -> None:
    """Kill a process, its descendants and their groups: torchrun gives each worker its own."""
    for one in [pid, *descendants(pid)]:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(one, signal.SIGKILL)


@atexit.register
def end_all(kept: Sequence[Program] = ()) -> None:
    """End all programs that run, but for those in `kept`."""
    for program in [program for program in running if program not in kept]:
        program.end()


def join(one: threading.Thread | BaseProcess, limit: float = LIMIT) -> None:
    """Wait for the end of a thread or a process. Fails after `limit` seconds."""
    one.join(limit)
    if one.is_alive():
        pytest.fail(f"{one.name} did not end in {limit} s")


def run(
    program: str, *flags: str, where: Path, limit: float = LIMIT
) -> subprocess.CompletedProcess[str]:
    """`python PROGRAM FLAGS` in the folder `where`, which also holds the user's cache.

    Fails if the program does not end in `limit` seconds.
    """
    with tempfile.TemporaryDirectory() as said, pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        environment = {**os.environ, "XDG_CACHE_HOME": str(where / "cache")}
        out, err = Path(said) / "out", Path(said) / "err"
        words = [str(ROOT / program), *flags]
        process = SERVER.Process(target=_run, args=(words, where, environment, out, err))
        process.start()
        try:
            join(process, limit)
        finally:
            if process.is_alive():
                kill_all(process.pid)
                process.join(LIMIT)
        texts = out.read_text("utf-8"), err.read_text("utf-8")
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _run(words: list[str], where: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python does when it starts
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
