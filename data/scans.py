"""Medical scans as pictures: a slice of a DICOM file or of a NIfTI file (.nii, .nii.gz).

The packages that read them are optional, and asked for by name when such a file is met.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000  # 8000 x 8000: above any detector, far below what a crafted file can claim
PERCENTILES = (0.5, 99.5)  # black and white of an image that names no window
NEARLY_SQUARE = 0.02  # pixels whose height differs from their width by less are shown as stored
# How the values of DICOM may be meant; pydicom has made all colours but a palette's RGB.
MEANINGS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB")
MEANINGS += ("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")


def read_scan(path: Path, index: int | None = None) -> Image.Image | None:
    """The slice of a scan at an index (None: the middle). None: another image.

    Raises anything on bad bytes, ModuleNotFoundError where the package that it needs is not
    installed, and DecompressionBombError for a slice of more than `MAX_PIXELS`.
    """
    if is_dicom(path):
        return read_dicom(path, index)
    return read_nifti(path, index) if is_nifti(path) else None


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark after the preamble (DICOM PS3.10, 7.1)."""
    if path.is_file():  # to open a pipe could block for ever
        with suppress(OSError), path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    return False


def is_nifti(path: Path) -> bool:
    """Whether a file's name is that of NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_dicom(path: Path, frame: int | None = None) -> Image.Image:
    """A frame of a DICOM file (None: the middle one), in mode L or RGB.

    Raises ValueError where the header says of the values what is not known here.
    """
    import pydicom
    from pydicom.pixels import apply_color_lut, pixel_array

    header = pydicom.dcmread(path)
    check_size(header.Rows, header.Columns)
    meaning, stored = header.PhotometricInterpretation, header.get("BitsStored", 0)
    if meaning not in MEANINGS or header.get("HighBit", stored - 1) != stored - 1:
        what = f"{meaning} with BitsStored {stored} and HighBit {header.get('HighBit')}"
        raise ValueError(f"{what} is not known")
    frame = int(header.get("NumberOfFrames") or 1) // 2 if frame is None else frame
    pixels = pixel_array(header, index=frame)  # (rows, columns), or (rows, columns, 3) in RGB
    white = 2**stored - 1
    if meaning == "PALETTE COLOR":
        most, pixels = pixels.max(), apply_color_lut(pixels, header)
        if most > 255 and pixels.itemsize == 1:
            raise ValueError("pydicom takes places in a palette of 8 bits modulo 256")
        white = 255 if pixels.max() < 256 else 65535  # 8 bits are found in entries of 16, too
    shades = pixels / white if pixels.ndim == 3 else _grey(pixels, header, frame)
    measures = header_part(header, frame, "PixelMeasuresSequence")
    spacing = next(filter(None, map(measures.get, SPACINGS)), (1, 1))
    return picture(shades, *np.resize(spacing, 2).astype(float))


def _grey(pixels: np.ndarray, header: Any, frame: int) -> np.ndarray:
    """Stored values of a frame as shades from 0 to 1, through the header's rescale and window.

    MONOCHROME1, where a high value means dark, is inverted. Padding (DICOM PS3.3, C.7.5.1.1.2) is
    black, and does not count in a stretch.
    """
    from pydicom.pixels import apply_modality_lut, pixel_array

    lut = header_part(header, frame, "PixelValueTransformationSequence")
    values = apply_modality_lut(pixels, lut)
    values = values.astype(np.float64)
    padding = np.zeros(values.shape, bool)
    if ends := [header[name].value for name in header.dir("PixelPadding") if header[name].VM]:
        # As stored: padding may lie outside of BitsStored, and some headers write -2000 as 63536.
        stored = pixel_array(header, index=frame, correct_unused_bits=False)
        low, high = np.sort(np.array([ends[0], ends[-1]]).astype(stored.dtype))
        padding = (stored >= low) & (stored <= high)
    values[padding] = np.nan
    shades = _windowed(values, header_part(header, frame, "FrameVOILUTSequence"))
    inverse = header.get("PresentationLUTShape") == "INVERSE"
    if inverse or header.PhotometricInterpretation == "MONOCHROME1":
        shades = 1 - shades
    return np.where(padding, 0, shades)


def header_part(file: Any, frame: int, name: str) -> Any:
    """The part of a DICOM header that holds the sequence `name`: the frame's, all frames', or, in
    files of the older kind, the header itself."""
    own = file.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in (*own, *file.get("SharedFunctionalGroupsSequence", [])):
        if name in group:
            return group[name][0]
    return file


def _windowed(values: np.ndarray, voi: Any) -> np.ndarray:
    """Values through the first window of a header, else through its table, else stretched.

    DICOM PS3.3, C.11.2.1.1 to C.11.2.1.3. A window that is not as wide as it must be is none.
    """
    from pydicom.pixels import apply_voi

    center, width = (np.atleast_1d(voi.get(f"Window{name}"))[0] for name in ("Center", "Width"))
    function = voi.get("VOILUTFunction")
    least = 1e-6 if function in ("LINEAR_EXACT", "SIGMOID") else 1  # LINEAR is the default
    if center is not None and width is not None and width >= least:
        if function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - center) / width))
        if function != "LINEAR_EXACT":
            center, width = center - 0.5, max(width - 1, 1e-6)
        return (values - center) / width + 0.5
    if voi.get("VOILUTSequence"):
        table = voi.VOILUTSequence[0].LUTDescriptor
        white, table[2] = 2 ** table[2] - 1, 16  # pydicom takes places in 8 bits modulo 256
        return apply_voi(np.nan_to_num(values).astype(int), voi) / white
    return stretched(values)


def read_nifti(path: Path, index: int | None = None) -> Image.Image:
    """A slice along the third axis of a NIfTI file (None: the middle), in mode L. Of further axes,
    such as time, the middle is shown.

    It is shown as radiologists hang it, by the file's orientation: patient's right on the left,
    front or head up. Its window is the header's cal_min and cal_max where they are set. Of complex
    values the magnitude is shown.
    """
    import nibabel

    file = nibabel.load(path)
    check_size(*file.shape[:2])
    place = [length // 2 for length in file.shape[2:]]
    place[:1] = place[:1] if index is None else [index]
    values = np.asarray(file.dataobj[(slice(None), slice(None), *place)])
    values = (np.abs(values) if np.iscomplexobj(values) else values).astype(np.float64)
    low, high = float(file.header["cal_min"]), float(file.header["cal_max"])
    shades = (values - low) / (high - low) if high > low else stretched(values)
    # Per axis: which of right-left, back-front, feet-head it is nearest to, and 1 where it goes
    # towards right, front or head, which is the wrong way for a picture.
    orientation = nibabel.io_orientation(file.affine)[:2]
    shades = np.flip(shades, tuple(np.flatnonzero(orientation[:, 1] == 1)))
    sizes = nibabel.affines.voxel_sizes(file.affine)[:2]
    if orientation[0][0] > orientation[1][0]:
        return picture(shades, *sizes)
    return picture(shades.T, *sizes[::-1])


def check_size(height: int, width: int) -> None:
    """Raises DecompressionBombError for an image that is too large to be decoded."""
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError


def stretched(values: np.ndarray) -> np.ndarray:
    """Values with 0 and 1 at `PERCENTILES` of those that are finite, or at their extremes where
    nearly all are equal; all 0 where all are. Raises ValueError where none is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no pixel is a finite number")
    low, high = np.percentile(finite, PERCENTILES)
    if low == high:
        low, high = finite.min(), finite.max()
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)


def picture(shades: np.ndarray, height: float = 1, width: float = 1) -> Image.Image:
    """Shades from 0 to 1, clipped to that, as 8 bits: (rows, columns) or (rows, columns, 3).

    Pixels of `height` by `width` are made square: the picture grows along their longer side. If
    either is no length, they are taken to be square.
    """
    image = Image.fromarray((np.nan_to_num(shades).clip(0, 1) * 255).round().astype(np.uint8))
    ratio = height / width if height > 0 and width > 0 else 1.0
    if abs(ratio - 1) < NEARLY_SQUARE:
        return image
    down, across = round(image.height * max(ratio, 1)), round(image.width * max(1 / ratio, 1))
    check_size(down, across)
    return image.resize((across, down), Image.Resampling.BILINEAR)
