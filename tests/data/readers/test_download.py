"""Data sets fetched from a hub of one's own, through huggingface_hub itself."""

import hashlib
import json
import shutil
import stat
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.load import read
from data.readers import download
from data.readers.huatuo import HUB_NAME
from grpo.settings.errors import UsageError
from tests.data.hub import COMMIT, zipped
from tests.programs import Program, join


def packed(folder: Path, inside: str = "") -> bytes:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return zipped({inside + str(f.relative_to(folder)): f.read_bytes() for f in files})


def refused(name: str) -> str:
    with pytest.raises(UsageError) as error:
        read(name)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--data {name}: ")
    assert str(error.value).endswith(f"--data {name}:FOLDER")
    return str(error.value)


def test_omnimedvqa_is_fetched_once_and_then_read_like_a_folder(
    omni: Any, place: Path, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    omni.write([omni.row(i) for i in range(5)])
    archive = packed(omni.root, "OmniMedVQA/")
    hub = serve("omnimedvqa", {"OmniMedVQA.zip": archive}, revision=COMMIT)
    fetched, local = read("omnimedvqa"), read(omni.spec)
    assert fetched.root == place / "omnimedvqa" / "OmniMedVQA"
    assert [e.id for e in fetched.examples] == [e.id for e in local.examples]
    assert fetched.examples[3].images[0].open().getpixel((0, 0)) == (3, 0, 0)
    said = capsys.readouterr().err.splitlines()[0]
    assert f"OmniMedVQA.zip ({len(archive) / 1e6:.1f} MB)" in said
    assert f"foreverbeliever/OmniMedVQA at commit {COMMIT}" in said

    hub.stop()
    read.cache_clear()
    assert read("omnimedvqa").examples == fetched.examples
    assert sorted(path.name for path in place.iterdir()) == ["omnimedvqa", "omnimedvqa.lock"]


def test_huatuo_takes_the_newest_commit_and_writes_it_down(
    place: Path, serve: Any, picture: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    rows = [{"image": ["images/a.png"], "question": "Which?", "options": ["x", "y"],
             "answer": "y", "dataset": "OmniMedVQA", "subset": "X-Ray"}]  # fmt: skip
    image = picture(tmp_path / "a.png", 9).read_bytes()
    questions = json.dumps(rows).encode()
    serve("huatuo", {HUB_NAME: questions, "images.zip": zipped({"images/a.png": image})})
    (example,) = read("huatuo").examples
    assert (example.letter, example.images[0].open().getpixel((0, 0))) == ("B", (9, 0, 0))
    record = json.loads((place / "huatuo" / download.RECORD).read_text())
    assert f"{record['repo']}@main" == download.HUB["huatuo"].repo
    assert record["commit"] == COMMIT
    known = {"bytes": len(questions), "sha256": hashlib.sha256(questions).hexdigest()}
    assert record["files"][HUB_NAME] == known


def test_files_other_than_those_known_are_refused(place: Path, serve: Any) -> None:
    serve("huatuo", {HUB_NAME: b"[]", "images.zip": zipped({})}, **{HUB_NAME: "0" * 64})
    digest = hashlib.sha256(b"[]").hexdigest()
    assert f"{HUB_NAME} at commit {COMMIT} has sha256 {digest}, not {'0' * 64}" in refused("huatuo")
    assert not (place / "huatuo").exists()


def test_what_is_half_fetched_goes_on_where_it_stopped(omni: Any, place: Path, serve: Any) -> None:
    omni.write([omni.row(i) for i in range(40)])
    archive = packed(omni.root)
    assert len(archive) > 5000
    hub = serve("omnimedvqa", {"OmniMedVQA.zip": archive})
    hub.fails_after = len(archive) // 2
    assert "run again to go on" in refused("omnimedvqa")
    assert not (place / "omnimedvqa").exists()
    hub.fails_after = 10**12
    assert len(read("omnimedvqa").examples) == 40
    starts = [span.split("-")[0] for path, span in hub.asked if span]
    twice = {start for start in starts if starts.count(start) > 1}
    assert len(twice) == 1  # the one that failed
    assert len(starts) == -(-len(archive) // 1000) + 1


SYMLINK = zipfile.ZipInfo("Images/link")
SYMLINK.external_attr = (stat.S_IFLNK | 0o777) << 16
NAMES = ["../x", "/x", "a/../../x", "..\\x", "C:\\x", "C:x", "\\\\server\\x", SYMLINK]


@pytest.mark.parametrize("name", NAMES, ids=[getattr(n, "filename", n) for n in NAMES])
def test_an_archive_that_leads_out_of_its_folder_is_not_unpacked(
    place: Path, serve: Any, name: Any
) -> None:
    serve("omnimedvqa", {"OmniMedVQA.zip": zipped({"Images/a.png": b"x", name: b"/etc/passwd"})})
    assert "leads out of its folder: it was not unpacked" in refused("omnimedvqa")
    assert [path.name for path in place.iterdir()] == ["omnimedvqa.lock"]
    assert [path.name for path in place.parent.iterdir()] == ["data"]


def claiming(size: int) -> bytes:
    """A zip of a few bytes whose only member claims to be of this size."""
    archive = bytearray(zipped({"Images/a.png": b"x"}))
    entry = archive.index(b"PK\x01\x02")  # of the central directory
    archive[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    return bytes(archive)


def test_a_bomb_is_not_unpacked(place: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("omnimedvqa", {"OmniMedVQA.zip": claiming(2**32 - 2)})
    assert "holds 1 files of 4.3 GB, too much to be images" in refused("omnimedvqa")
    monkeypatch.setattr(download, "MAX_FILES", 3)
    serve("omnimedvqa", {"OmniMedVQA.zip": zipped({str(i): b"" for i in range(4)})})
    assert "holds 4 files" in refused("omnimedvqa")
    assert [path.name for path in place.iterdir()] == ["omnimedvqa.lock"]


def test_a_damaged_archive_is_thrown_away_and_leaves_nothing_half_unpacked(
    omni: Any, place: Path, serve: Any
) -> None:
    omni.write([omni.row(i) for i in range(9)])
    whole = packed(omni.root)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255  # inside some member
    for archive in (whole[:-30], bytes(broken), claiming(0)):
        serve("omnimedvqa", {"OmniMedVQA.zip": archive})
        assert "OmniMedVQA.zip is damaged" in refused("omnimedvqa")
        assert [path.name for path in place.iterdir()] == ["omnimedvqa.lock"]
    serve("omnimedvqa", {"OmniMedVQA.zip": whole})
    assert len(read("omnimedvqa").examples) == 9


def test_a_half_unpacked_folder_is_never_taken_for_a_whole_one(
    omni: Any, place: Path, serve: Any
) -> None:
    omni.write([omni.row(1)])
    serve("omnimedvqa", {"OmniMedVQA.zip": packed(omni.root)})
    for part in ("omnimedvqa.unpacked", "omnimedvqa"):
        shutil.copytree(omni.root, place / part)  # as if killed there
    assert f"{place / 'omnimedvqa'} is not of this program's making" in refused("omnimedvqa")
    assert (place / "omnimedvqa" / "Images").is_dir()
    shutil.rmtree(place / "omnimedvqa")
    (place / "omnimedvqa.unpacked" / "stray").touch()
    assert read("omnimedvqa").root == place / "omnimedvqa"
    assert not list(place.rglob("stray"))


def test_two_processes_fetch_only_once(omni: Any, place: Path, serve: Any) -> None:
    omni.write([omni.row(1)])
    hub = serve("omnimedvqa", {"OmniMedVQA.zip": packed(omni.root)})
    fetch = {"target": download.fetch, "args": ["omnimedvqa"], "daemon": True}
    fetches = [threading.Thread(**fetch) for _ in range(2)]
    for step in (threading.Thread.start, join):
        for fetch in fetches:
            step(fetch)
    assert [span for _, span in hub.asked].count("bytes=0-999") == 1


def test_a_disk_too_small_is_named_before_anything_is_fetched(
    place: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve("omnimedvqa", {"OmniMedVQA.zip": b"x" * 3_000_000})
    free = shutil._ntuple_diskusage(10**9, 10**9, 5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert f"needs 6.0 MB in {place}, which has 5.0 MB: make room" in refused("omnimedvqa")
    assert not any(span for _, span in hub.asked)


def test_without_a_network_one_line_says_what_to_put_where(serve: Any) -> None:
    serve("huatuo", {HUB_NAME: b"[]", "images.zip": b""}).stop()
    line = refused("huatuo")
    assert "could not be fetched (ConnectError" in line
    repo = "https://huggingface.co/datasets/FreedomIntelligence/Medical_Multimodal_Evaluation_Data"
    assert f"put {HUB_NAME} and images.zip of {repo} in a FOLDER, unpack the zip there" in line


@pytest.mark.slow
def test_offline_mode_is_obeyed_in_a_real_process(place: Path) -> None:
    code = (
        "from data.load import read\nfrom grpo.settings.errors import exit_on_usage_error\n"
        "with exit_on_usage_error('train.py'): read('omnimedvqa')"
    )
    done = Program(sys.executable, "-c", code, settings={"HF_HUB_OFFLINE": "1"}).finish()
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: --data omnimedvqa: could not be fetched (Offline")
    assert done.stderr.count("\n") == 1


def test_what_is_pinned_is_a_commit_or_a_content() -> None:
    for name, source in download.HUB.items():
        assert [file.endswith(".zip") for file in source.files].count(True) <= 1
        assert {len(bytes.fromhex(digest)) for digest in source.files.values()} <= {0, 32}
        revision = source.repo.partition("@")[2]
        if revision == "main":
            assert name == "medvlthinker-eval" or source.files[HUB_NAME]
        else:
            assert len(bytes.fromhex(revision)) == 20


def test_parquet_files_are_fetched_into_their_folder_and_there_is_nothing_to_unpack(
    place: Path, serve: Any, parquet: Any
) -> None:
    names = list(download.HUB["vqa-rad"].files)
    rows = [{"image": 1, "question": "Is it seen?", "answer": "no"}]
    hub = serve("vqa-rad", {name: parquet(rows) for name in names}, revision=COMMIT)
    hub.fails_after = len(hub.files[names[0]]) + 500
    assert "run again to go on, or put data/train-00000" in refused("vqa-rad")
    hub.fails_after = 10**12
    listing = read("vqa-rad")
    assert [e.answer for e in listing.examples] == ["no", "no"]
    assert sorted(listing.splits.values()) == ["test", "train"]
    assert (place / "vqa-rad" / names[0]).is_file()


def test_a_fetched_folder_whose_files_are_others_now_is_refused(
    place: Path, serve: Any, parquet: Any
) -> None:
    names = list(download.HUB["vqa-rad"].files)
    rows = [{"image": 1, "question": "Is it seen?", "answer": "no"}]
    files = {name: parquet(rows) for name in names}
    serve("vqa-rad", files, revision=COMMIT)
    read("vqa-rad")
    kept = place / "vqa-rad" / names[0]
    kept.write_bytes(parquet([{**rows[0], "answer": "yes"}]))
    read.cache_clear()
    with pytest.raises(UsageError) as error:
        read("vqa-rad")
    assert f"{kept} is not the file that this program fetches: move {kept.parents[1]} away" in str(
        error.value
    )
    assert sorted(e.answer for e in read(f"vqa-rad:{place / 'vqa-rad'}").examples) == ["no", "yes"]
    shutil.move(place / "vqa-rad", place / "moved")  # as the line advises
    assert [e.answer for e in read("vqa-rad").examples] == ["no", "no"]
    serve("vqa-rad", files, revision=COMMIT, **{names[0]: "0" * 64})  # a later version of HUB
    with pytest.raises(UsageError, match="is not the file that this program fetches"):
        read("vqa-rad")


def test_the_advice_for_a_data_set_of_many_files_is_one_short_line() -> None:
    advice = download.by_hand("path-vqa")
    assert advice.startswith("put the 13 parquet files of https://huggingface.co/datasets/flavia")
    assert advice.endswith(" in a FOLDER and use --data path-vqa:FOLDER")
