"""What a run shows while it trains.

The numbers of each step, a completion now and then, and the sentences of grpo/run/diagnoses.py.
Questions and completions are untrusted text: only their printing characters reach the terminal.
"""

import math
import sys
import textwrap
from collections.abc import Callable
from statistics import fmean

from grpo.interfaces import Example
from grpo.metrics import Step
from grpo.run.diagnoses import History, newly_true
from grpo.run.terminal import Screen, visible
from grpo.settings.config import Config

Ask = Callable[[Example], dict[str, str]]  # the rows that show a question, by name
LONGEST = 1000  # characters of a completion that are shown
ENDS = 20  # steps at either end of a run that `what_changed` compares the means of


class Progress:
    """Shows on stderr what happens in a run: call `show` after every step, `close` at the end."""

    def __init__(self, config: Config, ask: Ask, before: History = ()) -> None:
        """`before` holds the metrics of the steps that a resumed run has made already."""
        title = f"{config.method} on {config.modality}"
        self.screen, self.ask = Screen(title, config.steps, len(before)), ask
        self.config, self.last_true = config, {}
        self.history = [*before]  # the metrics of every step
        every = config.sample_every
        self.sample_every = math.ceil(config.steps / 5) if every is None else every

    def close(self) -> None:
        """End the lines of the screen, and say what has changed."""
        self.screen.close()
        if len(self.history) > 1:
            print(what_changed(self.history), file=sys.stderr)

    def show(self, step: Step) -> None:
        """Show a step. A supervised one has no completion to show and nothing to diagnose."""
        done, rollout = int(step.metrics["step"]), step.rollout
        self.history.append(dict(step.metrics))
        words = [f"{name} {value}" for name, value in numbers(step.metrics)]
        self.screen.step(done, words, phases(step.metrics))
        if rollout is None:
            return
        if self.sample_every and (done == 1 or done % self.sample_every == 0):
            self.screen.say(sampled(step, self.ask, self.screen.width()))
        for sentence in newly_true(self.history, self.config, self.last_true):
            self.screen.say(f"step {done}: {sentence}")


def phases(metrics: dict[str, float]) -> str:
    """Return the seconds of each phase that took any."""
    taken = {k.removeprefix("time/"): v for k, v in metrics.items() if k.startswith("time/")}
    return ", ".join(f"{k} {v:.2f} s" for k, v in taken.items() if k != "step" and v >= 0.005)


def numbers(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return a step's numbers as (name, value in words).

    `signal` is the share of groups whose rewards differ, `cut` that of truncated completions.

    >>> numbers({"step": 1, "loss": 0.25})
    [('loss', '0.250')]
    """
    if "reward" not in metrics:
        return [("loss", f"{metrics['loss']:.3f}")]
    return [
        ("reward", f"{metrics['reward']:.2f}"),
        *((k.split("/")[1], f"{v:.2f}") for k, v in metrics.items() if k.startswith("rewards/")),
        ("signal", f"{1 - metrics['frac_reward_zero_std']:.0%}"),
        *([("kl", f"{metrics['kl']:.3f}")] if "kl" in metrics else []),
        ("length", f"{metrics['completions/mean_length']:.0f}"),
        ("cut", f"{metrics['completions/clipped_ratio']:.0%}"),
    ]


def sampled(step: Step, ask: Ask, width: int) -> str:
    """Return the first completion of a step in lines of `width`: what was asked, what it earned."""
    rollout = step.rollout
    text, parts = rollout.texts[0][0], {k: v[0, 0].item() for k, v in rollout.parts.items()}
    earned = ", ".join(f"{k} {'-' if math.isnan(v) else f'{v:.2f}'}" for k, v in parts.items())
    head = f"step {step.metrics['step']}, one of {rollout.rewards.numel()} completions: "
    head += f"reward {rollout.rewards[0, 0]:.2f} ({earned}), advantage {step.advantages[0, 0]:+.2f}"
    more = f" ... and {len(text) - LONGEST} characters more" if len(text) > LONGEST else ""
    rows = {name: visible(row) for name, row in ask(rollout.examples[0]).items()}
    rows["completion"] = visible(text[:LONGEST]) + more
    lines = [
        textwrap.fill(row, width, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
        for name, row in rows.items()
    ]
    return "\n".join([textwrap.fill(head, width, subsequent_indent="  "), *lines])


def what_changed(history: History) -> str:
    """Return the means of the first and of the last steps, at most 20 each, side by side.

    >>> what_changed([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}])
    'first step → last: loss 2.000 → 0.500'
    """
    n = min(ENDS, len(history) // 2)
    ends = [numbers(_means(steps)) for steps in (history[:n], history[-n:])]
    rows = (f"{name} {was} → {now}" for (name, was), (_, now) in zip(*ends, strict=True))
    return f"first {f'{n} steps' if n > 1 else 'step'} → last: {', '.join(rows)}"


def _means(steps: History) -> dict[str, float]:
    """Return the mean of each metric over the steps where it is finite; NaN if there is none."""
    means = {}
    for name in steps[0]:
        values = [step[name] for step in steps if math.isfinite(step.get(name, math.nan))]
        means[name] = fmean(values) if values else math.nan
    return means
