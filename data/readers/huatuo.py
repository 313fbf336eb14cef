"""FreedomIntelligence/Medical_Multimodal_Evaluation_Data, and MedVLM-R1's list of 900 questions.

One JSON list, images beside it. A row: {"image": ["images/x.png"], "question", "options": [..],
"answer": text, "dataset", "subset": modality}. MedVLM-R1's rows add "solution" (the letter), which
must agree, and "problem" (the question with its options, not used).
"""

from pathlib import Path
from typing import Any

from data.readers.common import fields, json_files, json_list
from data.rows import Listing, read_files

HUB_NAME = "medical_multimodel_evaluation_data.json"  # spelt so in the hub repository
EXPECTED = f"a JSON list such as {HUB_NAME}, or its folder, with images/ unpacked beside it"


def read(path: Path) -> Listing:
    """All questions of a JSON file, or of a folder: its hub file if there, else every JSON list."""
    return read_files(path, json_files(path, HUB_NAME), json_list, _row)


def _row(raw: dict[str, Any], _: Path) -> dict[str, Any]:
    return {
        **fields(raw, "question", "answer", "dataset", label="solution", modality="subset"),
        "image": raw.get("image") or "",
        "options": raw.get("options") or [],  # never an open question
    }
