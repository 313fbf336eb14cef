"""FreedomIntelligence/Medical_Multimodal_Evaluation_Data, and MedVLM-R1's list of 900 questions.

One JSON list, images beside it. A row: {"image": ["images/x.png"], "question", "options": [..],
"answer": text, "dataset", "subset": modality}. MedVLM-R1's rows add "solution" (the letter), which
must agree, and "problem" (the question with its options, not used).
"""

from pathlib import Path
from typing import Any

from data.readers.common import BadRow, json_list, visible
from data.rows import Listing, fold, read_files
from grpo.settings.errors import UsageError

HUB_NAME = "medical_multimodel_evaluation_data.json"  # spelt so in the hub repository


def read(path: Path) -> Listing:
    """All questions of a JSON file, or of a folder: its hub file if there, else every JSON list."""
    if path.is_file():
        return read_files(path.parent, [path], json_list, _row)
    hub = path / HUB_NAME
    files = [hub] if hub.is_file() else visible(path.glob("*.json"))
    if not files:
        raise UsageError(
            f"huatuo:{path}: no data there; expected a JSON list such as {HUB_NAME}, or its "
            f"folder, with images/ unpacked beside it"
        )
    return read_files(path, files, json_list, _row)


def _row(raw: dict[str, Any]) -> dict[str, Any]:
    options, answer, letter = raw.get("options"), raw.get("answer"), raw.get("solution")
    if isinstance(options, list) and isinstance(letter, str) and isinstance(answer, str):
        index = ord(letter) - ord("A") if len(letter) == 1 else -1
        if not (0 <= index < len(options) and fold(str(options[index])) == fold(answer)):
            raise BadRow("letter and answer disagree")
    return {
        "image": raw.get("image") or "",
        "question": raw.get("question"),
        "options": [] if options is None else options,  # never an open question
        "answer": answer,
        "modality": raw.get("subset"),
        "dataset": raw.get("dataset"),
    }
