"""A user's own questions, one JSON object a line; image paths are relative to the file.

    {"image": "scans/001.png", "question": "Which side is the lesion on?",
     "options": ["left", "right"], "answer": "B", "modality": "MRI", "question_type": "side"}
    {"image": "scans/001.png", "question": "What is shown?", "answer": ["cyst", "simple cyst"]}

on one line each. `image` may be a list, or be left out; no path and no link leads out of the file's
folder. `answer` is a letter or the text of an option. Without `options` it is the right answer in
words, or a list of all that count as right; yes and no become options, unless `answer_type` is
"open". `answer_type` ("open", "closed"), `findings` (a list of phrases, what the image shows),
`split` ("train", "val", "test": it is then kept), `modality` (else "OTHER"), `question_type`,
`reasoning`, `dataset` and `id` are optional.
"""

from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data.readers.common import parse_json, require, text_lines
from data.rows import Listing, fold, read_files

EXPECTED = "one JSON object a line (see data/README.md)"


def read(file: Path) -> Listing:
    """All questions of a jsonl file."""
    return read_files(file, [file] if file.is_file() else [], text_lines, _row)


def _row(line: dict[str, Any], _: Path) -> dict[str, Any]:
    """The common form, with an answer given by letter replaced by the text it stands for."""
    raw = parse_json(line["line"])
    require(isinstance(raw, dict), "row is not an object")
    options, answer = raw.get("options"), raw.get("answer")
    if isinstance(options, list) and isinstance(answer, str) and len(answer.strip()) == 1:
        # the ligature st in capitals is ST
        index = ascii_uppercase.find(answer.strip().upper()) if answer.isascii() else -1
        texts = [fold(str(option)) for option in options]
        if 0 <= index < len(options) and fold(answer) not in texts:  # options ["B", "A"]: text wins
            return {**raw, "answer": options[index]}
    return raw
