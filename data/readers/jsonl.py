"""A user's own questions, one JSON object a line; image paths are relative to the file.

    {"image": "scans/001.png", "question": "Which side is the lesion on?",
     "options": ["left", "right"], "answer": "B", "modality": "MRI", "question_type": "side"}
    {"image": "scans/001.png", "question": "What is shown?", "answer": ["cyst", "simple cyst"]}

on one line each; a file that is one JSON list of such objects is read, too. `image` may be a list,
and may name a folder that holds a DICOM series; no path and no link leads out of the file's folder.
`answer` is a letter ("B", "b)", "option B") or the text of an option; if it can be read as both and
they differ, the row is left out. Without `options` it is the right answer in words, or a list of
all that count as right; yes and no become options, unless `answer_type` is "open". `answer_type`
("open", "closed"), `findings` (a list of phrases, what the image shows), `split` ("train", "val",
"test": it is then kept), `patient` (its name, all of whose images are in one split), `modality`
(else "OTHER"), `question_type`, `reasoning`, `dataset` and `id` are optional.

Names are read in capitals, too, and under those of `NAMES`: the first that holds something counts.
Options may be an object {"A": .., "B": ..}, or the keys A, B, .. or option_A, option_B, .. of the
row. Other keys are named on stderr once, and are columns for users' reward functions.

If some rows of a file have images (options), a row without is left out, with a reason that names
its keys: write `"image": []` for a question without an image, and `"answer_type": "open"` or a list
of answers for an open one. So is a row that names an image under a key that is not read only.
"""

import re
import sys
from itertools import takewhile
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from data.readers.common import BadRow, Rows, json_list, parse_json, require, text_lines
from data.rows import TEXTS, YES_NO, Listing, fold, read_files
from grpo.settings.errors import one_line

EXPECTED = "one JSON object a line (see data/README.md)"
# Each field, and what else it is called.
NAMES = {
    "image": "images image_path image_paths image_file image_url img imgs img_path img_name",
    "question": "query problem prompt",
    "options": "choices candidates",
    "answer": "answers gt_answer ground_truth correct_answer answer_label answer_letter response",
    "modality": "modality_type image_modality",
    "id": "question_id qid",
    "patient": "patient_id subject_id",
}
NAMES = dict.fromkeys(("answer_type", "findings", "split", *TEXTS), "") | NAMES
FIELD = {name: field for field in NAMES for name in (field, *NAMES[field].split())}
OPTION = re.compile(r"(?:(?:option|choice)_?)?([a-z])")
PICTURE = re.compile(r"data:image/.*|.*\.(png|jpe?g|gif|webp|tiff?|bmp|dcm|nii|nii\.gz)", re.I)


def read(file: Path) -> Listing:
    """All questions of a jsonl file."""
    listing = read_files(file, [file] if file.is_file() else [], _rows, lambda row, _: row)
    if extra := sorted({key for example in listing.examples for key in example.extra}):
        said = f"{file}: keys that are no field, columns for reward functions: {', '.join(extra)}"
        print(one_line(said), file=sys.stderr)
    return listing


def _rows(file: Path) -> Rows:
    """(number, row in the common form or a `BadRow`) of all lines, or of one JSON list."""
    try:
        values = list(json_list(file))
    except BadRow:  # one object a line, then
        lines = text_lines(file)
        values = [(n, row["line"] if isinstance(row, dict) else row) for n, row in lines]
    found = [(number, _row(value)) for number, value in values]
    rows = [row for _, row in found if isinstance(row, dict)]
    has_images, has_options = (any(row.get(name) for row in rows) for name in ("image", "options"))
    for number, row in found:
        if isinstance(row, dict) and (lacking := _lacking(row, has_images, has_options)):
            row = BadRow(one_line(f"no {lacking}; keys: {row['keys']}")[:150])
        yield number, row


def _row(value: Any) -> dict[str, Any] | BadRow:
    """A row, or its line, in the common form, with its other fields as `extra` and all `keys`."""
    try:
        if isinstance(value, BadRow):
            raise value
        raw = parse_json(value) if isinstance(value, str) else value
        require(isinstance(raw, dict), "row is not an object")
    except BadRow as bad:
        return bad
    row: dict[str, Any] = {"keys": ", ".join(raw)}
    extra: dict[str, Any] = {}
    for key in sorted(raw, key=lambda key: key not in NAMES):  # its own name comes first
        field = FIELD.get(_name(key))
        if field and row.get(field) in (None, "", []):
            row[field] = raw[key]
        elif raw[key] is not None:
            extra[key] = raw[key]
    choices = row.get("options") or extra
    if isinstance(choices, dict):
        keys = {match[1]: key for key in choices if (match := OPTION.fullmatch(_name(key)))}
        letters = list(takewhile(keys.__contains__, ascii_lowercase))
        if len(letters) > 1:
            row["options"] = [choices[keys[letter]] for letter in letters]
            extra = {key: extra[key] for key in extra if key not in keys.values()}
    if isinstance(row.get("answer"), str):
        row["label"] = row["answer"]
    return {**row, "extra": extra}


def _name(key: str) -> str:
    return re.sub(r"[\s-]", "_", key.strip().lower())


def _lacking(row: dict[str, Any], has_images: bool, has_options: bool) -> str:
    """What a row lacks that others of its file have; "" if nothing."""
    answer, more = row.get("answer"), row["extra"].values()
    texts = [text for value in more for text in (value if isinstance(value, list) else [value])]
    hidden = any(isinstance(text, str) and PICTURE.fullmatch(text) for text in texts)
    if row.get("image") is None and (has_images or hidden):
        return "image (write [] for none)"
    told = {fold(text) for text in (answer, row.get("answer_type")) if isinstance(text, str)}
    is_told = isinstance(answer, list) or told & {"open", *YES_NO}
    if row.get("options") is None and has_options and not is_told:
        return 'options (write answer_type "open" for none)'
    return ""
