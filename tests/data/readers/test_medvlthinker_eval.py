"""MedVLThinker-Eval: rows in its exact format, written with pyarrow as `datasets` writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.load import load, modalities, read
from data.readers import download
from data.rows import Skipped
from grpo.settings.errors import UsageError
from tests.data.hub import COMMIT, Hub
from tests.data.sets import png

SETS = ("pmc_vqa", "MMMU-medical", "MedXpertQA-MM", "pathvqa_closed", "slake_closed")
SETS += ("vqa_rad_closed",)


def row(number: int, name: str = "pmc_vqa", **changes: Any) -> dict[str, Any]:
    """A row; `images` are numbers of pictures."""
    options = {"A": "Diffuse uptake", "B": "Focal uptake, at last", "C": "None", "D": "Both"}
    return {
        "images": [number],
        "question": f"What is the uptake pattern, {number}?",
        "options": json.dumps(options),
        "answer_label": "B",
        "answer": "Focal uptake, at last",
        "reasoning": None,
        "dataset_name": name,
        "dataset_index": number,
        "misc": json.dumps({"question_type": "Reasoning"}),
        **changes,
    }


def written(rows: list[dict[str, Any]], group: int = 3) -> bytes:
    """The bytes of a parquet file with images as a list of structs {bytes, path}."""
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {"images": pyarrow.list_(image), "dataset_index": pyarrow.int64()}
    columns = {}
    for name in rows[0]:
        values = [r[name] for r in rows]
        if name == "images":
            values = [v and [{"bytes": png(n), "path": f"{n}.png"} for n in v] for v in values]
        columns[name] = pyarrow.array(values, kinds.get(name, pyarrow.string()))
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), buffer, row_group_size=group)
    return buffer.getvalue().to_pybytes()


def folder(root: Path, *rows: dict[str, Any]) -> str:
    (root / "data").mkdir()
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        if part:
            name = f"data/test-0000{i}-of-00002.parquet"
            (root / name).write_bytes(written(list(part)))
    return f"medvlthinker-eval:{root}"


def reds(example: Any) -> list[int]:
    return [image.open().getpixel((0, 0))[0] for image in example.images]


def test_each_set_is_a_modality_and_all_questions_are_test_questions(tmp_path: Path) -> None:
    rows = [row(10 * i + k, name) for i, name in enumerate(SETS) for k in range(2)]
    spec = folder(tmp_path, *rows)
    names = ("PMC_VQA", "MMMU_MEDICAL", "MEDXPERTQA_MM", "PATHVQA_CLOSED", "SLAKE_CLOSED")
    assert set(modalities(spec)) == {*names, "VQA_RAD_CLOSED"}
    for i, name in enumerate(SETS):
        examples = load(spec, name, split="test", size=99, seed=0)
        own = [10 * i, 10 * i + 1]
        assert sorted(map(reds, examples)) == [[number] for number in own]
        assert {e.id for e in examples} == {f"{name}#{number}" for number in own}
        told = {(e.dataset, e.letter, e.answer) for e in examples}
        assert told == {(name, "B", "Focal uptake, at last")}
    assert len(load(spec, "ALL", split="test", size=99, seed=0)) == 12
    with pytest.raises(UsageError, match="no usable PMC_VQA image in its train split"):
        load(spec, "pmc_vqa", split="train", size=1, seed=0)


def test_a_question_has_all_its_images_in_order_or_none(tmp_path: Path) -> None:
    several = row(1, images=[7, 5, 9, 5])
    spec = folder(tmp_path, several, row(2, images=[]), row(3, images=None), row(4, images=[5]))
    listing = read(spec)
    assert [reds(e) for e in listing.examples] == [[7, 5, 9, 5], [], [5]]
    assert [s.reason for s in listing.skipped] == ["image path is blank"]
    first, _, last = listing.examples
    assert first.images[1] == first.images[3]
    assert first.images[1].sha256 == last.images[0].sha256


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "B"),
        ({"options": '{"B": "Focal uptake, at last", "A": "x"}'}, "B"),  # in any order
        ({"options": '{"A": "Yes", "B": "No"}', "answer": "Yes", "answer_label": "A"}, "A"),
        ({"answer": None}, "B"),
        ({"answer_label": "A"}, "letter and answer disagree"),
        ({"answer_label": "E", "answer": ""}, "answer is none of the options"),
        ({"options": "{}"}, "not 2 to 26 options"),
        ({"options": '["x", "y"]'}, "options are not a JSON object"),
        ({"options": "A. x"}, "broken JSON"),
        ({"options": None}, "broken JSON"),
        ({"dataset_name": None}, "B"),
    ],
)
def test_the_letter_counts_and_must_agree_with_the_text(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    listing = read(folder(tmp_path, row(0), row(1, **changes)))
    told = [example.letter for example in listing.examples[1:]]
    assert told + [skipped.reason for skipped in listing.skipped] == [found]


def test_a_row_left_out_is_named(tmp_path: Path) -> None:
    listing = read(folder(tmp_path, row(0), row(1), row(2, "slake_closed", question=" ")))
    file = "data/test-00001-of-00002.parquet"
    assert listing.skipped == (Skipped("question is blank", file, "slake_closed#2"),)


def test_all_parquet_files_of_the_hub_are_fetched_whatever_their_number(
    place: Path, serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = download.HUB["medvlthinker-eval"]
    files = {f"data/test-0000{i}-of-00003.parquet": written([row(i)]) for i in range(3)}
    serve("medvlthinker-eval", {**files, "README.md": b"x"})
    monkeypatch.setitem(download.HUB, "medvlthinker-eval", source)
    assert sorted(reds(e) for e in read("medvlthinker-eval").examples) == [[0], [1], [2]]
    record = json.loads((place / "medvlthinker-eval" / download.RECORD).read_text())
    assert (record["commit"], sorted(record["files"])) == (COMMIT, sorted(files))
    read.cache_clear()
    assert len(read("medvlthinker-eval").examples) == 3  # what was fetched is what is named
    (place / "medvlthinker-eval" / "data/test-00001-of-00003.parquet").write_bytes(b"other")
    read.cache_clear()
    with pytest.raises(UsageError, match="is not the file that this program fetches"):
        read("medvlthinker-eval")
