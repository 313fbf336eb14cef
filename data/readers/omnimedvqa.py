"""OmniMedVQA in its own layout: Images/ and QA_information/{Open-access,Restricted-access}/*.json.

A row: {"dataset", "question_id", "question_type", "question", "gt_answer", "image_path",
"option_A", ... "option_D", "modality_type"}. Rows with two options have no option_C and option_D,
or blank ones; one has `modality` for `modality_type`; an answer may have a stray full stop.
"""

from pathlib import Path
from typing import Any

from data.readers.common import NoFiles, fields, json_list, visible
from data.rows import Listing, read_files

ACCESS = ("Open-access", "Restricted-access")
EXPECTED = "the folder that holds Images/ and QA_information/Open-access/*.json (omnimedvqa:FOLDER)"


def read(folder: Path) -> Listing:
    """All questions of an OmniMedVQA folder, or of the OmniMedVQA folder inside it."""
    for root in (folder, folder / "OmniMedVQA"):
        places = [root / "QA_information" / access for access in ACCESS]
        files = [file for place in places for file in visible(place.glob("*.json"))]
        if files and (root / "Images").is_dir():
            return read_files(root, files, json_list, _row)
    raise NoFiles


def _row(raw: dict[str, Any], _: Path) -> dict[str, Any]:
    return {
        **fields(raw, "question", "question_type", "dataset", id="question_id", answer="gt_answer"),
        "image": raw.get("image_path") or "",
        "options": [raw.get(f"option_{letter}") for letter in "ABCD"],
        "modality": raw.get("modality_type") or raw.get("modality") or "unknown",
    }
