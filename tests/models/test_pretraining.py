"""The rows that the shipped model was pretrained on: what is learned of them, what is a guess."""

import random
import re

import pytest
import torch
from transformers import AutoTokenizer

from data.phantom import questions as phantom
from models.loading.load import SHIPPED
from models.pretrain_phantom.__main__ import GLANCE, IMAGE_ROWS, TEXT_ROWS, Batches, answer

EXAMPLES = phantom.load("MRI", split="pretrain", size=240)
SAID = {"match": r"<think>(.*)</think><answer>([A-D])</answer>"}  # what is said, and its letter
LETTERED = r" ([^>\n]+)>([A-D])"


@pytest.fixture(scope="module")
def batches() -> Batches:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["phantom-base"])
    batches = Batches(EXAMPLES, torch.zeros(len(EXAMPLES), 64, 1176), tokenizer)
    batches.found = len(batches.words)
    return batches


def rows(batches: Batches, kind: str) -> list[tuple[str, list[str]]]:
    """The text of each row of a batch, and the tokens that are learned."""
    batch, decode = batches.draw(kind), batches.tokenizer.decode
    parts = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    return [
        (decode(ids[mask == 1]), [decode([i]) for i in labels[labels != -100].tolist()])
        for ids, mask, labels in parts
    ]


@pytest.mark.parametrize("kind", ["word", "match"])
def test_each_letter_learned_is_that_of_the_option_said(batches, kind):
    drawn = rows(batches, kind)
    assert len(drawn) == TEXT_ROWS
    for text, learned in drawn:
        options = dict(re.findall(r"([A-D])\) (.*)\n", text))
        said = re.findall(SAID.get(kind, LETTERED), text)
        in_thoughts = re.findall(r"<think(>[A-D])", text)  # the same tokens, learned too
        assert sorted(in_thoughts + [f">{letter}" for _, letter in said]) == sorted(learned)
        for words, letter in said:
            held = [x for x, option in options.items() if f" {option} " in f" {words} "]
            assert held == [letter], text


def test_a_list_of_words_is_learned_where_it_is_said_again(batches):
    for text, learned in rows(batches, "copy"):
        assert text == 2 * "".join(learned)


@pytest.mark.parametrize("kind", ["exam", "report", "glance"])
def test_of_an_exam_a_report_and_a_glance_only_the_letter_is_learned(batches, kind):
    for text, learned in rows(batches, kind):
        assert [f"<answer{learned[0]}</answer>"] == re.findall("<answer>[A-D]</answer>", text)
        assert ("<|image_pad|>" in text) == (kind != "exam")


def test_what_follows_the_prompt_of_an_image_is_learned(batches):
    drawn = rows(batches, "caption")
    assert len(drawn) == IMAGE_ROWS
    for text, learned in drawn:
        assert text.endswith("<|im_start|>assistant\n" + "".join(learned))
        assert learned[-1] == "<|im_end|>"


def test_after_a_glance_the_letter_is_a_guess_except_to_count():
    rng = random.Random(0)
    right = {"presence": [], "count": [], "side": [], "kind": []}
    for example in 4 * EXAMPLES:
        said = answer(example, rng, [GLANCE], hasty=True)
        thought, letter = re.fullmatch(SAID["match"], said).groups()
        assert thought in ("No lesion.", "One lesion.", "Two lesions.", "Three lesions.")
        if example.question_type in right:
            right[example.question_type].append(letter == example.letter)
    shares = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
    assert shares["presence"] == shares["count"] == 1
    assert 0.4 < shares["side"] < 0.6
    assert 0.25 < shares["kind"] < 0.55
