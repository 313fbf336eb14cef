"""One question and how it was answered: a row, kept in a file as soon as it is there."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rewards.parse import answer_letter, is_formatted, medvlm_r1_format, medvlm_r1_letter

Row = dict[str, Any]


def answered(example: Any, answer: Any) -> Row:
    """The row of a question of data/example.py and the `Answer` of models/answering.py to it.

    Strictly right is the letter in the one answer block; `forced_` fields are the forced choice.
    """
    letters, logprobs = example.letters, answer.letter_logprobs
    letter = answer_letter(answer.text, letters, example.options)
    forced = letters[max(range(len(letters)), key=logprobs.__getitem__)]
    return {
        **_question(example),
        "modality": example.modality,
        "question_type": example.question_type,
        "completion": answer.text,
        "answer": letter,
        "correct": letter == example.letter,
        "formatted": is_formatted(answer.text, letters, example.asked != "direct"),
        "answer_logprob": logprobs[letters.index(letter)] if letter else None,
        "forced_reasoning": answer.thought,
        "forced_answer": forced,
        "forced_correct": forced == example.letter,
        "letter_logprobs": logprobs,
        "length": answer.length,
        "truncated": answer.truncated,
    }


def drawn(example: Any, texts: Sequence[str]) -> Row:
    """The row of a question that was answered several times."""
    answers = [answer_letter(text, example.letters, example.options) for text in texts]
    return {**_question(example), "completions": list(texts), "answers": answers}


def _question(example: Any) -> Row:
    """All that an answer depends on but the policy: an answer to anything else is no answer."""
    return {
        "id": example.id,
        "image": [image.key for image in example.images],
        "question": example.question,
        "options": list(example.options),
        "gold": example.letter,
        "asked": example.asked,
    }


def scored_by(row: Row, scorer: str) -> Row:
    """The row as another scorer reads it: "ours" (as it is) or "medvlm-r1", the parser that the
    published figures of MedVLM-R1 were made with."""
    if scorer == "ours":
        return row
    if "completions" in row:
        return row | {"answers": [medvlm_r1_letter(text) for text in row["completions"]]}
    answer = medvlm_r1_letter(row["completion"])
    formatted = bool(medvlm_r1_format(row["completion"]))
    return row | {"answer": answer, "correct": answer == row["gold"], "formatted": formatted}


def kept_rows(
    file: Path, examples: Sequence[Any], predict: Callable[[list[Any]], Iterable[Row]]
) -> list[Row]:
    """The row of each example, in order: from `file`, or predicted now and added to it at once.

    What was cut off goes on where it stopped. A row about another image, question or options of
    the same id is answered again. Raises OSError where the file cannot be written.
    """
    rows = _read_rows(file)
    missing = [e for e in examples if not _answers(rows.get(e.id, {}), e)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        for row in predict(missing):
            rows[row["id"]] = row
            print(json.dumps(row), file=out, flush=True)
    return [rows[example.id] | {"constant": example.constant} for example in examples]


def _answers(row: Row, example: Any) -> bool:
    return all(row.get(name) == value for name, value in _question(example).items())


def _read_rows(file: Path) -> dict[str, Row]:
    """The rows of a file by question. A line cut off while it was written is taken out of it."""
    rows, whole = {}, True
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except ValueError:
            whole = False
    if not whole:
        mended = file.with_suffix(".tmp")
        mended.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()))
        mended.replace(file)
    return rows
