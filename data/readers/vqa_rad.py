"""VQA-RAD (Lau et al. 2018): radiographs, CT and MRI with clinicians' questions, two forms.

The hub's `data/{train,test}-*.parquet` has image, question and answer: closed are the questions
that are answered with yes or no. The OSF JSON has the images in a folder beside it. A row: {"qid",
"image_name", "question", "question_type", "answer", "answer_type": "CLOSED " (stray space),
"phrase_type": "test_freeform" (test split), ...}. It names the organ, not the modality.

The published splits share most images: the training questions about images of the test are left
out, and a model trained here has seen far fewer than one trained on all 1,793.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.readers.common import fields, image_finder, json_list, split_named, visible
from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files

OSF_NAME = "VQA_RAD Dataset Public.json"
EXPECTED = (
    "the folder that holds data/train-*.parquet and data/test-*.parquet, or "
    f"{OSF_NAME} and its images"
)
IMAGE_FOLDERS = ("VQA_RAD Image Folder", "images")


def read(path: Path) -> Listing:
    """All questions of a file, or of a folder: its parquet files if there, else its JSON lists."""
    root = path.parent if path.is_file() else path
    public = root / OSF_NAME
    files = [path] if path.is_file() else parquet_files(path)
    if not files:
        files = [public] if public.is_file() else visible(root.glob("*.json"))
    find = image_finder(root, IMAGE_FOLDERS) if files and files[0].suffix == ".json" else None

    def to_row(raw: dict[str, Any]) -> dict[str, Any]:
        return {
            **fields(
                raw, "question", "answer", "answer_type", "question_type", "modality", "split"
            ),
            "id": raw.get("qid"),
            "image": find(raw.get("image_name")) if find else raw["image"],
            "dataset": "VQA-RAD",
        }

    return read_files(path, files, _json_rows if find else parquet_rows, to_row)


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows with their split: by the phrase type, or where there is none by the file's name."""
    for number, row in json_list(file):
        if isinstance(row, dict):
            phrase = row.get("phrase_type")
            is_test = isinstance(phrase, str) and phrase.strip().lower().startswith("test")
            named = split_named(file.name) if phrase is None else "train"
            row = {**row, "split": "test" if is_test else named}
        yield number, row
