"""Data sets of the Hugging Face hub: fetched once, unpacked, and then a folder like any other.

They land under the user's cache folder, in medvqa-grpo/data/NAME. What is half fetched goes on
where it stopped; what is half unpacked is thrown away.
"""

import json
import shutil
import stat
import sys
import textwrap
import zipfile
import zlib
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import Any

from tqdm import tqdm

from data.images import sha256_of
from data.readers.hub import HUB, HubData
from grpo.settings.config import user_cache
from grpo.settings.errors import UsageError

RECORD = "fetched.json"  # what was fetched; written last, so a folder that holds it is whole
BLOCK = 2**25  # bytes of one request: few requests, and little is lost when one fails
MAX_FILES = 1_000_000
MAX_GROWTH = 20  # unpacked over packed: images grow little, a zip bomb a thousandfold


def fetch(name: str) -> Path:
    """The folder of a data set of `HUB`, which is fetched and unpacked when it is not there.

    Raises UsageError where it cannot be, saying how to bring it there by hand, and for a folder
    that was fetched and is no longer what `HUB` names.
    """
    folder = user_cache() / "data" / name
    if (folder / RECORD).is_file():
        _check_kept(name, folder)
        return folder
    try:
        from filelock import FileLock  # comes with torch

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not (folder / RECORD).is_file():  # another process may just have put it there
                _install(name, HUB[name], folder)
    except Exception as error:  # the network, and the libraries on the way to it, raise anything
        what = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
        fetching = f"could not be fetched ({what}): run again to go on"
        problem = error if isinstance(error, UsageError) else fetching
        raise UsageError(f"--data {name}: {problem}, or {by_hand(name)}") from None
    return folder


def _check_kept(name: str, folder: Path) -> None:
    """Raises UsageError where a file of a fetched folder is another now, or `HUB` names another.

    Images that came in a zip are not hashed again.
    """
    known = HUB[name].files
    for file, facts in json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"].items():
        there = folder / file
        is_same = not there.is_file() or sha256_of(there) == facts["sha256"]
        wanted = [digest for name, digest in known.items() if fnmatch(file, name)]
        if not is_same or not {"", facts["sha256"]} & set(wanted):
            problem = f"{there} is not the file that this program fetches: move {folder} away"
            raise UsageError(f"--data {name}: {problem}, or use --data {name}:{folder}")


def by_hand(name: str) -> str:
    """What to put where on a machine that does not reach the hub."""
    repo, files = HUB[name]
    what = " and ".join(files) if len(files) < 5 else f"the {len(files)} parquet files"
    where = f"https://huggingface.co/datasets/{repo.partition('@')[0]}"
    unzip = ", unpack the zip there," if ".zip" in what else ""
    return f"put {what} of {where} in a FOLDER{unzip} and use --data {name}:FOLDER"


def _install(name: str, source: HubData, folder: Path) -> None:
    """Fetch, unpack, and put the whole in place with one rename."""
    if folder.exists():
        raise UsageError(f"{folder} is not of this program's making: move it away")
    downloads, unpacked = (folder.with_name(f"{name}.{part}") for part in ("fetched", "unpacked"))
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    record = _download(name, source, downloads)
    try:
        for file in record["files"]:
            if file.endswith(".zip"):
                unpack(downloads / file, unpacked)
            else:
                (unpacked / file).parent.mkdir(exist_ok=True)
                shutil.copy(downloads / file, unpacked / file)
        (unpacked / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        unpacked.rename(folder)
    except UsageError:
        shutil.rmtree(downloads)  # another try must not meet the same archive
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    shutil.rmtree(downloads)


def _download(name: str, source: HubData, downloads: Path) -> dict[str, Any]:
    """All files of a data set into a folder; what is already there is not fetched again.

    Returns what to write down: repository, commit, and size and hash of each file.
    """
    from huggingface_hub import HfApi, HfFileSystem

    repo, _, revision = source.repo.partition("@")
    commit = HfApi().dataset_info(repo, revision=revision, timeout=30).sha
    hub, place = HfFileSystem(), f"datasets/{repo}@{commit}"
    hashes = {
        path.removeprefix(f"{place}/"): digest
        for name, digest in source.files.items()
        for path in hub.glob(f"{place}/{name}") or [f"{place}/{name}"]  # `info` names a missing one
    }
    infos = {file: hub.info(f"{place}/{file}") for file in hashes}
    listed = ", ".join(f"{file} ({_size(info['size'])})" for file, info in infos.items())
    print(f"{name}: fetching {listed} of {repo} at commit {commit}", file=sys.stderr)
    downloads.mkdir(exist_ok=True)
    _check_room(downloads, sum(info["size"] for info in infos.values()))
    record = {"repo": repo, "commit": commit, "files": {}}
    for file, info in infos.items():
        (downloads / file).parent.mkdir(exist_ok=True)
        size, lfs = info["size"], info.get("lfs") or {}
        _download_file(hub, f"{place}/{file}", downloads / file, size)
        digest = sha256_of(downloads / file)
        wanted = hashes[file] or lfs.get("sha256", digest)
        if digest != wanted:
            (downloads / file).unlink()
            problem = f"{file} at commit {commit} has sha256 {digest}, not {wanted}"
            raise UsageError(f"{problem}: try again")
        record["files"][file] = {"bytes": size, "sha256": digest}
    return record


def _download_file(hub: Any, path: str, file: Path, size: int) -> None:
    """One file, from where an earlier try stopped. The hub's own download starts anew."""
    with hub.open(path, block_size=BLOCK, cache_type="none") as remote, file.open("ab") as local:
        bar = {"total": size, "initial": remote.seek(local.tell()), "desc": file.name}
        with tqdm.wrapattr(remote, "read", **bar) as counted:
            shutil.copyfileobj(counted, local, BLOCK)


def _check_room(downloads: Path, size: int) -> None:
    """Raises UsageError where the disk does not hold the files and what is made of them."""
    there = sum(file.stat().st_size for file in downloads.rglob("*") if file.is_file())
    need, free = 2 * size - there, shutil.disk_usage(downloads).free
    if need > free:
        problem = f"needs {_size(need)} in {downloads.parent}, which has {_size(free)}: make room"
        raise UsageError(f"{problem}, or set XDG_CACHE_HOME to a folder on a larger disk")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip into a folder.

    Raises UsageError for a damaged one, and, before anything is written, for one with a member
    that would land outside the folder, is no plain file, or with far more in it than images need.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            grown = sum(member.file_size for member in members)
            problem = next(filter(None, map(_leads_out, members)), "")
            if len(members) > MAX_FILES or grown > MAX_GROWTH * archive.stat().st_size + 2**30:
                problem = f"holds {len(members):,} files of {_size(grown)}, too much to be images"
            if problem:
                raise UsageError(f"{archive.name} {problem}: it was not unpacked; try again")
            zipped.extractall(folder, tqdm(members, f"unpacking {archive.name}", unit=" files"))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UsageError(f"{archive.name} is damaged ({error}): try again") from None


def _leads_out(member: zipfile.ZipInfo) -> str:
    """What is wrong with a member that would not land in the folder as a plain file; else ""."""
    # A Windows path is the strictest reading: both slashes separate, and drives are absolute too.
    path = PureWindowsPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip was not packed on Unix
    out = path.anchor or ".." in path.parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
    return f"holds {member.filename!r}, which leads out of its folder" if out else ""


def _size(count: float) -> str:
    """A number of bytes as people say it.

    >>> _size(10_698_178_715), _size(5_980_000)
    ('10.7 GB', '6.0 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
