"""DICOM and NIfTI files, written by the packages that read them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.images import ImageFile


def grey(path: Path) -> np.ndarray:
    """The shades of an image file, checked to be a grey one in RGB."""
    image = ImageFile(path).open()
    assert image.mode == "RGB"
    shades = np.asarray(image).astype(int)
    assert (shades == shades[..., :1]).all()
    return shades[..., 0]


def write_dicom(folder: Path, pixels: np.ndarray, name: str = "x.dcm", **fields: Any) -> Path:
    """A DICOM file of pixels (frames, rows, columns[, 3]) with more header `fields`.

    Pixels of another type than integers are none: `fields` hold them.
    """
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    colours = pixels.ndim == 4
    file.Rows, file.Columns = pixels.shape[1:3]
    file.SamplesPerPixel = 3 if colours else 1
    file.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    file.PlanarConfiguration = 0
    file.NumberOfFrames = len(pixels)
    file.BitsAllocated = pixels.dtype.itemsize * 8
    if pixels.dtype.kind in "iu":
        file.BitsStored = pixels.dtype.itemsize * 8
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        file.PixelData = pixels.tobytes()
    for field, value in fields.items():
        setattr(file, field, value)
    if "BitsStored" in file and "HighBit" not in file:
        file.HighBit = file.BitsStored - 1
    file.save_as(folder / name, enforce_file_format=True)
    return folder / name


def write_nifti(
    folder: Path,
    values: np.ndarray,
    axes: str = "LPS",
    name: str = "x.nii.gz",
    sizes: tuple[float, float, float] = (1, 1, 1),
    **fields: Any,
) -> Path:
    """A NIfTI file of voxels of these sizes, under axes that point where `axes` says."""
    nibabel = pytest.importorskip("nibabel", reason="needs nibabel")
    affine = np.zeros((4, 4))
    for column, letter in enumerate(axes):
        place, negative = divmod("RLAPSI".index(letter), 2)
        affine[place, column] = -sizes[column] if negative else sizes[column]
    affine[3, 3] = 1
    file = nibabel.Nifti1Image(values, affine)
    for field, value in fields.items():
        file.header[field] = value
    nibabel.save(file, folder / name)
    return folder / name
