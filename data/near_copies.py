"""Near copies: images that show the same picture, though their files differ.

A copy may be brighter, encoded or scaled anew, or have lost up to 5 % at each side. A perceptual
hash proposes pairs: 64 bits, the signs of the lowest cosines (pHash; Zauner 2010), of the image and
of 24 crops of it, since one hash does not outlive a crop. Many different images of one organ are as
near by hash. So each pair is aligned, and confirmed if the details correlate: neither brightness
nor the outline of a head counts. Two slices of one scan that differ no more than a copy would are
confirmed, too.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product

import numpy as np

from data.images import ImageSource, UnusableImage
from grpo.settings.config import user_cache

MOST_IMAGES = 5_000  # that are compared when questions are loaded: about a minute, once
SIDE = 64  # pixels of a thumbnail
CUTS = ((0, 0), (0.04, 0), (0, 0.04), (0.02, 0.02), (0.04, 0.04))  # shares lost at both ends
CROPS = list(product(CUTS, CUTS))  # of rows and columns; the first is the whole image
MOST_BITS = 8  # of 64 that differ between the hashes of a proposed pair
SAME = 0.94  # correlation of a confirmed pair
PIXELS = np.arange(SIDE)
AT = (PIXELS + 0.5) / SIDE  # (64,) their places, from 0 to 1
INNER = slice(4, SIDE - 4, 2)  # 28 pixels that are compared: a copy may have lost the rim
WAVES = np.cos(np.pi * PIXELS[:8, None] * AT)  # (8, 64) the lowest cosines
BLURS = np.exp(-((PIXELS[:, None] - PIXELS) ** 2) / np.reshape([2 * 0.8**2, 2 * 3**2], (2, 1, 1)))


def kept_near_copies(images: Iterable[ImageSource]) -> list[tuple[str, str]]:
    """`near_copies`, from the user's cache folder if these files have been compared before.

    More than `MOST_IMAGES` are not compared, which is said.
    """
    by_key = {image.key: image for image in images}
    if len(by_key) > MOST_IMAGES:
        print(f"{len(by_key):,} images: only data.audit looks for near copies", file=sys.stderr)
        return []
    # A key that is no file, of a drawn image or a slice, stands for its image.
    state = [(key, os.path.isfile(key) and os.path.getmtime(key)) for key in sorted(by_key)]
    digest = hashlib.sha256(repr([SAME, *state]).encode()).hexdigest()
    with suppress(OSError, ValueError, TypeError):  # no folder, or a file of it is damaged
        kept = user_cache() / "near_copies" / digest
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(near_copies(by_key.values())))
            part.replace(kept)
        return [tuple(pair) for pair in json.loads(kept.read_text())]
    return near_copies(by_key.values())  # without a cache they are compared each time


def near_copies(images: Iterable[ImageSource]) -> list[tuple[str, str]]:
    """The keys of each pair that is one of near copies, sorted.

    Images that cannot be read or show nothing have none. It takes the time to open n images, 25 n^2
    comparisons of hashes (2 ns each), and 1 ms for each alignment (of brain MRI two for each of
    0.4 % of all pairs, of mixed sets fewer).
    """
    # An image whose details vary by less than a grey level shows nothing.
    thumbs = {i.key: thumb for i in images if details(thumb := thumbnail(i)).std() >= 1}
    found = set()
    for *pair, crop in proposed(thumbs):
        if agreement(*(details(thumbs[key]) for key in pair), crop) >= SAME:
            found.add(tuple(sorted(pair)))
    return sorted(found)


def thumbnail(image: ImageSource) -> np.ndarray:
    """(64, 64) grey levels of 8 bits; all 0 of an image that cannot be read."""
    try:
        return np.asarray(image.open().convert("L").resize((SIDE, SIDE), reducing_gap=3.0))
    except UnusableImage:
        return np.zeros((SIDE, SIDE))


def details(thumb: np.ndarray) -> np.ndarray:
    """(64, 64) the thumbnail between two blurs, of 0.8 and 3 pixels: no noise, no wide shades."""
    fine, wide = (blur @ thumb @ blur / np.outer(blur.sum(0), blur.sum(0)) for blur in BLURS)
    return fine - wide


def proposed(thumbs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, Sequence]]:
    """(one, other, crop) wherever the hashes are near: this crop of `one` is like `other`."""
    keys, hashes = list(thumbs), np.array([hashes_of(thumb) for thumb in thumbs.values()])
    for i, own in enumerate(hashes):
        bits = np.bitwise_count(own[:, None] ^ hashes[:, 0])  # (25, n)
        for j in set(np.flatnonzero(bits.min(axis=0) <= MOST_BITS).tolist()) - {i}:
            yield keys[i], keys[j], CROPS[bits[:, j].argmin()]


def hashes_of(thumb: np.ndarray) -> np.ndarray:
    """(25,) the 64-bit hashes of CROPS of a thumbnail."""
    waves = [WAVES @ _between(SIDE * first, SIDE * (1 - last)) for first, last in CUTS]
    found = np.array([(down @ thumb @ right.T).ravel() for down, right in product(waves, waves)])
    found[:, 0] = np.median(found[:, 1:], axis=1)  # the mean says nothing: its bit is 0
    return np.packbits(found > found[:, :1], axis=1).view(np.uint64).ravel()


def agreement(a: np.ndarray, b: np.ndarray, crop: Sequence) -> float:
    """The correlation of the details `b` with those of the part of `a` that shows the same.

    `crop` says where the four edges of that part start (the shares lost at the top, the bottom, the
    left and the right). They move by least squares, with a factor for the contrast (Lucas and
    Kanade 1981).
    """
    edges = SIDE * np.abs(np.array([0, 1, 0, 1]) - np.ravel(crop))
    parts, wanted = (a, *np.gradient(a)), b[INNER, INNER].ravel()
    y, x = AT[INNER, None], AT[INNER]
    for _ in range(5):
        rows, columns = _between(*edges[:2])[INNER], _between(*edges[2:])[INNER]
        seen, dy, dx = (rows @ part @ columns.T for part in parts)  # (28, 28) each
        basis = np.array([dy * (1 - y), dy * y, dx * (1 - x), dx * x, seen]).reshape(5, -1)
        step = np.linalg.lstsq(basis @ basis.T, basis @ wanted)[0]
        edges = edges + np.clip(step[:4] / max(step[4], 0.3), -2, 2)  # pixels
    return float(basis[4] @ wanted / max(1e-9, np.linalg.norm(basis[4]) * np.linalg.norm(wanted)))


def _between(low: float, high: float) -> np.ndarray:
    """(64, 64) the interpolation of pixels at the places AT between two edges, given in pixels."""
    places = (low + AT[:, None] * (high - low) - 0.5).clip(0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(places - PIXELS))
