"""Rows: how an answer is read, kept in a file, and read again by another scorer."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.example import VQAExample
from data.images import ImageFile
from rewards.evaluation.predictions import answered, drawn, kept_rows, scored_by, write_rows

EXAMPLE = VQAExample(
    "q1", (SimpleNamespace(key="a.png"),), "Which side?", ("left", "right"), 1, "MRI", "side"
)


def said(text: str, logprobs=(-2.0, -0.1)) -> SimpleNamespace:
    fields = {"length": 9, "truncated": False, "thought": "x", "letter_logprobs": list(logprobs)}
    return SimpleNamespace(text=text, **fields)


def test_strict_and_forced_answers_are_apart():
    row = answered(EXAMPLE, said("<think>x</think><answer>A</answer>"))
    assert (row["answer"], row["correct"], row["formatted"]) == ("A", False, True)
    assert (row["forced_answer"], row["forced_correct"]) == ("B", True)
    assert row["answer_logprob"] == -2.0
    row = answered(EXAMPLE, said("So B."))
    assert (row["answer"], row["correct"], row["formatted"]) == (None, False, False)
    assert row["forced_correct"]
    assert row["answer_logprob"] is None


def test_asked_directly_the_answer_block_stands_alone():
    direct = replace(EXAMPLE, asked="direct")
    assert answered(direct, said("<answer>B</answer>"))["formatted"]
    assert not answered(direct, said("<think>x</think><answer>B</answer>"))["formatted"]
    assert not answered(EXAMPLE, said("<answer>B</answer>"))["formatted"]


def test_the_published_scorer_reads_its_own_way():
    row = answered(EXAMPLE, said("Well: <answer>right</answer><answer>B</answer>"))
    assert row["answer"] is None
    again = scored_by(row, "medvlm-r1")
    assert (again["answer"], again["correct"], again["formatted"]) == ("B", True, False)
    assert scored_by(row, "ours") is row
    several = drawn(EXAMPLE, ["<answer>right</answer>", "<answer>A</answer>"])
    assert several["answers"] == ["B", "A"]
    assert scored_by(several, "medvlm-r1")["answers"] == [None, "A"]


@pytest.fixture
def asked() -> list[str]:
    return []


def examples(*names: str) -> list[VQAExample]:
    return [replace(EXAMPLE, id=name) for name in names]


def row(example: VQAExample) -> dict:
    return answered(example, said(f"<answer>{example.id}</answer>"))


def test_nothing_is_asked_twice_and_the_order_is_the_examples(tmp_path, asked):
    def predict(missing):
        asked.extend(e.id for e in missing)
        return (row(example) for example in missing)

    file = tmp_path / "predictions" / "rows.jsonl"
    kept_rows(file, examples("a", "b"), predict)
    rows = kept_rows(file, examples("c", "b", "a"), predict)
    assert asked == ["a", "b", "c"]
    assert [row["completion"][8] for row in rows] == ["c", "b", "a"]
    assert len(file.read_text().splitlines()) == 3


def test_what_was_answered_before_a_crash_is_kept(tmp_path, asked):
    def predict(missing):
        for example in missing:
            if example.id == "b" and not asked:
                asked.append("crash")
                raise KeyboardInterrupt
            yield row(example)

    file = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        kept_rows(file, examples("a", "b"), predict)
    with file.open("a") as out:
        out.write('{"id": "b", "half')
    assert [row["id"] for row in kept_rows(file, examples("a", "b"), predict)] == ["a", "b"]
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_an_answer_to_something_else_of_the_same_id_is_none(tmp_path):
    wrong = []
    for i, changed in enumerate((
        {"gold": 0},
        {"options": ("left", "both")},
        {"question": "Where?"},
        {"asked": "direct"},
        {"images": (SimpleNamespace(key="b.png"),)},
    )):  # fmt: skip
        asked = []

        def predict(missing, asked=asked):
            asked.extend(missing)
            return (row(example) for example in missing)

        file = tmp_path / f"rows-{i}.jsonl"
        kept_rows(file, examples("a", "b"), predict)
        (first, second) = examples("a", "b")
        mended = replace(second, **changed)
        kept_rows(file, [first, mended], predict)
        again = kept_rows(file, [first, mended], predict)[1]["gold"]
        if asked[2:] != [mended] or again != mended.letter:
            wrong.append((changed, asked, again))
    assert wrong == []


def test_whether_an_answer_is_constant_is_the_datas_to_say(tmp_path):
    (example,) = examples("a")
    kept_rows(tmp_path / "r", [example], lambda missing: map(row, missing))
    again = replace(example, constant=True)
    assert kept_rows(tmp_path / "r", [again], lambda missing: [])[0]["constant"]


def test_the_one_known_finding_is_the_datas_to_say(tmp_path):
    found = {}
    for findings in (None, (), ("small cyst",), ("small cyst", "large cyst")):
        (example,) = examples("a")
        known = replace(example, findings=findings)
        found[findings] = kept_rows(tmp_path / "r", [known], lambda missing: map(row, missing))
    assert {findings: kept["finding"] for findings, (kept,) in found.items()} == {
        None: None, (): None, ("small cyst",): "small cyst", ("small cyst", "large cyst"): None,
    }  # fmt: skip


def in_file(example: VQAExample, folder: Path, content: bytes) -> VQAExample:
    """The example about an image in a file of that content."""
    (folder / "a.png").write_bytes(content)
    return replace(example, images=(ImageFile(folder / "a.png"),))


def test_an_answer_is_kept_for_the_same_bytes_only(tmp_path):
    asked = []

    def predict(missing):
        asked.extend(missing)
        return map(row, missing)

    (example,) = examples("a")
    for content in (b"one", b"one", b"two", b"two"):
        kept_rows(tmp_path / "r", [in_file(example, tmp_path, content)], predict)
    assert len(asked) == 2
    pair = replace(example, images=(*asked[0].images, SimpleNamespace(key="drawn")))
    assert "image_sha256" in row(pair)
    assert "image_sha256" not in row(example)  # the key of a drawn image names its pixels


def test_rows_without_the_hash_of_their_image_are_answered_again(tmp_path):
    (example,) = examples("a")
    known = in_file(example, tmp_path, b"one")
    old = row(known)
    del old["image_sha256"]
    write_rows(tmp_path / "one", [old])
    asked = kept_rows(tmp_path / "one", [known], lambda missing: map(row, missing))
    assert asked[0]["image_sha256"]
