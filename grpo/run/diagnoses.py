"""What is wrong with a run, as sentences with the number and the flag to change.

A diagnosis is a function (history, config) -> sentence, or None if it does not hold. `history`
holds the metrics of every step so far.
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance

import torch

from grpo.settings.config import Config
from grpo.settings.flags import flag, shown

History = Sequence[dict[str, float]]

WINDOW = 10  # steps that a share is averaged over
TREND = 30  # steps in each of two means that are compared: a step of 4 groups is mostly noise
MOST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.02}  # of log-probs by sampler and by scorer
EARLY = 3  # steps after which a reward that never applied is said
AGAIN = 30  # steps that a diagnosis must not hold for before it is said again
# Metrics that are 0 while all is well, and what else they say.
ALERTS = {"skipped_updates": "a number was not finite: updates were left out"}
ALERTS |= {"memory/cuts": "out of memory, and done again in halves"}


def no_signal(history: History, config: Config) -> str | None:
    """Half of the groups or more have equal rewards, so their advantages are all 0.

    >>> no_signal([{"frac_reward_zero_std": 0.72}] * 10, Config())
    '72 % of groups have no signal: raise --group-size (now 8) or --temperature (now 1.0)'
    """
    share = _mean(history, "frac_reward_zero_std")
    remedy = f"raise {_now(config, 'group_size')} or {_now(config, 'temperature')}"
    return f"{100 * share:.0f} % of groups have no signal: {remedy}" if share >= 0.5 else None


def never_applies(history: History, config: Config) -> str | None:
    """A reward has been None for every completion of the run, in three steps or more."""
    never = [
        name.split("/")[1]
        for name in history[-1]
        if name.startswith("rewards/") and all(math.isnan(step.get(name, 0)) for step in history)
    ]
    found = f"{', '.join(never)} applied to no completion so far and pays nothing"
    remedy = f"look at its data or judge, or leave it out of {_now(config, 'reward')}"
    return f"{found}: {remedy}" if never and len(history) >= EARLY else None


def equal_completions(history: History, config: Config) -> str | None:
    """In a quarter of the groups or more, all completions are the same text."""
    share = _mean(history, "frac_same_text")
    found = f"in {100 * share:.0f} % of groups all completions are equal"
    return f"{found}: raise {_now(config, 'temperature')}" if share >= 0.25 else None


def truncated(history: History, config: Config) -> str | None:
    """One completion in 20 or more reached the length limit before its end."""
    share, most = _mean(history, "completions/clipped_ratio"), config.max_completion_length
    found = f"{100 * share:.0f} % of completions are truncated at {most} tokens"
    return f"{found}: raise {_now(config, 'max_completion_length')}" if share >= 0.05 else None


def kl_above_1(history: History, config: Config) -> str | None:
    """The policy is far from the reference: its tokens are e times as likely, or more."""
    kl = _mean(history, "kl")
    remedy = f"raise {_now(config, 'kl_coef')} or lower {_now(config, 'learning_rate')}"
    return f"KL is {kl:.2f}, above 1: {remedy}" if kl > 1 else None


def format_without_accuracy(history: History, config: Config) -> str | None:
    """The format is paid in full, and the last 30 steps are less accurate than the 30 before.

    The fall exceeds four standard errors. The windows slide, so with three, 9 % of runs of 200
    steps of mere noise would show a fall somewhere; with four, 0.4 % do (simulated).
    """
    accuracy = next((name for name in history[-1] if name.startswith("rewards/accuracy")), "")
    was, now, error = _compared(history, accuracy, -2 * TREND)
    form = _mean(history, "rewards/format/mean", TREND)
    if not (form >= 0.985 and now - was < -max(4 * error, 0.05)):
        return None
    found = f"format reward is at {form:.2f} and accuracy falls ({was:.2f} to {now:.2f}"
    return f"{found} in {2 * TREND} steps): pay format less in {_now(config, 'reward')}"


def reward_not_moving(history: History, config: Config) -> str | None:
    """The last 30 steps earn what the first 30 did, as far as the noise lets one tell.

    The change is within two standard errors of 0, and these are less than a quarter of the spread
    inside a group, so a change worth having would show.
    """
    was, now, error = _compared(history, "reward", 0)
    spread = _mean(history, "reward_std", TREND)
    if not abs(now - was) < 2 * error < spread / 4:
        return None
    found = f"reward is not moving ({now:.2f}, and was {was:.2f} in the first {TREND} steps)"
    return f"{found}: raise {_now(config, 'learning_rate')} or look at --reward"


def sampler_is_not_scorer(history: History, config: Config) -> str | None:
    """Tokens are drawn from another distribution than they are scored by, beyond rounding.

    Measured on a CPU with the phantom model: a mean of 4e-7 in float32, and 1e-3 in bfloat16.
    """
    difference = _mean(history, "sampling/sampling_logp_difference/mean")
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    if not difference > (MOST_DIFFERENCE["bfloat16" if half else "float32"]):
        return None
    found = f"the log-probs of drawn tokens differ by {difference:.2g} from the scorer's"
    return f"{found}: try --cuda-graphs off, or {_now(config, 'dtype')} float32"


DIAGNOSES = (no_signal, never_applies, equal_completions, truncated, kl_above_1)
DIAGNOSES += (format_without_accuracy, reward_not_moving, sampler_is_not_scorer)


def newly_true(history: History, config: Config, last_true: dict[str, int]) -> list[str]:
    """Return what to say after the last step of `history`; call this after every step.

    A diagnosis is said once, and again only after it has not held for AGAIN steps: `last_true`, {}
    at first, is kept from call to call and says at which step each one held last.
    """
    said, step = [], len(history)
    for diagnosis in DIAGNOSES:
        if sentence := diagnosis(history, config):
            if step - last_true.get(diagnosis.__name__, -AGAIN) > AGAIN:
                said.append(sentence)
            last_true[diagnosis.__name__] = step
    return said


def _mean(history: History, name: str, steps: int = WINDOW) -> float:
    """Return the mean of a metric over the last `steps`; NaN if there are fewer.

    It is also NaN if a step lacks the metric. No comparison with NaN is true.
    """
    if len(history) < steps:
        return math.nan
    return fmean(step.get(name, math.nan) for step in history[-steps:])


def _compared(history: History, name: str, start: int) -> tuple[float, float, float]:
    """Compare the TREND steps from index `start` with the last TREND steps.

    Returns both means of the metric and the standard error of their difference; NaN while the two
    windows would overlap.
    """
    if len(history) < 2 * TREND:
        return math.nan, math.nan, math.nan
    windows = (history[start:][:TREND], history[-TREND:])
    before, after = ([step.get(name, math.nan) for step in steps] for steps in windows)
    error = math.sqrt(variance(before) / TREND + variance(after) / TREND)
    return fmean(before), fmean(after), error


def _now(config: Config, name: str) -> str:
    return f"{flag(name)} (now {shown(getattr(config, name))})"
