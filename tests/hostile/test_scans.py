"""Medical scans that are broken: DICOM and NIfTI files, each one line that names the file."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.every import try_every
from tests.hostile.pictures import FORMS, refused

READERS = {"dcm": "pydicom", "nii": "nibabel", "nii.gz": "nibabel"}
PREAMBLE = bytes(128) + b"DICM"
BROKEN = {
    "no bytes": b"",
    "text": b"no scan at all",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "half a PNG": FORMS["png"][:60],
    "a pickle": b"\x80\x04cos\nsystem\n.",
    "gzip of zeros": gzip.compress(bytes(1000)),
    "half a gzip": gzip.compress(bytes(range(256)) * 4)[:100],
    "a preamble alone": PREAMBLE,
    "a preamble and noise": PREAMBLE + bytes(range(256)) * 4,
    "a length without end": PREAMBLE + b"\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff" + b"\xff" * 50,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", READERS)
def test_a_broken_scan_is_one_line(ending: str, tmp_path: Path) -> None:
    pytest.importorskip(READERS[ending], reason="reads such scans")
    file = tmp_path / f"scan.{ending}"

    def is_refused(name: str) -> None:
        file.write_bytes(BROKEN[name])
        refused(file, "cannot be read")

    try_every(is_refused, BROKEN)


def nifti(**dimensions: int) -> bytes:
    """A sound NIfTI file of 8 x 8 x 8, in whose header some of the 8 dimensions are changed."""
    nibabel = pytest.importorskip("nibabel", reason="reads such scans")
    volume = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    content = bytearray(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())
    for place, value in dimensions.items():
        struct.pack_into("<h", content, 40 + 2 * int(place[1:]), value)
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("percent", [1, 10, 24, 30, 50, 60])
def test_a_truncated_volume_is_one_line(percent: int, tmp_path: Path) -> None:
    content = nifti()
    file = tmp_path / "scan.nii"
    file.write_bytes(content[: len(content) * percent // 100])
    refused(file, "cannot be read")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("dimensions", "says"),
    [
        ({"d1": 32_767, "d2": 32_767}, "claims more than"),
        ({"d3": 32_767}, "cannot be read"),
        ({"d0": 7, "d7": 32_767}, "cannot be read"),
        ({"d1": -8}, "cannot be read"),
        ({"d0": 0}, "cannot be read"),
        ({"d0": 1}, "cannot be read"),
        ({"d0": -1}, "cannot be read"),
    ],
)
def test_a_volume_of_other_dimensions_is_one_line(
    dimensions: dict[str, int], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "scan.nii"
    file.write_bytes(nifti(**dimensions))
    refused(file, says)
