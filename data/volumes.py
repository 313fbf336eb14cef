"""Volumes: the slices of a scan in the order of the body, and which of them hold tissue.

A volume is a NIfTI file, a DICOM file whose frames have places of their own, or DICOM files of one
series. Slices go from the patient's right to left, front to back, or feet to head, whichever is
nearest, by ImagePositionPatient or by the affine; names of files say nothing.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.scans import PERCENTILES, check_size, header_part, is_dicom, is_nifti

Plane = tuple[Path, int]  # a slice: its file, and its index along the third axis, or its frame
TISSUE = 0.25  # a slice holds tissue if it has at least this part of what the fullest slice has
ALIKE = 0.99  # cosine between the normals of two slices of one volume
APART = 1e-3  # mm; two slices nearer than that lie at one place
ROWS = 128  # of slices with more, every second or n-th is looked at


def spread(planes: Sequence[Plane], count: int) -> list[Plane]:
    """The middles of `count` equal parts of the planes, or all planes if there are no more.

    >>> [index for _, index in spread([(Path(), i) for i in range(20)], 4)]
    [2, 7, 12, 17]
    """
    count = min(count, len(planes))
    return [planes[(2 * i + 1) * len(planes) // (2 * count)] for i in range(count)]


@lru_cache(maxsize=4096)  # several questions share a volume
def shown_planes(paths: tuple[Path, ...], count: int) -> list[Plane]:
    """`count` slices of the volume in these files or this folder, evenly spaced over those that
    hold tissue; if `count` is 1, the middle one of all. Raises ValueError if it is no volume."""
    planes = ordered_planes(paths)
    return spread(planes if count == 1 else with_tissue(planes), count)


def ordered_planes(paths: Sequence[Path]) -> list[Plane]:
    """All slices of a volume, in files or a folder. Raises ValueError, with the reason, where it is
    none."""
    if paths[0].is_dir():
        # Links are not followed: they may lead out of the data.
        paths = [p for p in sorted(paths[0].iterdir()) if not p.is_symlink() and is_dicom(p)]
    elif len(paths) == 1 and is_nifti(paths[0]):
        return _nifti_planes(paths[0])
    if not (paths and all(map(is_dicom, paths))):
        raise ValueError("no DICOM or NIfTI file")
    import pydicom

    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in paths}
    # A report, or the directory of a disk, has no rows.
    images = {path: int(h.get("NumberOfFrames") or 1) for path, h in headers.items() if "Rows" in h}
    found = [(path, frame) for path, count in images.items() for frame in range(count)]
    series = {(headers[p].get("SeriesInstanceUID"), headers[p].SamplesPerPixel) for p in images}
    positions, axes = (
        [header_part(headers[p], i, f"Plane{x}Sequence").get(f"Image{x}Patient") for p, i in found]
        for x in ("Position", "Orientation")
    )
    if [samples for _, samples in series] != [1] or not all(positions + axes):
        raise ValueError("is not one grey DICOM series with an ImagePositionPatient for each slice")
    axes = np.array(axes, float)
    normals = np.cross(axes[:, :3], axes[:, 3:])  # (slices, 3), towards left, back, head
    normal = normals[0] * np.sign(normals[0][np.abs(normals[0]).argmax()])
    along = np.array(positions, float) @ normal  # (slices,) mm
    if (np.abs(normals @ normal) < ALIKE).any() or (np.diff(np.sort(along)) < APART).any():
        raise ValueError("has slices of several directions, or several at one place (time, echoes)")
    return [found[i] for i in along.argsort()]


def _nifti_planes(path: Path) -> list[Plane]:
    import nibabel

    file = nibabel.load(path)
    check_size(*file.shape[:2])
    axis, sign = nibabel.io_orientation(file.affine)[2]
    # Its first two axes point to right and front, DICOM's to left and back.
    step = int(sign if axis == 2 else -sign)
    return [(path, index) for index in range(*file.shape[2:3] or (1,))[::step]]


def with_tissue(planes: Sequence[Plane]) -> list[Plane]:
    """The slices whose share of pixels above Otsu's threshold of the whole volume is at least
    `TISSUE` of the fullest slice's."""
    read = _nifti_values if is_nifti(planes[0][0]) else _dicom_values
    slices = [values[:: max(1, len(values) // ROWS)].ravel() for values in read(planes)]
    every = np.concatenate([values[np.isfinite(values)] for values in slices])
    threshold = otsu(every.clip(*np.percentile(every, PERCENTILES)))
    shares = np.array([(values > threshold).mean() for values in slices])  # NaN is not above
    return [planes[i] for i in np.flatnonzero(shares >= TISSUE * shares.max())]


def otsu(values: np.ndarray) -> float:
    """The threshold that parts values (n,) into two classes whose means lie furthest apart,
    weighted by their sizes. (Otsu, IEEE Transactions SMC 9, 1979, equation 14, on 256 bins.)"""
    counts, edges = np.histogram(values, 256)
    below, sums = counts.cumsum(), (counts * (edges[:-1] + edges[1:]) / 2).cumsum()
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty class parts nothing
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[np.nan_to_num(between).argmax() + 1])


def _nifti_values(planes: Sequence[Plane]) -> Iterator[np.ndarray]:
    import nibabel

    file = nibabel.load(planes[0][0])
    volume = np.asarray(file.dataobj[(..., *(length // 2 for length in file.shape[3:]))])
    for _, index in planes:
        values = volume[:, :, index] if volume.ndim > 2 else volume
        yield (np.abs(values) if np.iscomplexobj(values) else values).astype(np.float32)


def _dicom_values(planes: Sequence[Plane]) -> Iterator[np.ndarray]:
    import pydicom
    from pydicom.pixels import apply_modality_lut, pixel_array

    read = lru_cache(maxsize=1)(pydicom.dcmread)  # once for all frames of a file
    for path, frame in planes:
        header = read(path)
        check_size(header.Rows, header.Columns)
        rescale = header_part(header, frame, "PixelValueTransformationSequence")
        values = apply_modality_lut(pixel_array(header, index=frame), rescale).astype(np.float32)
        yield -values if header.PhotometricInterpretation == "MONOCHROME1" else values
