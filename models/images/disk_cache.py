"""The folder of image features that runs share: bounded, and safe with several runs at once.

A file is written beside its place and renamed, so no run reads half of one. Any file may vanish at
any time: its features are computed again.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo.settings.errors import UsageError

Grid = tuple[int, int, int]  # patches of an image: time (1), height, width
Features = tuple[Tensor, Grid]  # (t*h*w/4, hidden) on the CPU, in the tower's dtype

LIMIT = 20 * 10**9  # bytes in the folder; the least recently used files are removed first
LEFTOVER = 3600  # seconds after which a half-written file is that of a killed run
STRIDE = LIMIT // 20  # bytes that a run writes between two scans of the folder


class FeatureFiles:
    """Features by name. `folder` None keeps nothing.

    The folder stays within LIMIT. While several runs write, it may exceed it by a STRIDE for each
    of the others.
    """

    def __init__(self, folder: Path | None, patches: int) -> None:
        """`patches` of an image become one row of its features."""
        self.folder, self.patches = folder, patches
        self._unseen = STRIDE  # bytes written since the last scan; the first write scans

    def read(self, name: str) -> Features | None:
        """The features of this name; None if there are none, or the file is damaged."""
        if self.folder is None:
            return None
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                t, h, w = file.get_tensor("grid").tolist()
                features = file.get_tensor("features")
        except (OSError, SafetensorError, ValueError, TypeError):
            return None  # not there, or damaged: computed and written again
        if features.ndim != 2 or len(features) * self.patches != t * h * w:
            return None
        with suppress(OSError):  # the folder is read-only, or the file is gone
            os.utime(path)  # a file's time is that of its last use
        return features, (t, h, w)

    def write(self, name: str, features: Tensor, grid: Grid) -> None:
        """Keep features; raises UsageError where the folder cannot be written."""
        if self.folder is None:
            return
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{uuid4().hex}.tmp")
            try:
                save_file({"features": features, "grid": torch.tensor(grid)}, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            problem = f"cannot write image features to {self.folder}: {error}"
            raise UsageError(f"{problem}; choose another --cache, or --cache none") from None
        self._unseen += features.nbytes
        if self._unseen >= STRIDE:
            self._unseen = 0
            self._make_room()

    def _make_room(self) -> None:
        """Remove what killed runs left half written, then the least recently used files until
        another stride fits."""
        files, over = [], STRIDE - LIMIT  # bytes to remove
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # another run has removed it
                stat = path.stat()
                if path.suffix == ".safetensors":
                    files.append((stat.st_mtime, stat.st_size, path))
                    over += stat.st_size
                elif path.suffix == ".tmp" and stat.st_mtime < time.time() - LEFTOVER:
                    path.unlink()
        for _, size, path in sorted(files):
            if over <= 0:
                return
            with suppress(OSError):  # another run was faster, or the file is not ours
                path.unlink()
            over -= size
