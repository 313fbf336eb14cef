"""What is wrong with a run, in plain words with the number and the flag to turn; or nothing.

A diagnosis is a function of the steps so far: `history` holds the metrics of every step, with
`same_text` (see `same_text` below) added. It returns a sentence where it is true, and else None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from grpo.rollout import Rollout
from grpo.settings.config import Config

History = Sequence[dict[str, float]]

WINDOW = 10  # steps that a share is averaged over
TREND = 30  # steps in each of two means that are compared: a step of 4 groups is mostly noise
AGAIN = 30  # steps that a diagnosis has to be false for, to be said again


def no_signal(history: History, config: Config) -> str | None:
    """Half of the groups or more have equal rewards, so that their advantages are all 0.

    >>> no_signal([{"frac_reward_zero_std": 0.72}] * 10, Config())
    '72 % of groups have no signal: raise --group-size (now 8) or --temperature (now 1.0)'
    """
    share = _recent(history, "frac_reward_zero_std")
    if not share >= 0.5:
        return None
    remedy = f"raise --group-size (now {config.group_size}) or {_temperature(config)}"
    return f"{_percent(share)} of groups have no signal: {remedy}"


def equal_completions(history: History, config: Config) -> str | None:
    """In a quarter of the groups or more, all completions are one text."""
    share = _recent(history, "same_text")
    if not share >= 0.25:
        return None
    found = f"in {_percent(share)} of groups all completions are equal"
    return f"{found}: raise {_temperature(config)}"


def truncated(history: History, config: Config) -> str | None:
    """One completion in 20 or more was cut off before its end."""
    share = _recent(history, "completions/clipped_ratio")
    if not share >= 0.05:
        return None
    length = config.max_completion_length
    remedy = f"raise --max-completion-length (now {length})"
    return f"{_percent(share)} of completions are truncated at {length} tokens: {remedy}"


def kl_above_1(history: History, config: Config) -> str | None:
    """The policy has left the reference: it is e times as sure of its tokens, or surer."""
    kl = _recent(history, "kl")
    if not kl > 1:
        return None
    remedy = f"raise --kl-coef (now {config.kl_coef:g}) or lower {_learning_rate(config)}"
    return f"KL is {kl:.2f}, above 1: {remedy}"


def format_without_accuracy(history: History, config: Config) -> str | None:
    """The format is paid in full, and the last 30 steps are less accurate than the 30 before.

    Less by more than four standard errors: these windows slide, and at three, 9 % of runs of 200
    steps of mere noise would show a fall somewhere; at four, 0.4 % do (simulated).
    """
    accuracy = next((n for n in history[-1] if n.startswith("rewards/accuracy")), "")
    before, after = history[-2 * TREND : -TREND], history[-TREND:]
    form = _mean(after, "rewards/format/mean")
    change, error = _change(before, after, accuracy)
    if len(before) < TREND or not (form >= 0.985 and change < -max(4 * error, 0.05)):
        return None
    was, now = _mean(before, accuracy), _mean(after, accuracy)
    found = f"format reward is at {form:.2f} and accuracy falls ({was:.2f} to {now:.2f}"
    return f"{found} in {2 * TREND} steps): pay format less in --reward (now {config.reward})"


def reward_not_moving(history: History, config: Config) -> str | None:
    """The last 30 steps earn what the first 30 did, for all that can be told from the noise.

    The change lies within two standard errors of 0, and these are less than a quarter of the
    spread inside a group: a change worth having would show.
    """
    start, now = history[:TREND], history[-TREND:]
    spread = _mean(now, "reward_std")
    change, error = _change(start, now, "reward")
    if len(history) < 2 * TREND or not abs(change) < 2 * error < spread / 4:
        return None
    was, remedy = _mean(start, "reward"), f"raise {_learning_rate(config)} or look at --reward"
    is_now = f"{_mean(now, 'reward'):.2f}, and was {was:.2f} in the first {TREND} steps"
    return f"reward is not moving ({is_now}): {remedy}"


DIAGNOSES = (
    no_signal,
    equal_completions,
    truncated,
    kl_above_1,
    format_without_accuracy,
    reward_not_moving,
)


class Diagnoses:
    """Says a diagnosis once, and again only after it has been false for AGAIN steps."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.last_true: dict[str, int] = {}  # by the function's name: a number of steps

    def new(self, history: History) -> list[str]:
        """What is to be said after the last step of `history`; call it after every step."""
        said = []
        for diagnosis in DIAGNOSES:
            sentence, name = diagnosis(history, self.config), diagnosis.__name__
            if sentence is None:
                continue
            if len(history) - self.last_true.get(name, -AGAIN) > AGAIN:
                said.append(sentence)
            self.last_true[name] = len(history)
        return said


def same_text(rollout: Rollout) -> float:
    """Share of the groups whose completions are all one text."""
    return sum(len(set(texts)) == 1 for texts in rollout.texts) / len(rollout.texts)


def _recent(history: History, name: str) -> float:
    """Mean over the last WINDOW steps; NaN, of which no comparison is true, while they are few."""
    return _mean(history[-WINDOW:], name) if len(history) >= WINDOW else math.nan


def _mean(steps: History, name: str) -> float:
    """Mean of a metric; NaN where a step has none, or one that is not a number."""
    return statistics.fmean(step.get(name, math.nan) for step in steps) if steps else math.nan


def _change(before: History, after: History, name: str) -> tuple[float, float]:
    """Mean of a metric in `after` minus that in `before`, and the standard error of that."""
    if min(len(before), len(after)) < 2:
        return math.nan, math.nan
    values = [[step.get(name, math.nan) for step in steps] for steps in (before, after)]
    was, now = map(statistics.fmean, values)
    return now - was, math.sqrt(sum(statistics.variance(v) / len(v) for v in values))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _temperature(config: Config) -> str:
    return f"--temperature (now {config.temperature})"


def _learning_rate(config: Config) -> str:
    return f"--learning-rate (now {config.learning_rate:g})"
