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

from data.readers.common import fields, image_finder, json_files, json_list, split_named
from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files

OSF_NAME = "VQA_RAD Dataset Public.json"
EXPECTED = f"the folder of data/{{train,test}}-*.parquet, or of {OSF_NAME} and its images"
IMAGE_FOLDERS = ("VQA_RAD Image Folder", "images")


def read(path: Path) -> Listing:
    """All questions of a file, or of a folder: its parquet files if there, else its JSON lists."""
    root = path.parent if path.is_file() else path
    files = parquet_files(path) or json_files(path, OSF_NAME)
    find = image_finder(root, IMAGE_FOLDERS) if files and files[0].suffix == ".json" else None

    def to_row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
        return {
            **fields(raw, "question", "answer", "answer_type", "question_type", "modality"),
            **fields(raw, id="qid"),
            "image": find(raw.get("image_name")) if find else raw["image"],
            "dataset": "VQA-RAD",
            "split": _split(raw.get("phrase_type") if find else None, file),
        }

    return read_files(path, files, json_list if find else parquet_rows, to_row)


def _split(phrase: Any, file: Path) -> str:
    """The split of a row: by its phrase type, or where there is none by the file's name."""
    if phrase is None:
        return split_named(file.name)
    is_test = isinstance(phrase, str) and phrase.strip().lower().startswith("test")
    return "test" if is_test else "train"
