"""Programs as a user runs them, each in a process of its own, forked from one that has the imports:
they take ten times as long as a short run."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train", "evaluate"])


def run(program: str, *flags: str, where: Path) -> subprocess.CompletedProcess[str]:
    """`python PROGRAM FLAGS` in the folder `where`, which also holds the user's cache."""
    with tempfile.TemporaryDirectory() as said, pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        environment = {**os.environ, "XDG_CACHE_HOME": str(where / "cache")}
        out, err = Path(said) / "out", Path(said) / "err"
        words = [str(ROOT / program), *flags]
        process = SERVER.Process(target=_run, args=(words, where, environment, out, err))
        process.start()
        process.join()
        texts = out.read_text("utf-8"), err.read_text("utf-8")
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _run(words: list[str], where: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
