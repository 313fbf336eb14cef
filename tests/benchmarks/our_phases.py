"""The phases of our step, for a counter of operations: the loop runs as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import grpo.loop
from grpo.passes import Passes
from models.policy import Policy
from models.sampling import cuda_graph, sampler
from tests.benchmarks.operations import Operations


@contextmanager
def phases(counted: Operations) -> Iterator[None]:
    """Names the phases of a step while the loop runs as it is: sampling (prefill, decode),
    reference, update (with the check of each pass's gradient), optimizer."""

    def within(name: str, inner):
        def run(*args, **kwargs):
            with counted.phase(name):
                return inner(*args, **kwargs)

        return run

    run_passes = Passes.run

    def run(self, body, *args):
        name = "reference" if body is grpo.loop.reference_pass else "update"
        with counted.phase(name):
            return run_passes(self, body, *args)

    with (
        patch.object(grpo.loop, "sample_groups", within("decode", grpo.loop.sample_groups)),
        patch.object(grpo.loop, "optimizer_step", within("optimizer", grpo.loop.optimizer_step)),
        patch.object(cuda_graph, "prefill", within("prefill", cuda_graph.prefill)),
        patch.object(sampler, "prefill", within("prefill", sampler.prefill)),
        patch.object(Policy, "encode", within("prefill", Policy.encode)),  # the vision tower
        patch.object(Passes, "run", run),
    ):
        yield
