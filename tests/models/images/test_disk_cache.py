"""The folder of image features: bounded, by last use, and safe with several runs at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models.images import disk_cache as feature_files
from models.images.disk_cache import FeatureFiles
from tests.programs import Program

GRID = (1, 4, 4)


def features(value: int) -> torch.Tensor:
    return torch.full((4, 64), float(value))


def write(files: FeatureFiles, *names: str, used: float | None = None) -> None:
    """Keep features under these names, `used` seconds ago."""
    for name in names:
        files.write(name, features(int(name, 16)), GRID)
        if used is not None and (file := place(files, name)).exists():
            os.utime(file, (time.time() - used,) * 2)


def place(files: FeatureFiles, name: str) -> Path:
    return files.folder / name[:2] / f"{name}.safetensors"


def names(files: FeatureFiles) -> set[str]:
    return {file.stem for file in files.folder.rglob("*") if file.is_file()}


@pytest.fixture
def size(tmp_path) -> int:
    """Bytes of one file."""
    files = FeatureFiles(tmp_path / "one", 4)
    write(files, "00")
    return place(files, "00").stat().st_size


@pytest.fixture
def files(tmp_path, size, monkeypatch) -> FeatureFiles:
    """A folder with room for three files that is looked at after every write."""
    monkeypatch.setattr(feature_files, "LIMIT", 3 * size + 1)
    monkeypatch.setattr(feature_files, "STRIDE", 1)
    return FeatureFiles(tmp_path / "vision", 4)


def test_the_least_recently_used_leave_first(files):
    write(files, "a1", used=30)
    write(files, "b2", used=20)
    write(files, "c3", used=10)
    kept, grid = files.read("a1")  # read: used now
    assert torch.equal(kept, features(0xA1))
    assert grid == GRID
    write(files, "d4")
    assert names(files) == {"a1", "c3", "d4"}
    assert files.read("b2") is None


def test_a_folder_is_within_its_limit_after_every_stride(tmp_path, size, monkeypatch):
    stride = 2 * features(0).nbytes
    monkeypatch.setattr(feature_files, "LIMIT", 6 * size)
    monkeypatch.setattr(feature_files, "STRIDE", stride)
    files, looks = FeatureFiles(tmp_path / "vision", 4), []
    monkeypatch.setattr(files, "_make_room", lambda: looks.append(FeatureFiles._make_room(files)))
    for name in range(16, 36):
        write(files, f"{name:x}")
        assert len(names(files)) <= 6
    assert len(looks) == 1 + 19 // 2  # at the first write, then once a stride


def test_what_another_run_left_over_the_limit_goes_at_the_first_write(files, monkeypatch):
    other = FeatureFiles(files.folder, 4)
    monkeypatch.setattr(other, "_make_room", lambda: None)
    write(other, *(f"{name:x}" for name in range(16, 40)), used=60)
    assert len(names(files)) == 24
    write(files, "ff")
    assert len(names(files)) == 3
    assert "ff" in names(files)


def test_a_file_that_vanishes_is_computed_again(files, monkeypatch):
    write(files, "a1")
    place(files, "a1").unlink()
    assert files.read("a1") is None
    monkeypatch.setattr(Path, "exists", lambda _: True)  # it was there a moment ago
    assert files.read("a1") is None


def test_files_that_vanish_while_room_is_made_disturb_nothing(files, monkeypatch):
    write(files, "a1", "b2", "c3", used=10)
    before = list(files.folder.glob("??/*"))
    for name in ("a1", "b2"):
        place(files, name).unlink()
    monkeypatch.setattr(Path, "glob", lambda self, pattern: before)  # listed a moment ago
    write(files, "d4")
    assert names(files) == {"c3", "d4"}
    unlink = Path.unlink

    def late(self, missing_ok=False):
        unlink(self)  # another run removes it first
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", late)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [place(files, "c3")])
    monkeypatch.setattr(feature_files, "LIMIT", 1)
    files._make_room()
    assert names(files) == {"d4"}


def test_what_a_killed_run_left_half_written_goes_when_it_is_old(files):
    write(files, "a1")
    old, new = (files.folder / "a1" / name for name in ("old.tmp", "new.tmp"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - feature_files.LEFTOVER - 60,) * 2)
    write(files, "b2")
    assert not old.exists()
    assert new.exists()  # perhaps another run is writing it


def test_a_full_folder_loses_features_only(files, size):
    """A file that another run is writing stays, and so does one that is not ours."""
    write(files, "a1", used=30)
    live, foreign = (files.folder / "a1" / name for name in ("live.tmp", "notes.txt"))
    for file, age in ((live, 1800), (foreign, 10**6)):
        file.write_bytes(b"half" * size)
        os.utime(file, (time.time() - age,) * 2)
    for name in ("b2", "c3", "d4"):
        write(files, name)
    assert live.exists()
    assert foreign.exists()
    assert files.read("a1") is None


TWO = """
import sys
from pathlib import Path
import torch
from models.images import disk_cache as feature_files
feature_files.LIMIT, feature_files.STRIDE = 20_000, 2_000
files = feature_files.FeatureFiles(Path(sys.argv[1]), 4)
print("ready", flush=True)
sys.stdin.readline()
for i in range(300):
    name = f"{i * 7 % 40:02x}"
    kept = files.read(name)
    if kept is None:
        files.write(name, torch.full((4, 64), float(int(name, 16))), (1, 4, 4))
    else:
        assert kept[0].eq(int(name, 16)).all() and kept[1] == (1, 4, 4)
"""


@pytest.mark.slow
def test_two_runs_write_and_evict_in_one_folder_at_once(tmp_path):
    words = [sys.executable, "-c", TWO, str(tmp_path)]
    runs = [Program(*words, stdin=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        run.wait_for(lambda run=run: run.out == "ready\n")
    for run in runs:
        run.stdin.close()  # the line that it reads is empty
    for run in runs:
        done = run.finish()
        assert (done.returncode, done.stderr) == (0, "")
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in left} == {".safetensors"}
    assert sum(file.stat().st_size for file in left) <= 20_000 + 2 * 2_000
