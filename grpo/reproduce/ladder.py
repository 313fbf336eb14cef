"""From REINFORCE to GRPO, one change a rung, and then each variant against the fifth rung.

    python -m grpo.reproduce ladder --seeds 3

The page says what each rung changed: the difference to the rung before it, or to the fifth, over
pairs of runs of equal seed, and the lines of grpo/loss.py or grpo/advantages.py that do it.
"""

import inspect
from collections.abc import Iterator, Mapping
from operator import sub
from typing import Any

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
            differences[f"{name}, {figure}, to {other}"] = list(map(sub, new, old))
    yield from verdicts(differences)
    for name, found in arms.items():
        _, function, part = RUNGS[name]
        code = inspect.getsource(function).rpartition('"""')[2].splitlines()
        signal = f"groups with signal {100 * found['signal']:.0f} %; `{function.__name__}`"
        yield "\n".join([f"{name}: {signal}:", *(f"    {x}" for x in code if x and part in x)])


def _of_seeds(table: Mapping[str, Any], figure: str) -> list[float]:
    """Return a figure of each run of an arm in points, in the order of the seeds."""
    runs = [cells[table["trained_on"]] for m, cells in table["results"].items() if m != "base"]
    return [100 * cell[figure] for cell in runs]


def verdicts(differences: Mapping[str, list[float]]) -> Iterator[str]:
    """Yield a sentence for each difference, over its seeds, the surest first.

    Student's interval of the mean, at the level at which Holm tests it: 1 - 0.05 / (m - k) for the
    k-th of m, k from 0. A difference is seen if its interval and all before it exclude 0.

    >>> print(*verdicts({"a": [4.0, 5.0, 6.0]}), sep="; ")
    a: +5.0 [+2.5, +7.5] at 95.0 %: a difference
    """
    from rewards.evaluation.statistics import holm, student_p, students_t

    if min(map(len, differences.values()), default=0) < 2:
        yield "One seed, or one rung, has no intervals."
        return
    p = {name: student_p(values) for name, values in differences.items()}
    levels = [1 - 0.05 / left for left in range(len(p), 0, -1)]
    tested = zip(sorted(p, key=p.__getitem__), levels, holm(sorted(p.values())), strict=True)
    for name, level, adjusted in tested:
        x, low, high = students_t(differences[name], level)
        said = "a difference" if adjusted <= 0.05 else "no difference seen"
        yield f"{name}: {x:+z.1f} [{low:+z.1f}, {high:+z.1f}] at {100 * level:.1f} %: {said}"
