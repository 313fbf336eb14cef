"""Image -> features of the frozen vision tower, computed once per image and kept.

The tower is frozen, so an image's features are a constant: each image goes through it ALONE (the
result cannot depend on the batch) under no_grad, and is kept in memory and then in the cache
folder. Sampling, the policy pass and the reference pass all use the same tensor.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from grpo.config import SettingsError, UsageError
from models.exhausted import out_of_memory

MEMORY_LIMIT = 4 << 30  # bytes of features held in memory; the least recently used leave first

Grid = tuple[int, int, int]  # patches of an image: time (1), height, width


class ImageSource(Protocol):
    """What an image must offer; the key is stable: equal keys mean equal pixels."""

    @property
    def key(self) -> str: ...

    def open(self) -> Image.Image: ...


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes: equal exactly when the weights are."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


class VisionCache:
    """The features of images under one frozen tower.

    `cache` is the folder on disk, or None for memory only. Raises UsageError where a parameter of
    the tower trains: kept features would be stale after the first step.
    """

    def __init__(self, model: nn.Module, processor: Any, cache: Path | None) -> None:
        self.model = model  # the Qwen2VLModel that holds the tower (`visual`)
        self.processor = processor
        self.folder = None if cache is None else Path(cache) / "vision"
        self._memory: OrderedDict[str, tuple[Tensor, Grid]] = OrderedDict()
        self._memory_bytes = 0
        self._names: dict[str, str] = {}  # image key -> name of its features: opened once a run
        self._tower: str | None = None
        self._refuse_training()

    def features(self, image: ImageSource) -> tuple[Tensor, Grid]:
        """The image's features (t*h*w/4, hidden) on the CPU, in the tower's dtype, and its grid."""
        self._refuse_training()
        name, pixels = self._names.get(image.key), None
        if name is None:
            pixels = image.open()
            name = self._names[image.key] = self._name(pixels)
        if name in self._memory:
            self._memory.move_to_end(name)
            return self._memory[name]
        kept = self._read(name)
        if kept is None:
            kept = self._compute(image.open() if pixels is None else pixels, image.key)
            self._write(name, *kept)
        self._memory[name] = kept
        self._memory_bytes += kept[0].nbytes
        while self._memory_bytes > MEMORY_LIMIT and len(self._memory) > 1:
            _, (features, _) = self._memory.popitem(last=False)
            self._memory_bytes -= features.nbytes
        return kept

    def _refuse_training(self) -> None:
        if any(parameter.requires_grad for parameter in self.model.visual.parameters()):
            raise UsageError(
                "the vision tower has trainable weights, so image features cannot be kept; "
                "freeze it (requires_grad_(False)) and train the language model only"
            )

    def _name(self, pixels: Image.Image) -> str:
        """Everything the features depend on: the pixels, how they are prepared, and the tower."""
        if self._tower is None:
            weights = hash_tensors(sorted(self.model.visual.state_dict().items()))
            # CPU and GPU round differently, so their features are kept apart.
            device = next(self.model.visual.parameters()).device.type
            self._tower = f"{weights} {device} {self.processor.to_json_string()}"
        digest = hashlib.sha256(f"{self._tower} {pixels.size}".encode())
        digest.update(pixels.convert("RGB").tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def _compute(self, pixels: Image.Image, key: str) -> tuple[Tensor, Grid]:
        try:
            inputs = self.processor(images=[pixels.convert("RGB")], return_tensors="pt")
        except ValueError as error:  # the processor refuses sides of more than 200 to 1
            raise UsageError(f"image {key}: {error}; leave it out or crop it") from None
        patch = next(self.model.visual.parameters())
        grid = inputs["image_grid_thw"].to(patch.device)  # (1, 3)
        # Outside any autocast: what is kept must not depend on who asked first.
        try:
            with torch.autocast(patch.device.type, enabled=False):
                output = self.model.get_image_features(inputs["pixel_values"].to(patch), grid)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            remedy = "use another --out with a smaller --max-pixels"
            raise SettingsError(
                f"image {key}: out of memory in the vision tower; {remedy}"
            ) from None
        (features,) = getattr(output, "pooler_output", output)  # one image in, one tensor out
        t, h, w = grid[0].tolist()
        return features.cpu().clone(), (t, h, w)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, name: str) -> tuple[Tensor, Grid] | None:
        if self.folder is None or not self._path(name).exists():
            return None
        try:
            with safe_open(self._path(name), framework="pt") as file:
                t, h, w = file.get_tensor("grid").tolist()
                features = file.get_tensor("features")
        except (OSError, SafetensorError, ValueError, TypeError):
            return None  # damaged: computed and written again
        whole = features.ndim == 2 and len(features) * self.processor.merge_size**2 == t * h * w
        return (features, (t, h, w)) if whole else None

    def _write(self, name: str, features: Tensor, grid: Grid) -> None:
        """Write beside the place and rename: a reader or a crash never sees half a file."""
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
