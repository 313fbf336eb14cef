"""What a run says while it trains, and its last line.

The numbers of the steps, now and then a completion, and what grpo/run/diagnoses.py finds. Questions
and completions are untrusted text: nothing in them may reach a terminal but characters that print.
"""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from grpo.metrics import Step
from grpo.run.diagnoses import Diagnoses, same_text
from grpo.run.terminal import Bar, Lines, Screen, columns, visible
from grpo.settings.config import Config

LONGEST = 1000  # characters of a completion that are shown
CHANGED = 20  # steps at either end that "what changed" is a mean of


class Progress:
    """Says on stderr what happens: a context manager, told of every step by `show`.

    `before` holds the metrics of the steps that a run which goes on has made already.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.monotonic,
        before: Sequence[dict[str, float]] = (),
    ) -> None:
        title, law = f"{config.method} on {config.modality}", {"done": len(before)}
        self.screen: Screen = (
            Bar(title, config.steps, **law)
            if columns()
            else Lines(title, config.steps, clock, **law)
        )
        self.diagnoses = Diagnoses(config)
        self.history = [*before]  # the metrics of every step
        every = config.sample_every
        self.sample_every = math.ceil(config.steps / 5) if every is None else every

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.close()
        if len(self.history) > 1:
            print(what_changed(self.history), file=sys.stderr)

    def show(self, step: Step) -> None:
        """A supervised step has no completion to show and nothing to diagnose."""
        done, rollout = int(step.metrics["step"]), step.rollout
        self.history.append(dict(step.metrics))
        words = [f"{name} {value}" for name, value in numbers(step.metrics)]
        self.screen.step(done, words, phases(step.metrics))
        if rollout is None:
            return
        if self.sample_every and (done == 1 or done % self.sample_every == 0):
            self.screen.say(sampled(step, self.screen.width()))
        self.history[-1]["same_text"] = same_text(rollout)
        for sentence in self.diagnoses.new(self.history):
            self.screen.say(f"step {done}: {sentence}")


def phases(metrics: dict[str, float]) -> str:
    """Seconds by phase, of those that took any."""
    taken = {k.removeprefix("time/"): v for k, v in metrics.items() if k.startswith("time/")}
    return ", ".join(f"{k} {v:.2f} s" for k, v in taken.items() if k != "step" and v >= 0.005)


def numbers(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """A step in words: `signal` is the share of groups that have any, `cut` that of truncated.

    >>> numbers({"step": 1, "loss": 0.25})
    [('loss', '0.250')]
    """
    if "reward" not in metrics:
        return [("loss", f"{metrics['loss']:.3f}")]
    parts = [key for key in metrics if key.startswith("rewards/")]
    return [
        ("reward", f"{metrics['reward']:.2f}"),
        *((key.split("/")[1], f"{metrics[key]:.2f}") for key in parts),
        ("signal", f"{1 - metrics['frac_reward_zero_std']:.0%}"),
        *([("kl", f"{metrics['kl']:.3f}")] if "kl" in metrics else []),
        ("length", f"{metrics['completions/mean_length']:.0f}"),
        ("cut", f"{metrics['completions/clipped_ratio']:.0%}"),
    ]


def sampled(step: Step, width: int) -> str:
    """The first completion of a step, which is as good as drawn: question, gold, what it earned."""
    rollout = step.rollout
    example, text = rollout.examples[0], rollout.texts[0][0]
    parts = {name: values[0, 0].item() for name, values in rollout.parts.items()}
    earned = ", ".join(f"{k} {'-' if math.isnan(v) else f'{v:.2f}'}" for k, v in parts.items())
    head = f"step {step.metrics['step']}, one of {rollout.rewards.numel()} completions: "
    head += f"reward {rollout.rewards[0, 0]:.2f} ({earned}), advantage {step.advantages[0, 0]:+.2f}"
    options = dict(zip(example.letters, example.options, strict=True))
    gold = f"{example.letter}) {example.answer}" if options else " / ".join(example.right_answers)
    asked = " ".join([example.question, *(f"{k}) {v}" for k, v in options.items())])
    more = len(text) - LONGEST
    said = visible(text[:LONGEST]) + (f" ... and {more} characters more" if more > 0 else "")
    rows = {"question": visible(asked), "gold": visible(gold), "completion": said}
    lines = [
        textwrap.fill(row, width, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
        for name, row in rows.items()
    ]
    return "\n".join([textwrap.fill(head, width, subsequent_indent="  "), *lines])


def what_changed(history: Sequence[dict[str, float]]) -> str:
    """The means of the first and of the last steps, at most 20 each, side by side.

    >>> what_changed([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}])
    'first step → last: loss 2.000 → 0.500'
    """
    n = min(CHANGED, len(history) // 2)
    ends = [numbers(_means(steps)) for steps in (history[:n], history[-n:])]
    rows = (f"{name} {was} → {now}" for (name, was), (_, now) in zip(*ends, strict=True))
    return f"first {f'{n} steps' if n > 1 else 'step'} → last: {', '.join(rows)}"


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each metric over the steps that have it as a number; NaN where none has."""
    found = {
        name: [step[name] for step in steps if math.isfinite(step.get(name, math.nan))]
        for name in steps[0]
    }
    return {name: fmean(values) if values else math.nan for name, values in found.items()}


def closing_line(run: Path, config: Config, gains: str) -> str:
    """What was gained, in a sentence ("" where nothing was scored), and what to type next."""
    unseen = ",".join(config.ood_modalities) or "none"
    again = f"python evaluate.py {f'--run {run} ' if config.out else ''}--ood {unseen}"
    if not gains:
        return f"{run}: trained, not scored. Next: {again} --eval-size 300"
    return f"{run}: {gains}. Next: {again}"
