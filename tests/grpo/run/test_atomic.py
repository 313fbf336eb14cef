"""Folders that exist whole or not at all, and the checksums that say so."""

import os
from pathlib import Path

import pytest

from grpo.run.atomic import SUMS, check_folder, remove_folder, sweep, write_folder, write_whole


def fill(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_bytes(b"\x00\x01")
    (folder / "state.json").write_text("{}")


def test_a_folder_has_the_sums_of_its_files_and_passes_the_check(tmp_path: Path) -> None:
    write_folder(tmp_path / "step-1", fill)
    lines = (tmp_path / "step-1" / SUMS).read_text().splitlines()
    assert [line[64:] for line in lines] == ["  adapter/weights", "  state.json"]
    check_folder(tmp_path / "step-1")


def test_a_changed_a_missing_and_a_new_file_are_named(tmp_path: Path) -> None:
    changes = {
        "adapter/weights": lambda folder: (folder / "adapter/weights").write_bytes(b"\x00"),
        "state.json": lambda folder: (folder / "state.json").unlink(),
        "extra": lambda folder: (folder / "extra").write_text(""),
    }
    for i, (name, change) in enumerate(changes.items()):
        folder = tmp_path / str(i)
        write_folder(folder, fill)
        change(folder)
        with pytest.raises(ValueError, match=f"{name} is not what {SUMS} says"):
            check_folder(folder)


def test_a_failure_leaves_nothing_and_a_killed_programs_rest_is_swept(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_folder(tmp_path / "step-1", fails)
    assert list(tmp_path.iterdir()) == []
    for name in (".step-2.part", ".step-1.old"):
        (tmp_path / name / "inside").mkdir(parents=True)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    write_folder(tmp_path / "step-1", fill)
    remove_folder(tmp_path / "step-1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_and_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    file.write_bytes(b"before")
    reading = file.open("rb")  # a reader sees the old file to its end
    write_whole(file, b"after, and longer")
    assert (reading.read(), file.read_bytes()) == (b"before", b"after, and longer")
    link.symlink_to(file)
    write_whole(link, b"by the link")
    assert link.is_symlink()
    assert file.read_bytes() == b"by the link"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"through the pipe")
    assert os.read(end, 100) == b"through the pipe"
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "pipe"}
    for folder in (tmp_path, Path("")):  # an empty name is the current folder
        with pytest.raises(IsADirectoryError):
            write_whole(folder, b"")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "pipe"}
