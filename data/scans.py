"""Medical scans as pictures: one slice of a DICOM (.dcm) or NIfTI (.nii, .nii.gz) file.

The packages that read them are optional, and asked for by name when such a file is met.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grpo.settings.errors import UsageError

MAX_PIXELS = 64_000_000  # 8000 x 8000: above any detector, far below what a crafted file can claim
PERCENTILES = (0.5, 99.5)  # black and white of a scan that names no window


def scan_reader(path: Path) -> Callable[[Path], Image.Image] | None:
    """What opens a scan, by its ending; None for any other image.

    Raises UsageError when the package it needs is not installed. The reader raises anything on bad
    bytes, and DecompressionBombError for a slice of more than `MAX_PIXELS`.
    """
    for endings, package, module, read in (
        (".dcm", "pydicom>=3", "pydicom.pixels", read_dicom),
        ((".nii", ".nii.gz"), "nibabel", "nibabel", read_nifti),
    ):
        if path.name.lower().endswith(endings):
            try:
                importlib.import_module(module)
            except ImportError:
                problem = f"image {path} needs {package}, which is not installed"
                raise UsageError(f'{problem}: pip install "{package}"') from None
            return read
    return None


def read_dicom(path: Path) -> Image.Image:
    """The middle frame of a DICOM file, in mode L or RGB.

    Stored values go through the file's rescale and its first window; MONOCHROME1, where a high
    value means dark, is inverted.
    """
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    file = pydicom.dcmread(path)
    check_size(file.Rows, file.Columns)
    frame = int(file.get("NumberOfFrames") or 1) // 2
    pixels = pixel_array(file, index=frame)  # (rows, columns), or (rows, columns, 3) in RGB
    if file.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, file)
    if pixels.ndim == 3:
        return _picture(pixels / np.iinfo(pixels.dtype).max)
    values = apply_modality_lut(pixels, _header(file, frame, "PixelValueTransformationSequence"))
    voi = _header(file, frame, "FrameVOILUTSequence")
    if voi.get("WindowWidth"):
        shades = _windowed(values.astype(np.float64), voi)
    else:
        shades = _stretched(apply_voi_lut(values, voi))  # the file's table, if it has one
    return _picture(1 - shades if file.PhotometricInterpretation == "MONOCHROME1" else shades)


def _header(file: Any, frame: int, name: str) -> Any:
    """The part of a DICOM header that holds the sequence `name`: the frame's, all frames', or, in
    files of the older kind, the header itself."""
    own = file.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in (*own, *file.get("SharedFunctionalGroupsSequence", [])):
        if name in group:
            return group[name][0]
    return file


def _windowed(values: np.ndarray, voi: Any) -> np.ndarray:
    """Values through the first window of a header: 0 at its lower end, 1 at its upper.

    DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
    """
    both = (voi[name].value for name in ("WindowCenter", "WindowWidth"))
    center, width = (float(np.atleast_1d(value)[0]) for value in both)
    function = voi.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    return (values - (center - 0.5)) / max(width - 1, 1e-6) + 0.5


def read_nifti(path: Path) -> Image.Image:
    """The middle slice along the last axis of a NIfTI file (of the middle volume), in mode L.

    It is shown as radiologists hang it, by the file's orientation: patient's right on the left,
    front or head up. Its window is the header's cal_min and cal_max where they are set.
    """
    import nibabel

    file = nibabel.load(path)
    check_size(*file.shape[:2])
    middle = tuple(length // 2 for length in file.shape[2:])
    values = np.asarray(file.dataobj[(slice(None), slice(None), *middle)], dtype=np.float64)
    low, high = float(file.header["cal_min"]), float(file.header["cal_max"])
    shades = (values - low) / (high - low) if high > low else _stretched(values)
    # Per axis: which of right-left, back-front, feet-head it is nearest to, and 1 where it goes
    # towards right, front or head, which is the wrong way for a picture.
    orientation = nibabel.io_orientation(file.affine)[:2]
    shades = np.flip(shades, tuple(np.flatnonzero(orientation[:, 1] == 1)))
    return _picture(shades if orientation[0][0] > orientation[1][0] else shades.T)


def check_size(height: int, width: int) -> None:
    """Raises DecompressionBombError for an image that is too large to be decoded."""
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError


def _stretched(values: np.ndarray) -> np.ndarray:
    """Values with 0 and 1 at `PERCENTILES` of those that are finite; all 0 where all are equal."""
    low, high = np.percentile(values[np.isfinite(values)], PERCENTILES)
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)


def _picture(shades: np.ndarray) -> Image.Image:
    """Shades from 0 to 1, clipped to that, as 8 bits: (rows, columns) or (rows, columns, 3)."""
    return Image.fromarray((np.nan_to_num(shades).clip(0, 1) * 255).round().astype(np.uint8))
