"""Rehearse train.py or evaluate.py as on a GPU, and print what would be counted there.

    python -m tests.rehearsal train.py --recipe phantom --steps 2 --out none
    python -m tests.rehearsal --card sm90 evaluate.py --run runs/NAME

Everything after the program's name is the program's own. Exit code 1 if CUDA would have raised.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

import torch

import evaluate
import train
from tests.rehearsal.card import CARDS, rehearsed

PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "train.py": train.main,
    "evaluate.py": evaluate.main,
}


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.rehearsal", description=__doc__)
    parser.add_argument("--card", choices=CARDS, default="sm80", help="whose kernels are chosen")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the program")
    words = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    with rehearsed(words.card) as rehearsal:
        try:
            PROGRAMS[words.program](words.flags)
        except Exception:
            traceback.print_exc()
            failed = True
    print(f"{words.card}, {words.program} {' '.join(words.flags)}\n{rehearsal.counts.text()}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
