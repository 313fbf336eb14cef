"""OmniMedVQA in its own layout: Images/ and QA_information/{Open-access,Restricted-access}/*.json.

A row: {"dataset", "question_id", "question_type", "question", "gt_answer", "image_path",
"option_A", ... "option_D", "modality_type"}. Rows with two options have no option_C and option_D,
or blank ones; one has `modality` for `modality_type`; an answer may have a stray full stop.
"""

from pathlib import Path
from typing import Any

from data.readers.common import json_list, visible
from data.rows import Listing, read_files
from grpo.settings.errors import UsageError

ACCESS = ("Open-access", "Restricted-access")


def read(folder: Path) -> Listing:
    """All questions of an OmniMedVQA folder, or of the OmniMedVQA folder inside it."""
    for root in (folder, folder / "OmniMedVQA"):
        if (root / "QA_information").is_dir() and (root / "Images").is_dir():
            files = [
                file
                for access in ACCESS
                for file in visible((root / "QA_information" / access).glob("*.json"))
            ]
            return read_files(root, files, json_list, _row)
    raise UsageError(
        f"omnimedvqa:{folder}: no OmniMedVQA there; expected the folder that holds Images/ and "
        f"QA_information/Open-access/*.json (give it as omnimedvqa:FOLDER)"
    )


def _row(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": raw.get("question_id"),
        "image": raw.get("image_path") or "",
        "question": raw.get("question"),
        "options": [raw.get(f"option_{letter}") for letter in "ABCD"],
        "answer": raw.get("gt_answer"),
        "modality": raw.get("modality_type") or raw.get("modality") or "unknown",
        "question_type": raw.get("question_type"),
        "dataset": raw.get("dataset"),
    }
