"""What the supervised baseline imitates."""

from collections.abc import Callable, Sequence

from data.example import VQAExample
from grpo.settings.config import Config
from grpo.settings.errors import UsageError


def sft_target(config: Config, examples: Sequence[VQAExample]) -> Callable[[VQAExample], str]:
    """What the supervised baseline imitates: the label alone, or (privileged) reasoning too."""
    reasons = config.sft_target == "reasoning"
    if config.method == "sft" and reasons and config.ways == ("direct",):
        raise UsageError("--sft-target reasoning: the questions ask for none; use answer")
    without = [example.id for example in examples if not example.reasoning]
    if config.method == "sft" and reasons and without:
        problem = f"{len(without)} questions have no reference reasoning, {without[0]} first"
        raise UsageError(f"--sft-target reasoning: {problem}; use answer")

    def target(example: VQAExample) -> str:
        thought = example.reasoning if reasons else ""
        return example.completion(None if example.asked == "direct" else thought)

    return target
