"""Every form of data set, as small as possible: three rows, and a test spoils the second."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.conftest import write_image
from tests.data.sets import parquet_bytes, pmc_row, rad_row, slake_row

Rows = list[Any]


@dataclass(frozen=True)
class Family:
    """A form of data set: `row(i)` makes a good row, `write(root, rows)` writes rows and images."""

    row: Callable[[int], dict[str, Any]]
    file: str  # the path of its file of rows
    dump: Callable[[Rows], bytes]
    spec: str  # {} is the folder
    images: str  # the path of the image of row {}; empty if the rows hold the images

    def write(self, root: Path, rows: Rows) -> str:
        """Write a data set of these rows. Returns the name to read it by."""
        return self.write_bytes(root, self.dump(rows))

    def write_bytes(self, root: Path, content: bytes) -> str:
        """Write a data set whose file of rows holds `content`. Returns the name to read it by."""
        file = root / self.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        for i in range(3) if self.images else ():
            write_image(root / self.images.format(i), i)
        return self.spec.format(root)


def _json(rows: Rows) -> bytes:
    return json.dumps(rows).encode()


def _lines(rows: Rows) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _bars(rows: Rows) -> bytes:
    lines = ("|".join(str(cell) for cell in row.values()) for row in rows)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _omni(i: int) -> dict[str, Any]:
    options = {"option_A": "Nothing", "option_B": "Cyst", "option_C": "Abscess"}
    row = {"dataset": "Set", "question_id": f"q{i}", "question_type": "Disease Diagnosis"}
    row |= {"question": f"What is shown, {i}?", "gt_answer": "Cyst", **options}
    return row | {"image_path": f"Images/{i}.png", "modality_type": "CT"}


def _own(i: int) -> dict[str, Any]:
    row = {"image": f"scans/{i}.png", "question": f"Which side, {i}?", "answer": "B", "id": f"q{i}"}
    row |= {"options": ["left", "right"], "modality": "MRI", "question_type": "side"}
    return row | {"reasoning": "so", "findings": ["cyst"], "dataset": "own", "split": "train"}


def _open(i: int) -> dict[str, Any]:
    row = {"image": [f"scans/{i}.png"], "question": f"What is shown, {i}?", "id": f"q{i}"}
    return row | {"answer": ["cyst", "simple cyst"], "answer_type": "open"}


def _huatuo(i: int) -> dict[str, Any]:
    row = {"image": [f"images/{i}.png"], "question": f"Which side, {i}?", "answer": "right"}
    return row | {"options": ["left", "right"], "dataset": "Set", "subset": "MRI", "solution": "B"}


def _rad(i: int) -> dict[str, Any]:
    names = ("qid", "phrase_type", "image_name", "question", "question_type", "answer")
    row = rad_row(i, modality="CT")
    return {name: row[name] for name in (*names, "answer_type", "modality")}


def _slake(i: int) -> dict[str, Any]:
    names = ("img_name", "question", "answer", "q_lang", "modality", "answer_type", "content_type")
    row = slake_row(i)
    return {name: row[name] for name in (*names, "qid")}


def _silvar(i: int) -> dict[str, Any]:
    return {"img_name": f"{i}.png", "question": f"What is wrong, {i}?", "answer": f"A cyst. {i}"}


def _med(i: int) -> dict[str, Any]:
    return {"image": f"synpic{i}", "question": f"what is shown, {i}?", "answer": "cyst#a cyst"}


def _path(i: int) -> dict[str, Any]:
    return {"image": i, "question": f"what is shown, {i}?", "answer": "cyst"}


OMNI = "QA_information/Open-access/Set.json"
SILVAR = "train/dataset_unique_abnormal.json"
FAMILIES = {
    "omnimedvqa": Family(_omni, OMNI, _json, "omnimedvqa:{}", "Images/{}.png"),
    "jsonl": Family(_own, "own.jsonl", _lines, "jsonl:{}/own.jsonl", "scans/{}.png"),
    "jsonl-open": Family(_open, "own.jsonl", _lines, "jsonl:{}/own.jsonl", "scans/{}.png"),
    "huatuo": Family(_huatuo, "list.json", _json, "huatuo:{}", "images/{}.png"),
    "vqa-rad": Family(_rad, "rad.json", _json, "vqa-rad:{}", "images/synpic{}.jpg"),
    "slake": Family(_slake, "train.json", _json, "slake:{}", "imgs/xmlab{}/source.jpg"),
    "silvar-med": Family(_silvar, SILVAR, _json, "silvar-med:{}", "imgs/{}.png"),
    "pmc-vqa": Family(pmc_row, "train.csv", _csv, "pmc-vqa:{}", "images/PMC{}_F1.jpg"),
    "vqa-med-2019": Family(_med, "All_QA_train.txt", _bars, "vqa-med-2019:{}", "x/synpic{}.jpg"),
    "path-vqa": Family(_path, "data/train-0.parquet", parquet_bytes, "path-vqa:{}", ""),
    "vqa-rad-hub": Family(_path, "data/train-0.parquet", parquet_bytes, "vqa-rad:{}", ""),
}
JSON = [name for name, family in FAMILIES.items() if family.dump in (_json, _lines)]
TEXT = ["pmc-vqa", "vqa-med-2019"]  # every cell is text
PARQUET = ["path-vqa", "vqa-rad-hub"]
