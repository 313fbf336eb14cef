"""A question as the record of a step keeps it."""

import io
import json
from pathlib import Path

from PIL import Image

from data.example import VQAExample
from data.images import ImageFile
from data.showing import described


def example(path: Path, **changes) -> VQAExample:
    plain = {"question": "Which side?", "options": ("left", "right"), "gold": 1}
    plain |= {"id": "7", "modality": "CT", "question_type": "side"} | changes
    return VQAExample(images=(ImageFile(path),), **plain)


def test_a_closed_question_has_its_letter_and_an_image_of_256_pixels_at_most(tmp_path):
    Image.new("RGB", (1000, 500), "red").save(tmp_path / "large.png")
    facts, (png,) = described(example(tmp_path / "large.png"))
    facts = json.loads(json.dumps(facts))
    assert facts["gold"] == "B"
    assert facts["options"] == ["left", "right"]
    assert facts["prompt"].startswith("Which side?\nA) left\nB) right\nReason inside")
    names = {"id", "question", "options", "gold", "modality", "question_type", "asked", "prompt"}
    assert facts.keys() == names
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (256, 128))
    assert image.getpixel((9, 9)) == (255, 0, 0)


def test_a_small_image_keeps_its_size(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    _, (png,) = described(example(tmp_path / "small.png"))
    assert Image.open(io.BytesIO(png)).size == (30, 20)


def test_an_open_question_has_its_answers_and_a_lost_image_is_left_out(tmp_path):
    question = example(tmp_path / "gone.png", options=(), references=("left", "left side"), gold=0)
    facts, pictures = described(question)
    assert facts["gold"] == "left / left side"
    assert pictures == []
