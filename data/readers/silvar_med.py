"""SilVar-Med (Pham et al. 2025): reasons for what is abnormal in images of SLAKE.

{train,test}/dataset_unique_abnormal.json is a list of {"img_name", "question", "answer"}; where
question and answer are lists, their elements belong together in order, and each pair is an example
(the authors' code draws one of them at random). An answer is a long text that reasons and
concludes; nothing marks where the one ends and the other begins, so the whole of it is both the
reference answer and the reference reasoning. Modality, licence and size are not known to us, nor
what RARL changed. Its images are SLAKE's: SLAKE is no unseen source for what is trained here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.readers.common import BadRow, fields, json_list, split_named, visible
from data.rows import Listing, read_files

NAME = "dataset_unique_abnormal.json"
EXPECTED = f"train/{NAME} and test/{NAME}, and SLAKE's imgs/ in the folder or beside it"


def read(folder: Path) -> Listing:
    """All pairs of the files under a folder; images in SLAKE's imgs/, in it or beside it."""
    below = sorted(images.parent for images in folder.rglob("imgs"))
    places = (folder, *folder.absolute().parents[:2], *below)
    root = next((place for place in places if (place / "imgs").is_dir()), folder)
    return read_files(root, visible(folder.rglob(NAME)), _pairs, _row, ("imgs",))


def _row(raw: dict[str, Any], file: Path) -> dict[str, Any]:
    names = "id", "question", "answer", "modality"
    row = fields(raw, *names, reasoning="answer", image="img_name")
    return {**row, "dataset": "SilVar-Med", "split": split_named(file.parent.name)}


def _pairs(file: Path) -> Iterator[tuple[int | str, Any]]:
    """(index of the row, one of its pairs of question and answer)."""
    name = split_named(file.parent.name) or file.stem
    for number, row in json_list(file):
        if not isinstance(row, dict):
            yield number, row
            continue
        sides = [row.get("question"), row.get("answer")]
        questions, answers = (s or [None] if isinstance(s, list) else [s] for s in sides)
        if len(questions) != len(answers):
            yield number, BadRow("questions and answers differ in number")
            continue
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            id = f"{name}#{number}" + (f".{i}" if len(questions) > 1 else "")
            yield number, {**row, "id": id, "question": question, "answer": answer}
