"""PMC-VQA (Zhang et al. 2023): figures of papers, four choices, CSV files and a folder of images.

Columns: Figure_path, Question, Anwser (so spelt) or Answer, Choice A to Choice D (values such as
" B:Focal uptake"), Answer_label; in version 2 also Caption, which is not shown. Version 2
(train_2.csv, test_2.csv: parts of figures) is read where it is there, else version 1. The latter's
test_clean.csv, a part of test.csv checked by hand, takes the place of test.csv where it is there.
No modality is named.
"""

import re
from pathlib import Path
from typing import Any

from data.readers.common import csv_rows, fields, split_named, visible
from data.rows import Listing, read_files

VERSIONS = (("train_2", "test_2"), ("train", "test_clean"), ("train", "test"))
IMAGE_FOLDERS = ("images_2", "figures", "images")
EXPECTED = "the folder of train_2.csv, test_2.csv and unpacked images_2.zip (or all without _2)"


def read(path: Path) -> Listing:
    """All questions of a CSV file, or of a folder in one version."""
    files = [path] if path.is_file() else _files(path)
    return read_files(path, files, csv_rows, _row, IMAGE_FOLDERS)


def _row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    row = _choices(raw) | fields(raw, image="Figure_path", question="Question")
    return {**row, "dataset": "PMC-VQA", "split": split_named(file.name)}


def _files(folder: Path) -> list[Path]:
    whole = [[folder / f"{name}.csv" for name in names] for names in VERSIONS]
    there = [[file for file in files if file.is_file()] for files in whole]
    # the first version that is whole, else whatever there is
    return max(there, key=len) or visible(folder.glob("*.csv"))


def _choices(raw: dict[str, Any]) -> dict[str, Any]:
    """`options`, without their letters, and the right one, by its letter, its text, or both.

    Where no column holds the letter (version 2), a letter in the column of the answer is one.
    """
    options = [re.sub(rf"^\s*{x}\s*:\s*", "", raw.get(f"Choice {x}", "")) for x in "ABCD"]
    answer = raw.get("Answer", raw.get("Anwser", ""))
    label = raw.get("Answer_label", raw.get("Anwser_label"))
    if label is None and len(answer.strip(" .:")) == 1:
        answer, label = "", answer
    return {"options": options, "answer": answer, "label": label}
