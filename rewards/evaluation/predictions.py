"""Rows: a question with a model's answer, written to a file as soon as it is answered."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rewards import answers
from rewards.rules import findings_reward
from rewards.scoring import score
from rewards.words import exact_match, normalised, token_f1

Row = dict[str, Any]


def answered(example: Any, answer: Any) -> Row:
    """Return the row of a question of data/example.py and its `Answer` of models/answering.py.

    `correct` is strict: the letter in the one answer block, or for an open question a right
    wording. The `forced_` fields are the forced choice, None for an open question.
    """
    text, letters, logprobs = answer.text, example.letters, answer.letter_logprobs
    said = _answer(example, text)
    forced = letters[logprobs.index(max(logprobs))] if letters else None
    options, references = example.options, example.right_answers
    fidelity = findings_reward([""], [text], findings=[example.findings], asked=[example.asked])
    return {
        **_question(example),
        "modality": example.modality,
        "question_type": example.question_type,
        "closed": example.closed,
        "completion": text,
        "answer": said,
        "correct": answers.answered_right(text, example.letter, letters, options, references),
        "f1": None if letters else token_f1(said or "", example.references),
        "formatted": answers.is_formatted(text, letters, example.asked != "direct"),
        "answer_logprob": logprobs[letters.index(said)] if letters and said else None,
        "findings": fidelity[0],
        "forced_reasoning": answer.thought,
        "forced_answer": forced,
        "forced_correct": forced == example.letter if letters else None,
        "letter_logprobs": logprobs,
        "length": answer.length,
        "truncated": answer.truncated,
    }


def drawn(example: Any, texts: Sequence[str]) -> Row:
    """Return the row of a question that was answered several times.

    Wordings of an open question are normalised, and a right one is replaced by its first reference,
    so that equal answers compare equal.
    """
    given = [_answer(example, text) for text in texts]
    if not example.options:
        known, said = example.references, [(x and normalised(x)) or None for x in given]
        given = [example.answer if exact_match(x, known) else x for x in said]
    return {**_question(example), "completions": list(texts), "answers": given}


def pass_rates(drawn: Sequence[Row], examples: Any, terms: Any, columns: Callable) -> list[Row]:
    """Return a row a question: id, question, n samples, how many of them are `correct` (strictly),
    and the total reward of each in `totals` (n,).

    `drawn` are the rows of the samples to `examples`, `terms` the rewards, and `columns` tells them
    about a list of examples. Raises RewardError.
    """
    n, found = len(drawn[0]["completions"]), []
    repeated = [example for example in examples for _ in range(n)]
    texts = [text for row in drawn for text in row["completions"]]
    totals, _ = score(terms, [e.prompt for e in repeated], texts, columns(repeated))
    for i, row in enumerate(drawn):
        counts = {"n": n, "correct": row["answers"].count(row["gold"])}
        question = {"id": row["id"], "question": row["question"]}
        found.append(question | counts | {"totals": totals[i * n : (i + 1) * n]})
    return found


def _answer(example: Any, text: str) -> str | None:
    """Return the letter in the one answer block, or its words if the question is open."""
    if example.options:
        return answers.answer_letter(text, example.letters, example.options)
    return answers.answer_text(text)


def _question(example: Any) -> Row:
    """Return everything that an answer depends on, besides the policy.

    The key of an image in a file is its path, so the hash of its bytes stands beside it.
    """
    hashes = [image.sha256 for image in example.images if hasattr(image, "sha256")]
    question = {
        "id": example.id,
        "image": [image.key for image in example.images],
        "question": example.question,
        "options": list(example.options),
        "gold": example.letter or example.answer,
        "asked": example.asked,
    } | ({} if example.options else {"references": list(example.references)})
    return question | ({"image_sha256": hashes} if hashes else {})


def scored_by(row: Row, scorer: str) -> Row:
    """Return the row as a scorer reads it: "ours" leaves it, "medvlm-r1" uses the parser behind the
    published figures of MedVLM-R1."""
    if scorer == "ours" or not row["options"]:  # that parser has no rule for an open question
        return row
    if "completions" in row:
        return row | {"answers": [answers.medvlm_r1_letter(text) for text in row["completions"]]}
    answer = answers.medvlm_r1_letter(row["completion"])
    formatted = bool(answers.medvlm_r1_format(row["completion"]))
    return row | {"answer": answer, "correct": answer == row["gold"], "formatted": formatted}


def kept_rows(
    file: Path, examples: Sequence[Any], predict: Callable[..., Iterable[Row]], write: bool = True
) -> list[Row]:
    """Return the row of each example, in order, from `file` or predicted now and appended to it.

    An evaluation that was interrupted continues where it stopped. If the image, the question or the
    options of an id have changed, it is answered again. `write` False leaves the file to another
    process. Raises OSError if it cannot be written.
    """
    rows, missing = _read_rows(file, write), []
    for example in examples:
        question, row = _question(example), rows.get(example.id, {})
        if not question.items() <= row.items():
            missing.append(example)
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file if write else Path(os.devnull)).open("a", encoding="utf-8") as out:
        for row in predict(missing):
            rows[row["id"]] = row
            print(json.dumps(row), file=out, flush=True)
    return [rows[e.id] | _facts(e) for e in examples]


def _facts(example: Any) -> Row:
    """Return what the data says about a question and no answer depends on.

    `finding` is what the image shows, if it is known to be one finding, else None.
    """
    finding = example.findings[0] if len(example.findings or ()) == 1 else None
    facts = {"constant": example.constant, "closed": example.closed, "patient": example.patient}
    return facts | {"finding": finding, "question_type": example.question_type}


def _read_rows(file: Path, mend: bool) -> dict[str, Row]:
    """Return the rows of a file by question. With `mend`, remove an incomplete last line."""
    rows, whole = {}, True
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except ValueError:
            whole = False
    if not whole and mend:
        mended = file.with_suffix(".tmp")
        write_rows(mended, rows.values())
        mended.replace(file)
    return rows


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write a file of rows, a JSON line each."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
