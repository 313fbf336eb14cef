"""ImageCLEF's VQA-Med 2019 (Ben Abacha et al.): lines of text, and the images as synpic*.jpg.

Training and validation: `image|question|answer` in QAPairsByCategory/C1_Modality_train.txt and so
on, or in All_QA_Pairs_train.txt. Test: `image|category|question|answer` in
VQAMed2019_Test_Questions_w_Ref_Answers.txt. Several right answers are separated by `#`. What is
asked of modality is a question like the others; the rows themselves name no modality.
"""

import re
from pathlib import Path
from typing import Any

from data.readers.common import fields, require, split_named, text_lines, visible
from data.rows import Listing, read_files

TEST_NAME = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
EXPECTED = f"*_train.txt and *_val.txt of QAPairsByCategory, {TEST_NAME}, and their images"


def read(folder: Path) -> Listing:
    """All questions of the files under a folder, however deep the archives have put them."""
    files = [file for file in visible(folder.rglob("*.txt")) if _is_read(file)]
    by_category = {split_named(file.stem) for file in files if _category(file)}
    files = [f for f in files if _category(f) or split_named(f.stem) not in by_category]
    return read_files(folder, files, text_lines, _row, ())


def _row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    split = split_named(file.stem)
    form = "image|category|question|answer" if split == "test" else "image|question|answer"
    names = form.split("|")
    cells = [cell.strip() for cell in raw["line"].split("|", len(names) - 1)]
    require(len(cells) == len(names), f"line is not of the form {form}")
    row = dict(zip(names, cells, strict=True))
    known = {"dataset": "VQA-Med-2019", "split": split, "answer": row["answer"].split("#")}
    kind = row.get("category", _category(file))
    return {**fields(row, "image", "question"), **known, "question_type": kind}


def _is_read(file: Path) -> bool:
    """Whether it is one of the files of questions with answers, by its name."""
    split = split_named(file.stem)
    if split == "test":  # there is one without answers, too
        return "answer" in file.stem.lower()
    return bool(split) and (bool(_category(file)) or "qa" in file.stem.lower())


def _category(file: Path) -> str:
    """ "modality" of C1_Modality_train.txt."""
    found = re.match(r"C\d_([A-Za-z]+)_", file.stem)
    return found[1].lower() if found else ""
