"""The pictures are what their program draws, and show what the code computes."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from grpo.advantages import group_advantages
from models.attention import TreeAttention
from rewards.scoring import accuracy_reward, format_reward
from tests.figures import draw


def test_the_pictures_are_what_the_program_draws() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in draw.HERE.glob("*.svg")}

    assert files == draw.drawn(), "run: python tests/figures/draw.py"
    for content in files.values():
        ElementTree.fromstring(content)


def test_the_rewards_and_advantages_shown_are_those_of_the_code() -> None:
    count = len(draw.COMPLETIONS)
    columns = {
        "answer": draw.ANSWER * count,
        "letters": ["AB"] * count,
        "options": [draw.OPTIONS] * count,
    }
    asked = [draw.QUESTION] * count
    formatted = format_reward(asked, draw.COMPLETIONS, **columns)
    right = accuracy_reward(asked, draw.COMPLETIONS, **columns)

    assert list(zip(formatted, right, strict=True)) == list(draw.REWARDS)
    totals = [sum(parts) for parts in draw.REWARDS]
    computed = group_advantages(torch.tensor([totals], dtype=torch.float64))[0].tolist()
    assert draw.advantages(totals) == pytest.approx(computed)


def test_the_mask_shown_is_the_one_of_attention() -> None:
    """Values that are one-hot make the result of attention its weights."""
    tokens = sum(draw.LENGTHS)
    alike = torch.zeros(tokens, 1, tokens)
    values = torch.eye(tokens)[:, None, :]
    weights = TreeAttention([draw.LENGTHS])(0, alike, alike, values)

    assert (weights > 0).tolist() == draw.attends(draw.LENGTHS)


def test_what_the_pictures_name_is_there() -> None:
    for name, content in draw.drawn().items():
        files = [
            mark.text
            for mark in ElementTree.fromstring(content).iter("{http://www.w3.org/2000/svg}text")
            if mark.get("class") == "file"
        ]
        assert len(files) == (7 if name.startswith("flow") else 0)
        assert [file for file in files if not (draw.HERE.parents[1] / file).exists()] == []
