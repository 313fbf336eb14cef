"""Rewards: lines 43 to 46 of README.md's table."""

import asyncio
import math

import pytest

from data.example import VQAExample, columns
from grpo.run.diagnoses import format_without_accuracy, truncated
from grpo.settings.config import Config
from models.answering import Answer
from rewards.evaluation.predictions import answered
from rewards.scoring import Reward, RewardError, parse_rewards, score
from tests.conformance import oracle
from tests.grpo.cases import config

OPTIONS = ("left lung", "right lung", "a cyst", "MRI")
CLOSED = VQAExample("q1", (), "What is shown?", OPTIONS, 0, "MRI", "kind", findings=("cyst",))
OPEN = VQAExample("q2", (), "What is shown?", (), 0, "MRI", "kind", references=("cyst", ""))


def earned(text: str, example: VQAExample = CLOSED, names: str = "format,accuracy") -> dict:
    """By name, what a completion is paid."""
    _, parts = score(parse_rewards(names), [example.prompt], [text], columns([example]))
    return {name: values[0] for name, values in parts.items()}


def block(said: str, thought: str = "It is A.") -> str:
    return f"<think>{thought}</think><answer>{said}</answer>"


NOTHING = ["", " ", "\n", ".", "()", "?", "-", "none of them said", "\u200b", "<think></think>"]
ALL_OF_THEM = [
    "A or B or C", "A, B, C, D", "ABCD", "A B", "A/B", "left lung right lung", "A) left lung B)",
    "left lung or a cyst", "A and not B", "any", "all", "A A", "(A)(B)",
]  # fmt: skip


@pytest.mark.parametrize("example", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("said", [*NOTHING, *ALL_OF_THEM])
def test_visual_rft_176_nothing_and_everything_earn_nothing(said, example):
    """There, an empty answer was part of every right one, and "A or B or C" was paid as well.
    Here, whatever says nothing, or several things, is paid nothing for being right."""
    for text in (block(said), f"<answer>{said}</answer>", said, block(said) + block(said)):
        paid = earned(text, example, "accuracy,format,accuracy-medvlm-r1,length-cwr")
        assert paid["accuracy"] == 0.0
        assert not paid["length-cwr"]
        if not said.strip():
            assert paid["format"] == 0.0
    assert earned("<think></think><answer></answer>", example) == {"accuracy": 0, "format": 0}
    assert earned(block("A" if example is CLOSED else "cyst"), example)["accuracy"] == 1.0


# What a model says -> the letter that it answers. A is right, and in words it is the left lung.
SAID = [
    *((block(said), "A") for said in (
        "A", "a", "A.", "a.", "(A)", "(a)", "A)", " A ", "\nA\n", "left lung", "Left  Lung.",
        "A) left lung", "(A) Left lung", "A. left lung", "A: left lung", "a) LEFT LUNG",
    )),
    *((block(said), "C") for said in ("C", "a cyst", "A cyst", "A CYST.", "C) a cyst")),
    *((block(said), "D") for said in ("D", "MRI", "mri.", "(D) MRI")),
    *((block(said), None) for said in (
        "Answer", "Answer: A", "The answer is A", "An abscess", "A lesion", "A mass, I think",
        "I think A", "I", "Is it A?", "A?", "A!", "A..", "A))", "not A", "Option A", "It is A.",
        "A because of the rim", "A (left lung), surely", "A) right lung", "B) left lung", "E", "J",
        "Abnormal", "Apparently", "left", "lung", "cyst", "\u0391", "\u0410", "\uff21", "**A**",
        "$A$", "\\boxed{A}", "1", "A\u0301", "<b>A</b>", "AA", "left lung left lung",
    )),
    ("A", None), ("The answer is A", None), ("A is right", None), ("", None), ("I", None),
    ("<answer>A", None), ("A</answer>", None), ("<ANSWER>A</ANSWER>", None),
    ("<answer>A</answer>", "A"), ("So. <answer>A</answer> Or not.", "A"),
    ("<think>A? No: I say B.</think>", None),
    ("<think>A or B</think> it is a cyst", None),
    ("<think>maybe <answer>A</answer></think>", None),
    (block("A") + "<answer>B</answer>", None), (block("A") * 2, None),
    (block("B", "A A A. The answer is A. <b>A</b>"), "B"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), SAID, ids=range(len(SAID)))
def test_lm_evaluation_harness_4188_no_letter_is_read_from_words(text, letter):
    """There, extractors read "A" from "Answer" and from the article, and "I" from the pronoun.
    Here, only the answer block gives a letter, beyond doubt, in training and evaluation alike."""
    assert earned(text)["accuracy"] == float(letter == "A")
    answer = Answer(text, 5, False, None, [-2.0, -1.0, -3.0, -4.0])
    row = answered(CLOSED, answer)
    assert (row["answer"], row["correct"]) == (letter, letter == "A")
    assert row["formatted"] == bool(earned(text)["format"])
    assert len({said for said, _ in SAID}) >= 60


def test_open_r1_255_every_reward_has_its_own_curve(fresh):
    """There, the format reward rose while accuracy fell, or fell as completions were cut off.
    Here, each reward and the share cut off are logged apart, and both patterns are put in words."""

    def two(examples, texts, ids=()):
        form = [float("e" in text) for text in texts]
        right = [float(len(text) % 2) for text in texts]
        return [a + b for a, b in zip(form, right, strict=True)], {
            "format": form,
            "accuracy": right,
        }

    (step,), _ = oracle.watched(fresh(), config(), reward=two)
    texts = [text for group in step.rollout.texts for text in group]
    for name, values in two(None, texts)[1].items():
        assert step.metrics[f"rewards/{name}/mean"] == pytest.approx(sum(values) / 12)
    assert "completions/clipped_ratio" in step.metrics
    cut = truncated([{"completions/clipped_ratio": 0.12}] * 10, Config(max_completion_length=64))
    assert cut.startswith("12 % of completions are truncated at 64 tokens")
    accuracy = [level + 0.01 * (i % 2 - 0.5) for level in (0.81, 0.41) for i in range(30)]
    history = [{"rewards/format/mean": 1.0, "rewards/accuracy/mean": x} for x in accuracy]
    assert "accuracy falls (0.81 to 0.41" in format_without_accuracy(history, Config())
    assert format_without_accuracy(history[:30] * 2, Config()) is None


def test_trl_none_reward_does_not_apply(fresh):
    """There, a reward may be None, and may be a coroutine; clones of the contract made it 0.
    Here, None leaves sum and mean, a coroutine is awaited, and no reward at all is refused."""

    async def later(prompts, completions, **columns):
        await asyncio.sleep(0)
        return [None if "x" in text else 2.0 for text in completions]

    def always(prompts, completions, **columns):
        return [0.5] * len(completions)

    terms = [Reward("later", later, 3.0), Reward("always", always, -1.0)]
    totals, parts = score(terms, ["?"] * 3, ["a", "x", "b"], {})
    assert totals == [5.5, -0.5, 5.5]
    assert parts == {"later": [2.0, None, 2.0], "always": [0.5] * 3}
    with pytest.raises(RewardError, match="completion 1, all gave None"):
        score(terms[:1], ["?"] * 3, ["a", "x", "b"], {})

    def loop_reward(examples, texts, ids=()):
        some = [None if i % 3 else float(i) for i in range(len(texts))]
        return [float(i) for i in range(len(texts))], {"some": some, "none": [None] * len(texts)}

    (step,), _ = oracle.watched(fresh(), config(), reward=loop_reward)
    assert step.metrics["rewards/some/mean"] == pytest.approx((0 + 3 + 6 + 9) / 4)
    assert math.isnan(step.metrics["rewards/none/mean"])
    assert step.rollout.rewards.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
