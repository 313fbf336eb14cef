import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.example import VQAExample, completion_text, one_asked, user_text
from data.images import ImageFile
from grpo.settings.errors import UsageError
from rewards.answers import answer_letter, is_formatted


def example(options: tuple[str, ...], gold: int) -> VQAExample:
    return VQAExample("1", (), "Which?", options, gold, "MRI", "kind")


def test_letter_and_answer_are_those_of_the_gold_option() -> None:
    item = example(("cyst", "none", "abscess"), 2)
    assert item.letters == ("A", "B", "C")
    assert (item.letter, item.answer) == ("C", "abscess")


def test_the_prompt_is_question_options_and_one_instruction_without_blank_lines() -> None:
    lines = example(("cyst", "none"), 0).prompt.split("\n")
    assert lines[:3] == ["Which?", "A) cyst", "B) none"]
    assert len(lines) == 4
    assert all(tag in lines[3] for tag in ("<think>", "</think>", "<answer>", "</answer>"))


def test_a_closed_question_that_is_asked_in_the_open_counts_as_open() -> None:
    item = replace(example(("yes", "no"), 1), answer_type="CLOSED")
    ways = {way: one_asked(item, way).closed for way in ("reason", "direct", "open")}
    assert ways == {"reason": True, "direct": True, "open": False}


def test_the_supervised_target_is_what_the_format_reward_pays_for() -> None:
    for letter in "ABCD":
        text = completion_text("A dark rim, or B?", letter)
        assert is_formatted(text, "ABCD")
        assert answer_letter(text, "ABCD") == letter


def test_the_instruction_is_not_itself_an_answer() -> None:
    assert answer_letter(user_text("Which?", ["cyst", "none"]), "AB") is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK"])
def test_every_mode_opens_as_rgb_with_its_colours(tmp_path: Path, mode: str) -> None:
    white = Image.new("RGB", (8, 6), "white")
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    white.convert(mode).save(path)
    image = ImageFile(path).open()
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert image.getextrema() == ((255, 255),) * 3


def test_a_palette_with_transparency_opens_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert ImageFile(tmp_path / "x.png").open().getpixel((0, 0)) == (227, 132, 142)  # on white
    assert not recwarn.list


@pytest.mark.parametrize("top", [4095, 65535])
def test_sixteen_bit_greys_are_scaled_and_not_clipped(tmp_path: Path, top: int) -> None:
    values = np.linspace(0, top, 256).astype("<u2").reshape(16, 16)
    Image.frombytes("I;16", (16, 16), values.tobytes()).save(tmp_path / "x.png")
    red, green, blue = np.asarray(ImageFile(tmp_path / "x.png").open(), dtype=float).transpose(
        2, 0, 1
    )
    assert np.abs(red - values * (255 / top)).max() <= 2  # 0.5 % at each end are clipped
    assert (red == green).all()
    assert (red == blue).all()


def test_a_blank_sixteen_bit_image_opens(tmp_path: Path) -> None:
    Image.frombytes("I;16", (2, 2), b"\x07\x00" * 4).save(tmp_path / "x.png")
    assert ImageFile(tmp_path / "x.png").open().size == (2, 2)


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    stored = Image.new("RGB", (64, 32))
    stored.paste((255, 0, 0), (0, 0, 32, 32))  # red on the left of what is stored
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise to see it upright": the left becomes the top
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95)
    upright = ImageFile(tmp_path / "x.jpg").open()
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8))[0] > 200
    assert upright.getpixel((16, 56))[0] < 50


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\x35\xaf\x06\x1e"


@pytest.mark.parametrize("side", [9_000, 60_000])  # past our limit; past Pillow's own
def test_a_decompression_bomb_is_refused_by_name_before_it_is_decoded(
    tmp_path: Path, side: int
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(UsageError, match=r"bomb\.png claims more than .* pixels"):
        ImageFile(tmp_path / "bomb.png").open()


def test_damaged_and_missing_images_are_usage_errors_that_name_the_file(tmp_path: Path) -> None:
    whole = Image.effect_noise((64, 64), 50)
    whole.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1000])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.png", "text.jpg", "empty.jpg", "."):
        with pytest.raises(UsageError, match="cannot be read") as error:
            ImageFile(tmp_path / name).open()
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"gone\.png is missing"):
        ImageFile(tmp_path / "gone.png").open()
