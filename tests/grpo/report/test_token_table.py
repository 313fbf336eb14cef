"""The shade of a token, the right option, damaged traces, and the images that a trace may show."""

import json
from pathlib import Path

from grpo.report import page as report
from grpo.report import token_table as inspector
from grpo.run.atomic import write_json
from tests.grpo.report.runs import make_run


def test_the_shade_of_a_value_is_its_level_and_sign() -> None:
    values = (0.0, 0.0009, 0.001, 0.05, 0.5, 7.0, float("nan"))
    assert [inspector.shade("k", x) for x in values] == ["", "", "k1", "k2", "k3", "k4", ""]
    assert [inspector.shade("s", x) for x in (-9.0, 1.5)] == ["S4", "s2"]


def test_the_right_option_is_that_of_the_letter_and_not_one_that_reads_like_it(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", traced=(1,))
    traced = inspector.read(run / "trace/step-000001.json")
    traced.record["groups"][0] |= {"options": ["B", "A"], "gold": "A"}

    shown = inspector.group(traced, 0, run / "trace")["options"]
    assert shown == [("A", "B", True), ("B", "A", False)]


def test_a_trace_whose_group_lacks_a_part_is_left_out_of_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", traced=(1, 2))
    file = run / "trace/step-000001.json"
    whole, found = file.read_text(), {}
    for name in ("id", "question", "zero_variance", "completions"):
        record = json.loads(whole)
        del record["groups"][1][name]
        write_json(file, record)
        text = report.page(run, 4_000_000)
        said = "trace/step-000001.json cannot be read and is left out." in text
        found[name] = said, text.count('<details class="group"')
    assert {name: told for name, told in found.items() if told != (True, 3)} == {}


def test_an_image_must_be_a_small_png_of_the_trace(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", traced=(1,))
    secret = run / "config.json"
    folder = run / "trace"
    (folder / "large.png").write_bytes(inspector.PNG + bytes(inspector.IMAGE_BYTES))
    (folder / "text.png").write_text("no picture")
    (folder / "link.png").symlink_to(next((folder / "images").iterdir()))
    outside = run / "outside.png"
    outside.write_bytes(inspector.PNG)
    names = ["../config.json", str(secret), "large.png", "text.png", "../outside.png", "none.png"]

    assert [inspector.image_uri(folder, name) for name in names] == [None] * 6
    assert inspector.image_uri(folder, "link.png").startswith("data:image/png;base64,iVBOR")
