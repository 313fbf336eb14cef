"""Image -> features of the frozen vision tower, computed once per image and kept.

The tower is frozen, so the features of an image are a constant. Each image goes through the tower
ALONE, so that the result cannot depend on a batch, and its features are kept in memory and in the
cache folder. Sampling, the policy pass and the reference pass all use the same tensor.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from grpo.settings.errors import SettingsError, UsageError
from models.device import out_of_memory
from models.images.disk_cache import FeatureFiles, Features
from models.images.prefetch import Prefetcher
from models.linear import Widening

MEMORY_LIMIT = 4 << 30  # bytes of features in memory; the least recently used are dropped first

Patches = tuple[Tensor, Tensor]  # (t*h*w, values of a patch) and the grid (1, 3), on the CPU


class ImageSource(Protocol):
    """An image as the policy needs it. The key is stable: equal keys mean equal pixels."""

    key: str

    def open(self) -> Image.Image: ...


def image_tokens(processor: Any, size: tuple[int, int]) -> int:
    """How many tokens an image of this width and height takes. Raises ValueError if it is more than
    200 times as long as wide."""
    width, height = size
    return processor.get_number_of_image_patches(height, width) // processor.merge_size**2


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes: equal exactly when the weights are."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Prepared(NamedTuple):
    """An image before the tower: its features if they are on disk, else its patches."""

    name: str  # the name of its features
    kept: Features | None
    patches: Patches | None

    @property
    def nbytes(self) -> int:
        return sum(pair[0].nbytes for pair in (self.kept, self.patches) if pair)


class VisionCache:
    """The features of images under one frozen tower.

    `cache` is the folder on disk, or None for memory only. Raises UsageError if a parameter of the
    tower is trainable: kept features would be stale after the first step.
    """

    def __init__(self, model: nn.Module, processor: Any, cache: Path | None) -> None:
        self.model = model  # transformers' model that holds the tower (`visual`)
        self.processor = processor
        folder = None if cache is None else Path(cache) / "vision"
        self.files = FeatureFiles(folder, processor.merge_size**2)
        self._memory: OrderedDict[str, Features] = OrderedDict()
        self._memory_bytes = 0
        self._names: dict[str, str] = {}  # image key -> name of its features: opened once a run
        self._prefetcher = Prefetcher(self._prepare)
        self._refuse_training()

    def prefetch(self, images: Iterable[ImageSource]) -> None:
        """Name the images that `features` gets next, in order: threads prepare them meanwhile.

        An image named twice is prepared once. Images of an earlier call that are not named again
        are forgotten. If an image is damaged, `features` raises the error.
        """
        new = [image for image in images if self._names.get(image.key) not in self._memory]
        if new:
            _ = self._tower  # computed here: two threads would each hash the weights
        self._prefetcher.prefetch(new)

    def features(self, image: ImageSource) -> Features:
        """The image's features (t*h*w/4, hidden) on the CPU, in the tower's dtype, and its grid."""
        self._refuse_training()
        name, kept, patches = self._names.get(image.key), None, None
        if name not in self._memory:
            name, kept, patches = self._prefetcher.take(image)
        if name not in self._memory:  # no other image has equal pixels
            kept = kept or self.files.read(name)  # another process may have computed them meanwhile
            if kept is None:
                kept = self._compute(patches or self._patches(image.open(), image.key), image.key)
                self.files.write(name, *kept)
            self._memory[name] = kept
            self._memory_bytes += kept[0].nbytes
            while self._memory_bytes > MEMORY_LIMIT and len(self._memory) > 1:
                _, (features, _) = self._memory.popitem(last=False)
                self._memory_bytes -= features.nbytes
        self._memory.move_to_end(name)
        return self._memory[name]

    def pooled(self, images: Iterable[ImageSource]) -> list[float]:
        """(hidden,) the mean over images of each one's mean feature, scaled to unit length."""
        means = [self.features(image)[0].float().mean(dim=0) for image in images]
        return nn.functional.normalize(torch.stack(means).mean(dim=0), dim=0).tolist()

    def _prepare(self, image: ImageSource) -> Prepared:
        """Everything before the tower, in any thread."""
        name, pixels = self._names.get(image.key), None
        if name is None:
            pixels = image.open()
            name = self._names[image.key] = self._name(pixels)
        kept = self.files.read(name)
        if kept or name in self._memory:
            return Prepared(name, kept, None)
        return Prepared(name, None, self._patches(pixels or image.open(), image.key))

    def _refuse_training(self) -> None:
        for parameter in self.model.visual.parameters():
            if parameter.requires_grad:
                problem = "the vision tower has trainable weights, so image features cannot be kept"
                remedy = "freeze it (requires_grad_(False)) and train the language model only"
                raise UsageError(f"{problem}; {remedy}")

    @cached_property
    def _tower(self) -> str:
        """What features on disk depend on besides the pixels. In memory there is one tower."""
        if self.files.folder is None:
            return ""
        weights = hash_tensors(sorted(self.model.visual.state_dict().items()))
        # CPU and GPU round differently, so their features are kept apart.
        device = next(self.model.visual.parameters()).device.type
        # Weights do not say how many heads a tower has, nor within which windows it attends.
        shape = self.model.config.vision_config.to_json_string()
        return f"{weights} {device} {shape} {self.processor.to_json_string()}"

    def _name(self, pixels: Image.Image) -> str:
        """Everything the features depend on: the pixels, how they are prepared, and the tower."""
        digest = hashlib.sha256(f"{self._tower} {pixels.size}".encode())
        digest.update(pixels.convert("RGB").tobytes())
        return digest.hexdigest()

    def _patches(self, pixels: Image.Image, key: str) -> Patches:
        try:
            inputs = self.processor(images=[pixels.convert("RGB")], return_tensors="pt")
        except ValueError as error:  # the processor refuses sides of more than 200 to 1
            raise UsageError(f"image {key}: {error}; leave it out or crop it") from None
        return inputs["pixel_values"], inputs["image_grid_thw"]

    @torch.no_grad()
    def _compute(self, patches: Patches, key: str) -> Features:
        weight = next(self.model.visual.parameters())
        # Outside any autocast: kept features must not depend on which pass computed them.
        try:
            wide = Widening() if weight.dtype == torch.bfloat16 else nullcontext()
            with torch.autocast(weight.device.type, enabled=False), wide:
                pixels, grid = patches[0].to(weight), patches[1].to(weight.device)
                output = self.model.get_image_features(pixels, grid)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            problem = f"image {key}: out of memory in the vision tower"
            remedy = "use another --out with a smaller --max-pixels"
            raise SettingsError(f"{problem}; {remedy}") from None
        (features,) = getattr(output, "pooler_output", output)  # one image in, one tensor out
        return features.cpu().clone(), tuple(patches[1][0].tolist())
