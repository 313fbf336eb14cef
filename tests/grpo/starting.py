"""How processes that torchrun started find each other's GPUs; for tests/test_distributed.py.

    torchrun --nproc-per-node N -m tests.grpo.starting GPU,GPU,...

Each process has the GPU that is named at its place: `cpu`, or a name in place of a GPU's id, which
is all of torch.cuda that is asked here. `late` has no GPU, and the last process is late.
"""

import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import torch

from grpo import distributed
from grpo.settings.errors import exit_on_usage_error


def main(words: str) -> None:
    if words == "late":
        distributed.PATIENCE = timedelta(seconds=2)
    with distributed.processes():
        if words == "late":
            time.sleep(6 * (distributed.rank() + 1 == distributed.world()))
            distributed.summed(torch.ones(1))
            return
        own = words.split(",")[distributed.rank()]
        torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=own)
        distributed.connect(torch.device("cpu" if own == "cpu" else "cuda:1"))
        print("connected")


if __name__ == "__main__":
    with exit_on_usage_error("starting"):
        main(sys.argv[1])
