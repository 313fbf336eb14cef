"""Two equal steps, the first with hardly more memory than the program has by then.

    python -m tests.grpo.starved MODEL

Prints how often memory ran out, and the relative difference of the gradients.
"""

import resource
import sys
from pathlib import Path

import torch

from models.open_policy import load_policy
from tests.conftest import randomise
from tests.grpo.cases import config, draw, reward, steps
from tests.grpo.test_loop import at_each_update, gradients

MORE = 24 << 20  # bytes


def main() -> None:
    torch.set_num_threads(1)
    c = config(group_size=16, max_completion_length=120, kl_coef=0.04)
    policies = [randomise(load_policy(sys.argv[1], device="cpu")) for _ in range(3)]
    list(steps(policies.pop(), draw, reward, config()))  # loads what it needs
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits, found, cuts = [pages * resource.getpagesize() + MORE, -1], [], []
    for policy, limit in zip(policies, limits, strict=True):
        run = steps(policy, draw, reward, c)
        resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
        with at_each_update(lambda _, p=policy: found.append(gradients(p))):
            (step,) = run
        cuts.append(step.cuts)
    print(cuts[0], ((found[0] - found[1]).norm() / found[1].norm()).item())


if __name__ == "__main__":
    main()
