"""Forced choice and samples against one row at a time."""

from dataclasses import dataclass, replace

import pytest
import torch

from models.answering import OPENING, answer, choices_after, reference_nll, samples
from tests.models import plain
from tests.tiny import NoiseImage, Question


@dataclass(frozen=True)
class Asked(Question):
    letters: tuple[str, ...] = ("A", "B", "C")
    asked: str = "reason"

    reasoning: str = "seen left"

    def completion(self, reasoning: str | None, answer: str = "C") -> str:
        think = "" if reasoning is None else f"<think>{reasoning}</think>"
        return f"{think}<answer>{answer}</answer>"


QUESTIONS = [
    Asked("Which side is the lesion on?", (NoiseImage(1, 84, 56),), "one"),
    Asked("What is 2 + 2?", (), "none", letters=("A", "B")),
    Asked("Which side is the lesion on?", (NoiseImage(2, 56, 84),), "direct", asked="direct"),
]


def said(text: str) -> str:
    return text[:8]


def test_forced_choice_is_the_plain_log_probability_of_each_answer(trained):
    found = answer(trained, QUESTIONS, 6, said)
    for question, prompt, row in zip(QUESTIONS, trained.encode(QUESTIONS), found, strict=True):
        assert (row.thought is None) == (question.asked == "direct")
        with torch.no_grad():
            totals = [
                plain.logprobs(
                    trained,
                    question,
                    prompt,
                    trained.completion_ids(question.completion(row.thought, letter)),
                    1.0,
                ).sum()
                for letter in question.letters
            ]
        expected = torch.stack(totals).log_softmax(0)
        assert row.letter_logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_what_does_not_begin_with_a_think_block_is_asked_again_and_made_to(trained):
    seen = []

    def remember(text: str) -> str:
        seen.append(text)
        return ""

    found = answer(trained, QUESTIONS, 6, remember)
    assert len(seen) == 2, "the direct question has no reasoning"
    assert all(text.startswith(OPENING) for text in seen)
    assert not found[0].text.startswith(OPENING), "the free answer stays what it was"


def test_samples_depend_on_the_question_and_the_seed_alone(trained):
    def draw(questions, seed=3):
        return samples(trained, questions, 8, k=3, temperature=1.0, seed=seed)

    together = draw(QUESTIONS)
    assert draw(QUESTIONS[1:]) == together[1:]
    assert [draw([question])[0] for question in QUESTIONS] == together
    assert draw(QUESTIONS, seed=4) != together
    assert len({text for texts in together for text in texts}) > 5


OPEN = Asked("Which side is the lesion on?", (NoiseImage(1, 84, 56),), "open", letters=())


def test_an_open_question_is_answered_freely_and_has_no_forced_choice(trained):
    mixed = [QUESTIONS[0], OPEN, QUESTIONS[1]]
    found = answer(trained, mixed, 6, said)
    assert found[1].letter_logprobs == []
    assert found[1].text == answer(trained, [OPEN], 6, said)[0].text
    alone = answer(trained, [QUESTIONS[0], QUESTIONS[1]], 6, said)
    for row, expected in zip(found[::2], alone, strict=True):
        assert row.letter_logprobs == pytest.approx(expected.letter_logprobs, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_reference_nll_is_the_plain_log_probability_of_the_reference(trained, batch_size):
    asked = [*QUESTIONS, OPEN]
    found = reference_nll(trained, asked, batch_size)
    for question, prompt, row in zip(asked, trained.encode(asked), found, strict=True):
        thought = None if question.asked == "direct" else question.reasoning
        ids = trained.completion_ids(question.completion(thought))
        with torch.no_grad():
            expected = -plain.logprobs(trained, question, prompt, ids, 1.0).sum()
        assert row["reference_nll"] == pytest.approx(expected.item(), abs=1e-3)
        assert row["reference_tokens"] == len(ids)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_choice_after_the_own_thought_is_the_forced_choice(trained, batch_size):
    asked = [*QUESTIONS, OPEN]
    found = answer(trained, asked, 6, said)
    again = choices_after(trained, asked, [row.thought for row in found], batch_size)
    for row, choice in zip(found, again, strict=True):
        assert choice == pytest.approx(row.letter_logprobs, abs=1e-4)
    others = choices_after(trained, asked, ["so", None, "or", "not"], batch_size)
    for own, other in zip(again[:3], others[:3], strict=True):
        assert max(abs(a - b) for a, b in zip(own, other, strict=True)) > 1e-3


def test_a_batch_of_questions_without_images_is_answered_like_any_other(trained):
    seen = QUESTIONS[::2]
    asked = [replace(question, images=()) for question in seen]
    prompts = trained.encode(asked)
    assert [prompt.features for prompt in prompts] == [(), ()]
    assert not any((prompt.input_ids == trained.chat.image_pad).any() for prompt in prompts)
    found = answer(trained, asked, 6, said)
    for question, prompt, row in zip(asked, prompts, found, strict=True):
        alone = [trained.completion_ids(question.completion(row.thought, x)) for x in "ABC"]
        with torch.no_grad():
            each = [plain.logprobs(trained, question, prompt, ids, 1.0).sum() for ids in alone]
        assert row.letter_logprobs == pytest.approx(
            torch.stack(each).log_softmax(0).tolist(), abs=1e-4
        )
