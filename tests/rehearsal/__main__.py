"""Rehearse train.py or evaluate.py as on a GPU, and print what would be counted there.

    python -m tests.rehearsal train.py --recipe phantom --steps 2 --eval-size 0
    python -m tests.rehearsal --card sm90 --step 2 train.py --recipe phantom --steps 2
    python -m tests.rehearsal evaluate.py --run runs/NAME --device cuda

Everything after the program's name is the program's own. Exit code 1 if CUDA would have raised; 2
if the program ended in one line, as it does under --cuda-graphs on if a graph was refused.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import evaluate
import grpo.loop
import train
from grpo.distributed import rank
from grpo.settings.errors import exit_on_usage_error
from rewards.scoring import RewardError
from tests.rehearsal.card import CARDS, rehearsed
from tests.rehearsal.claimed import Rehearsal
from tests.rehearsal.counts import Counts

PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "train.py": train.main,
    "evaluate.py": evaluate.main,
}


@contextmanager
def counted_alone(number: int, rehearsal: Rehearsal) -> Iterator[Counts]:
    """Counts of step `number` (from 1) of the GRPO loop; those of all else are left out."""
    alone, real = Counts(), grpo.loop.grpo_step

    def step(*arguments: Any) -> Any:
        if arguments[-1] + 1 != number:
            return real(*arguments)
        before, rehearsal.counts = rehearsal.counts, alone
        try:
            return real(*arguments)
        finally:
            rehearsal.counts = before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo.loop, "grpo_step", step)
        yield alone


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.rehearsal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--card", choices=CARDS, default="sm80", help="whose kernels are chosen")
    parser.add_argument("--step", type=int, default=0, help="count this step of training only")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the program")
    words = parser.parse_args()
    torch.set_num_threads(1)
    code = 0
    with rehearsed(words.card) as rehearsal, counted_alone(words.step, rehearsal) as alone:
        try:
            with exit_on_usage_error(words.program, RewardError):
                PROGRAMS[words.program](words.flags)
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
    if rank():
        return code
    what = f"step {words.step} alone" if words.step else "the whole run"
    print(f"\n{words.card}, {what}: {words.program} {' '.join(words.flags)}")
    print((alone if words.step else rehearsal.counts).text())
    return code


if __name__ == "__main__":
    sys.exit(main())
