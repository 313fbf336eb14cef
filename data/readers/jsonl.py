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

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data.readers.common import BadRow, parse_json, read_text
from data.rows import Listing, fold, read_files

EXPECTED = "one JSON object a line (see data/README.md)"


def read(file: Path) -> Listing:
    """All questions of a jsonl file."""
    return read_files(file, [file] if file.is_file() else [], _lines, _row)


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, row or what is wrong with it); blank lines are nothing."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except BadRow as bad:
                yield number, bad


def _row(raw: dict[str, Any]) -> dict[str, Any]:
    """The common form, with an answer given by letter replaced by the text it stands for."""
    options, answer = raw.get("options"), raw.get("answer")
    if isinstance(options, list) and isinstance(answer, str) and len(answer.strip()) == 1:
        letter = answer.strip() if answer.isascii() else ""  # the ligature st in capitals is ST
        index = ascii_uppercase.find(letter.upper()) if letter else -1
        as_text = fold(answer) in [
            fold(str(option)) for option in options
        ]  # options ["B", "A"]: text wins
        if 0 <= index < len(options) and not as_text:
            return {**raw, "answer": options[index]}
    return raw
