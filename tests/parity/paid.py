"""The rewards of both sides: ours by the loop's signature, and TRL's functions that repeat them."""

import math
from collections.abc import Callable
from typing import Any


def reward(
    examples: list[Any], texts: list[str], ids: list[list[int]]
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Depends on the completion alone, and differs within every group."""
    values = [float(sum(map(ord, text)) % 7) / 2 for text in texts]
    return values, {"sum": values}


def two_rewards(examples: list[Any], texts: list[str], ids: list[list[int]]) -> Any:
    """The same, and half a second one that does not apply to every completion."""
    values, _ = reward(examples, texts, ids)
    lengths = [None if len(one) % 4 == 3 else float(len(one) % 3) for one in ids]
    totals = [a + 0.5 * (b or 0.0) for a, b in zip(values, lengths, strict=True)]
    return totals, {"sum": values, "length": lengths}


WEIGHTS = {"sum": 1.0, "length": 0.5}


def paying(k: int) -> Callable[..., list[float | None]]:
    """TRL's reward function number k: what ours was, for the token ids that ours was given."""

    def pay(recorded: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        assert [ids for ids, _ in recorded] == completion_ids
        return [None if math.isnan(paid[k]) else paid[k] for _, paid in recorded]

    return pay
