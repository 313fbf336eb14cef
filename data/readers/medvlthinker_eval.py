"""MedVLThinker-Eval (UCSC-VLAA): the tests of six sets in one form, data/test-*.parquet of the hub.

A row: images (a list of structs {bytes, path}, also empty), question, options (JSON text, an object
of letters and texts), answer_label (a letter), answer (the text of that option), reasoning,
dataset_name, dataset_index (its number in that set), misc (not read). All are test questions. Each
set is a modality: pmc_vqa, MMMU-medical, MedXpertQA-MM, pathvqa_closed, slake_closed or
vqa_rad_closed.
"""

from pathlib import Path
from typing import Any

from data.readers.common import fields, parse_json, require
from data.readers.parquet import parquet_files, parquet_rows
from data.rows import Listing, read_files

EXPECTED = "the folder that holds data/test-*.parquet"


def read(path: Path) -> Listing:
    """All questions of a parquet file, or of those in a folder or its data/."""
    return read_files(path, parquet_files(path), parquet_rows, _row)


def _row(raw: dict[str, Any], _: Path) -> dict[str, Any]:
    options, name = parse_json(str(raw.get("options"))), raw.get("dataset_name")
    require(isinstance(options, dict), "options are not a JSON object")
    return {
        **fields(raw, "question", "answer", "reasoning", "image", label="answer_label"),
        **{"dataset": name, "modality": name, "id": f"{name}#{raw.get('dataset_index')}"},
        "options": [options[letter] for letter in sorted(options)],
        "split": "test",
    }
