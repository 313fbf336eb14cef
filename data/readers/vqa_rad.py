"""VQA-RAD (Lau et al. 2018): radiographs, CT and MRI with clinicians' questions, two forms.

The hub's `data/{train,test}-*.parquet` has image, question and answer: closed are the questions
that are answered with yes or no. The OSF JSON has the images in a folder beside it. A row: {"qid",
"image_name", "question", "question_type", "answer", "answer_type": "CLOSED " (stray space),
"phrase_type": "test_freeform" (test split), ...}. It names the organ, not the modality.

The published splits share most images: the training questions about images of the test are left
out, and a model trained here has seen far fewer than one trained on all 1,793.
"""

from pathlib import Path
from typing import Any

from data.readers.common import fields, json_files, json_list, split_named
from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files

OSF_NAME = "VQA_RAD Dataset Public.json"
EXPECTED = f"the folder of data/{{train,test}}-*.parquet, or of {OSF_NAME} and its images"
IMAGE_FOLDERS = ("VQA_RAD Image Folder", "images")


def read(path: Path) -> Listing:
    """All questions of a file, or of a folder: its parquet files if there, else its JSON lists."""
    files = parquet_files(path) or json_files(path, OSF_NAME)
    if files and files[0].suffix != ".json":
        return read_files(path, files, parquet_rows, _row)
    return read_files(path, files, json_list, _osf_row, IMAGE_FOLDERS)


def _row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    names = "question", "answer", "answer_type", "question_type", "modality", "image"
    row = fields(raw, *names, id="qid")
    return {**row, "dataset": "VQA-RAD", "split": split_named(file.name)}


def _osf_row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    row = _row(raw, file) | {"image": raw.get("image_name")}
    if raw.get("phrase_type") is not None:  # it tells the split, but for a row that has none
        row["split"] = split_named(str(raw["phrase_type"])) or "train"
    return row
