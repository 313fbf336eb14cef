"""SLAKE (Liu et al. 2021): {train,validation,test}.json with the images in imgs/; English only.

A row: {"img_name": "xmlab1/source.jpg", "question", "answer", "q_lang": "en" or "zh", "modality":
"CT", "X-Ray" or "MRI", "answer_type": "OPEN" or "CLOSED", "content_type", "qid", ...}. Some closed
questions are not about yes and no ("Which is bigger, lung or liver?"): they are asked in words.
"""

from pathlib import Path
from typing import Any

from data.readers.common import fields, json_list, require, split_named, visible
from data.rows import NOT_ENGLISH, Listing, read_files

EXPECTED = "the folder that holds train.json, validation.json, test.json and imgs/"
NAMES = ("train", "validation", "validate", "val", "test")


def read(folder: Path) -> Listing:
    """All English questions of a SLAKE folder, or of the Slake1.0 folder inside it."""
    for root in (folder, *sorted(path for path in folder.glob("[Ss]*") if path.is_dir())):
        files = [file for file in visible(root.glob("*.json")) if file.stem in NAMES]
        if files:
            break
    return read_files(root, files, json_list, _row, ("imgs",))


def _row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    require(raw.get("q_lang", "en") == "en", NOT_ENGLISH)
    renamed = {"id": "qid", "question_type": "content_type", "image": "img_name"}
    row = fields(raw, "question", "answer", "answer_type", "modality", **renamed)
    return {**row, "dataset": "SLAKE", "split": split_named(file.name)}
