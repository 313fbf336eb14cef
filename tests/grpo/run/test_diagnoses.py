"""Diagnoses: said when they are true and not when they nearly are, once, with number and flag."""

import math
import random
from dataclasses import replace

import pytest

from grpo.run import diagnoses
from grpo.run.diagnoses import AGAIN, DIAGNOSES, TREND, WINDOW, newly_true
from grpo.settings.config import Config

CONFIG = Config(
    group_size=6,
    temperature=0.9,
    max_completion_length=64,
    kl_coef=0.04,
    learning_rate=3e-5,
    dtype="float32",
)
HEALTHY = {
    "reward": 1.0,
    "reward_std": 0.5,
    "rewards/format/mean": 0.5,
    "rewards/accuracy/mean": 0.5,
    "frac_reward_zero_std": 0.1,
    "completions/clipped_ratio": 0.0,
    "kl": 0.01,
    "frac_same_text": 0.0,
}


def steps(n: int, start: dict[str, float] | None = None, **then: float) -> list[dict[str, float]]:
    """n steps that go from HEALTHY with `start` to the same with `then`, in a line, with noise."""
    noise, first = random.Random(0), HEALTHY | (start or {})
    return [
        {k: v + (then.get(k, v) - v) * i / (n - 1) + noise.gauss(0, 1e-3) for k, v in first.items()}
        for i in range(n)
    ]


def flat(n: int = WINDOW, **metrics: float) -> list[dict[str, float]]:
    return [HEALTHY | metrics for _ in range(n)]


def falling(to: float, form: float = 1.0) -> list[dict[str, float]]:
    start = {"rewards/format/mean": form, "rewards/accuracy/mean": 0.7}
    return steps(2 * TREND, start, **{"rewards/accuracy/mean": to})


def noisy(rise: float, noise: float) -> list[dict[str, float]]:
    """Reward whose mean over the last TREND steps is `rise` above that over the first."""
    rewards = [1 + (-1) ** i * noise + up for up in (0, rise) for i in range(TREND)]
    return [HEALTHY | {"reward": reward} for reward in rewards]


NEVER = {"rewards/semantic/mean": math.nan}
CASES = {  # diagnosis: what it is said of, and with which words; what it is not said of
    "no_signal": (
        flat(frac_reward_zero_std=0.72),
        ["72 % of groups have no signal", "--group-size (now 6)", "--temperature (now 0.9)"],
        [flat(frac_reward_zero_std=0.49), flat(WINDOW - 1, frac_reward_zero_std=0.72)],
    ),
    "never_applies": (
        flat(3, **NEVER),
        ["semantic applied to no completion so far", "--reward (now format=1"],
        [
            flat(2, **{"rewards/semantic/mean": math.nan}),
            flat(9, **{"rewards/semantic/mean": math.nan})
            + flat(1, **{"rewards/semantic/mean": 0}),
        ],
    ),
    "equal_completions": (
        flat(frac_same_text=0.3),
        ["in 30 % of groups all completions are equal", "--temperature (now 0.9)"],
        [flat(frac_same_text=0.24), flat(frac_same_text=0.0, frac_reward_zero_std=1.0)],
    ),
    "truncated": (
        flat(**{"completions/clipped_ratio": 0.06}),
        ["6 % of completions are truncated at 64 tokens", "--max-completion-length (now 64)"],
        [flat(**{"completions/clipped_ratio": 0.04})],
    ),
    "kl_above_1": (
        flat(kl=1.25),
        ["KL is 1.25", "--kl-coef (now 0.04)", "--learning-rate (now 3e-05)"],
        [flat(kl=0.98), flat(WINDOW - 1, kl=0.1) + flat(1, kl=9.0)],
    ),
    "format_without_accuracy": (
        falling(to=0.4),
        ["format reward is at 1.00 and accuracy falls (0.63 to 0.47", "--reward (now format=1"],
        [
            falling(to=0.4, form=0.97),  # the format is still being learned
            falling(to=0.63),  # by less than is worth a word
            falling(to=0.9),
            falling(to=0.4)[1:],  # a step short of two windows
        ],
    ),
    "reward_not_moving": (
        noisy(rise=0.01, noise=0.1),
        ["reward is not moving (1.01, and was 1.00", "--learning-rate (now 3e-05)", "--reward"],
        [
            noisy(rise=0.1, noise=0.1),
            noisy(rise=-0.1, noise=0.1),
            noisy(rise=0.01, noise=0.4),  # for all that can be told, it may well move
            noisy(rise=0.01, noise=0.1)[1:],
        ],
    ),
    "sampler_is_not_scorer": (
        flat(**{"sampling/sampling_logp_difference/mean": 0.03}),
        ["differ by 0.03", "--cuda-graphs off", "--dtype (now float32)"],
        [flat(**{"sampling/sampling_logp_difference/mean": 0.00009})],
    ),
}


def test_bfloat16_may_differ_by_more():
    history = flat(**{"sampling/sampling_logp_difference/mean": 0.019})
    half = replace(CONFIG, dtype="bfloat16")
    assert diagnoses.sampler_is_not_scorer(history, CONFIG)
    assert diagnoses.sampler_is_not_scorer(history, half) is None


def test_every_diagnosis_has_a_case():
    assert list(CASES) == [diagnosis.__name__ for diagnosis in DIAGNOSES]


def test_it_is_said_where_it_is_true_with_its_number_and_its_flag():
    missing = []
    for name, (history, words, _) in CASES.items():
        sentence = getattr(diagnoses, name)(history, CONFIG)
        missing += [(name, word) for word in words if word not in sentence or "\n" in sentence]
    assert missing == []


def test_it_is_not_said_where_it_is_nearly_true():
    said = [
        (name, i, sentence)
        for name, (_, _, near) in CASES.items()
        for i, history in enumerate(near)
        if (sentence := getattr(diagnoses, name)(history, CONFIG))
    ]
    assert said == []


def test_a_healthy_run_and_a_supervised_one_hear_nothing():
    rising = steps(100, reward=1.6)
    for history in (rising, [{"step": 1, "loss": 0.5}] * 100, [{"reward": math.nan}] * 100):
        last_true = {}
        parts = [history[: n + 1] for n in range(len(history))]
        assert not any(newly_true(part, CONFIG, last_true) for part in parts)


@pytest.mark.slow
def test_noise_alone_is_no_fall():
    """40 runs of 200 steps whose accuracy goes nowhere; at three errors, several would be told."""
    noise = random.Random(1)
    for _ in range(40):
        history = flat(200, **{"rewards/format/mean": 1.0})
        values = [0.5 + noise.gauss(0, 0.09) for _ in history]
        history = [
            step | {"rewards/accuracy/mean": v} for step, v in zip(history, values, strict=True)
        ]
        told = (diagnoses.format_without_accuracy(history[:n], CONFIG) for n in range(1, 201))
        assert not any(told)


def steps_said(*stretches: tuple[int, float]) -> list[int]:
    """The steps at which truncation is said, of stretches of (steps, share truncated)."""
    last_true, history, at = {}, [], []
    for n, share in stretches:
        for _ in range(n):
            history.append({"completions/clipped_ratio": share})
            at += [len(history)] * len(newly_true(history, CONFIG, last_true))
    return at


def test_it_is_said_once_until_it_has_been_false_for_a_while():
    assert steps_said((100, 0.5)) == [WINDOW]
    # The mean over the window stays above 5 % for one step more, and needs nine to be so again.
    gap = AGAIN - 8
    assert steps_said((30, 0.06), (gap, 0.0), (30, 0.06)) == [WINDOW]
    assert steps_said((30, 0.06), (gap + 1, 0.0), (30, 0.06)) == [WINDOW, 30 + gap + 1 + 9]
