"""The folder of image features that runs share: bounded, and safe with several runs at once.

A file is written beside its place and renamed, so nobody sees half of one. Any may vanish at any
time: it is computed again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo.settings.errors import UsageError

Grid = tuple[int, int, int]  # patches of an image: time (1), height, width
Features = tuple[Tensor, Grid]  # (t*h*w/4, hidden) on the CPU, in the tower's dtype

LIMIT = 20 * 10**9  # bytes in the folder; the least recently used leave first
STRIDE = LIMIT // 20  # bytes that a run writes between two looks at the folder
LEFTOVER = 3600.0  # seconds after which a file half written is that of a run that was killed


class FeatureFiles:
    """Features by name. `folder` None keeps nothing.

    The folder is within LIMIT after each stride of a run's own; with several runs that write at
    once it may be over by a STRIDE for each of the others.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._unseen = STRIDE  # bytes written since the last look: the first write is one

    def read(self, name: str) -> Features | None:
        """What was kept under this name; None for nothing, or a damaged file."""
        if self.folder is None or not self._path(name).exists():
            return None
        try:
            with safe_open(self._path(name), framework="pt") as file:
                t, h, w = file.get_tensor("grid").tolist()
                features = file.get_tensor("features")
        except (OSError, SafetensorError, ValueError, TypeError):
            return None  # damaged: computed and written again
        with suppress(OSError):  # another's folder, or gone meanwhile
            os.utime(self._path(name))  # its time is that of its last use
        return features, (t, h, w)

    def write(self, name: str, features: Tensor, grid: Grid) -> None:
        """Keep features; raises UsageError where the folder cannot be written."""
        if self.folder is None:
            return
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            os.close(handle)
            try:
                save_file({"features": features, "grid": torch.tensor(grid)}, temporary)
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"cannot write image features to {self.folder}: {error}; "
                "choose another --cache, or --cache none"
            ) from None
        self._unseen += features.nbytes
        if self._unseen >= STRIDE:
            self._unseen = 0
            self._make_room()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def _make_room(self) -> None:
        """Take out what leaves no room for another stride, and what killed runs left behind."""
        files, old = [], time.time() - LEFTOVER
        for used, size, path in self._files():
            if path.endswith(".safetensors"):
                files.append((used, size, path))
            elif path.endswith(".tmp") and used < old:
                _remove(path)
        over = sum(size for _, size, _ in files) - (LIMIT - STRIDE)
        for _, size, path in sorted(files):
            if over <= 0:
                return
            _remove(path)
            over -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(time of its last use, bytes, path) of every file; another run may take some away."""
        for folder in self.folder.glob("??"):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        stat = entry.stat()
                        yield stat.st_mtime, stat.st_size, entry.path


def _remove(path: str) -> None:
    with suppress(OSError):  # another run was faster, or it is not ours
        os.unlink(path)
