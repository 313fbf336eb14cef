"""From REINFORCE to GRPO, one change a rung, and then each variant against the fifth rung.

    python -m grpo.reproduce ladder --seeds 3

The page says what each rung changed: the difference to the rung before it, or to the fifth, over
pairs of runs of equal seed, and the lines of grpo/loss.py or grpo/advantages.py that do it.
"""

import inspect
from collections.abc import Iterator, Mapping
from math import pi, sqrt
from typing import Any

import torch

from grpo import advantages, loss
from grpo.reproduce.paper_tables import Arm, Table

FIFTH = "--updates-per-rollout 3 --kl-coef 0.04"
GSPO_BOUNDS = "--epsilon 3e-4 --epsilon-high 4e-4"
# A rung: its flags, the function that it changes or adds, and what stands in the lines to print.
RUNGS = {
    "REINFORCE": ("--baseline none --scale-rewards none", loss.Objective, "REINFORCE"),
    "+ group baseline": ("--scale-rewards none", advantages.group_advantages, ".mean("),
    "/ std": ("", advantages.group_advantages, "std(dim=1"),
    "+ clip and mu 3": ("--updates-per-rollout 3", loss.clipped_surrogate, "ratio"),
    "+ KL": (FIFTH, loss.k3_kl, ""),
    "DAPO": (f"{FIFTH} --loss dapo --clip-eps-high 0.28", loss.token_weights, '"dapo"'),
    "Dr. GRPO": (f"{FIFTH} --loss dr_grpo --scale-rewards none", loss.token_weights, '"dr_grpo"'),
    "GDPO": (f"{FIFTH} --combine-rewards normalized", advantages.gdpo_advantages, ""),
    "GSPO": (f"{FIFTH} --ratio sequence {GSPO_BOUNDS}", loss.sequence_ratio, ""),
    "CISPO": (f"{FIFTH} --surrogate cispo --loss dapo --clip-eps-high 4", loss.cispo_surrogate, ""),
}
LADDER = Table(
    about="The ladder from REINFORCE to GRPO, then each variant against the rung of all of GRPO",
    paper="none, the ladder is ours; grpo/README.md names the source of each rung",
    arms=tuple(Arm(name, flags, minutes=5.0) for name, (flags, *_) in RUNGS.items()),
    evaluation="--controls none",
    downloads="the model and data of --recipe medvlm-r1",
    flags={"phantom": "--kl-coef 0", "2b": "--recipe medvlm-r1 --kl-coef 0"},
)


def rungs(arms: Mapping[str, Any]) -> Iterator[str]:
    """Yield what each rung changed: differences over seeds with a verdict, signal and code.

    `arms` are the records of run_table.py; a rung whose rung before it did not run has no
    difference. Differences are in points, on the modality trained on.
    """
    names, differences = [*RUNGS], {}
    for i, name in enumerate(names[1:]):
        other = names[min(i, names.index("+ KL"))]
        for figure in ("accuracy", "forced_choice") if {name, other} <= arms.keys() else ():
            new, old = (_of_seeds(arms[one]["evaluation"], figure) for one in (name, other))
            differences[f"{name}, {figure}, to {other}"] = (new - old).tolist()
    yield from verdicts(differences)
    for name, found in arms.items():
        _, function, part = RUNGS[name]
        code = inspect.getsource(function).rpartition('"""')[2].splitlines()
        signal = f"groups with signal {100 * found['signal']:.0f} %; `{function.__name__}`"
        yield "\n".join([f"{name}: {signal}:", *(f"    {x}" for x in code if x and part in x)])


def _of_seeds(table: Mapping[str, Any], figure: str) -> torch.Tensor:
    """Return a figure of the runs of an arm in points (seeds,), in the order of their seeds."""
    runs = [cells[table["trained_on"]] for m, cells in table["results"].items() if m != "base"]
    return 100 * torch.tensor([cell[figure] for cell in runs], dtype=torch.float64)


def verdicts(differences: Mapping[str, list[float]]) -> Iterator[str]:
    """Yield a sentence for each difference, over n seeds, the surest first.

    Student's interval of the mean (1908), at the level at which Holm (1979, Scand. J. Stat. 6:65)
    tests it: 1 - 0.05 / (m - k) for the k-th of m, k from 0. A difference is seen if its interval
    and all before it exclude 0. T = sqrt(n - 1) tan(a), where a has the density cos(a)^(n - 2).

    >>> print(*verdicts({"a": [4.0, 5.0, 6.0]}), sep="; ")
    a: +5.0 [+2.5, +7.5]: a difference
    """
    if min(map(len, differences.values()), default=0) < 2:
        yield "One seed, or one rung, has no intervals."
        return
    values = torch.tensor([*differences.values()], dtype=torch.float64)  # (m, n)
    (m, n), mean = values.shape, values.mean(dim=1)
    angle = torch.linspace(0, pi / 2, 100_001, dtype=torch.float64)
    law = torch.cumulative_trapezoid(angle.cos() ** (n - 2), angle)
    at = torch.searchsorted(law, law[-1] * (1 - 0.05 / torch.arange(m, 0, -1)))
    error = values.std(dim=1) / sqrt(n)
    order = (error / mean.abs()).argsort()  # 0 / 0, no change in any pair, comes last
    half = error[order] * sqrt(n - 1) * angle[at].tan()
    seen = (mean[order].abs() > half).long().cumprod(0)
    for i, x, h, yes in zip(order, mean[order], half, seen, strict=True):
        said = "a difference" if yes else "no difference seen"
        yield f"{[*differences][i]}: {x:+.1f} [{x - h:+.1f}, {x + h:+.1f}]: {said}"
