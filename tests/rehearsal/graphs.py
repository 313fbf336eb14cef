"""torch.cuda's streams and graphs on a CPU, so that the product's own recording code runs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.models.sampling.recorded import HostWaits, Recorded
from tests.rehearsal.claimed import Refused, Rehearsal
from tests.rehearsal.counts import REPLAYS, line


class Recording(Recorded):
    """The operations between entering and leaving a capture.

    A capture executes nothing, and a CPU executes everything, so what was written is set back.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        TorchDispatchMode.__init__(self)
        self.rehearsal = rehearsal
        self.replays = 0
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except HostWaits as error:
            raise Refused(f"{error} while a stream is capturing, {line()}") from None

    def _keep_what_is_written(self, func: Any, args: Any, kwargs: Any) -> None:
        with self.rehearsal.uncounted():
            super()._keep_what_is_written(func, args, kwargs)

    def restore(self) -> None:
        for storage, content in self._before.values():
            storage.copy_(content)


class Stream:
    """A torch.cuda.Stream: on a CPU everything is in order anyway."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, other: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


def graph_classes(rehearsal: Rehearsal) -> dict[str, Any]:
    """What takes the place of torch.cuda's names, by name."""
    default = Stream()

    class CUDAGraph:
        recording: Recording | None = None

        def pool(self) -> object:
            return id(self)

        def reset(self) -> None:
            self.recording = None

        def replay(self) -> None:
            if self.recording is None:
                raise RuntimeError(
                    "Called CUDAGraph::replay without a preceding successful capture"
                )
            rehearsal.counts.add(REPLAYS, "replay")
            # A replay refuses nothing and is one launch, so nobody need watch its operations.
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                self.recording.replay()

    @contextmanager
    def graph(
        cuda_graph: CUDAGraph,
        pool: Any = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        recording = Recording(rehearsal)
        rehearsal.capturing = True
        try:
            with recording:
                yield
        finally:
            rehearsal.capturing = False
            recording.restore()
        cuda_graph.recording = recording

    return {
        "CUDAGraph": CUDAGraph,
        "Stream": Stream,
        "current_stream": lambda device=None: default,
        "device": nullcontext,
        "graph": graph,
        "graph_pool_handle": object,
        "stream": nullcontext,
    }
