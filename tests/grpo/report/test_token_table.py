"""The shade of a token, and the images that a trace may show."""

from pathlib import Path

from grpo.report import token_table as inspector
from tests.grpo.report.runs import make_run


def test_the_shade_of_a_value_is_its_level_and_sign() -> None:
    values = (0.0, 0.0009, 0.001, 0.05, 0.5, 7.0, float("nan"))
    assert [inspector.shade("k", x) for x in values] == ["", "", "k1", "k2", "k3", "k4", ""]
    assert [inspector.shade("s", x) for x in (-9.0, 1.5)] == ["S4", "s2"]


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
