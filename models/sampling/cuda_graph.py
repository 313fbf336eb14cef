"""The sampler of a GPU: the loop of sampler.py, with its steps replayed from CUDA graphs.

A token of a 2B model takes some thousand kernels, and a GPU finishes each before Python has
launched the next. A graph launches all at once, so a step takes the time of its memory traffic.
What that requires:

* Shapes are fixed. So there is a graph for all rows, one for half of them, and so on. As rows
  finish, the live ones move to the front, and a smaller graph continues with the first rows of the
  same buffers.
* The host reads results every WINDOW steps only. Until then a row may run on past its EOS; those
  tokens are thrown away and change nothing else, because rows share no number.
* Addresses are fixed. Before each rollout everything that graphs have recorded is compared. If
  anything moved, all graphs are recorded again: a replay on freed memory raises no error.

A driver, a library or another torch may refuse to record. `--cuda-graphs auto` then goes on with
the plain loop, which draws the same tokens from the same random numbers.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from grpo.settings.errors import SettingsError, UsageError
from models.device import gpu_lost, out_of_memory
from models.layers import Layers
from models.sampling.decode_step import SLOTS, WINDOW, Buffers, Weights, step
from models.sampling.kv_cache import prefill
from models.sampling.sampler import Rollout, Task, sample_eagerly

Step = Callable[[], None]
Record = Callable[[Step, torch.device, Any], Any]  # see GraphSampler


class NotRecorded(Exception):
    """A step cannot be recorded. The text says why, in one line."""


class Graph:
    """A step as a torch.cuda.CUDAGraph. These lines have not been run on a GPU yet.

    The one run is what torch asks for before a capture, so that libraries make their handles and
    workspaces outside of it; on the capture's own stream, because they make them for a stream.
    Capturing then executes nothing.
    """

    def __init__(self, step: Step, device: torch.device, beside: "Graph | None") -> None:
        """`beside` is a graph that is never replayed at the same time: they share their memory."""
        with torch.cuda.device(device):
            # A pool whose graphs are all gone may not be used again, so the next makes a new one.
            self.pool = torch.cuda.graph_pool_handle() if beside is None else beside.pool
            self.stream = torch.cuda.Stream() if beside is None else beside.stream
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                step()
            torch.cuda.current_stream().wait_stream(self.stream)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile, as NCCL's does ("thread_local"). The outer
            # `with` restores the stream, which torch does not if the capture's end raises.
            capture = torch.cuda.graph(self.graph, self.pool, self.stream, "thread_local")
            try:
                with torch.cuda.stream(self.stream), capture:
                    step()
            except BaseException:
                # torch ends its pool only after a capture that ended well. Until then its allocator
                # gives no cached memory back, and another capture into this pool is an error.
                with suppress(Exception):
                    torch._C._cuda_endAllocateToPool(device.index, self.pool)
                    torch._C._cuda_releasePool(device.index, self.pool)
                raise

    def replay(self) -> None:
        self.graph.replay()


class GraphSampler:
    """Draws what `sample_eagerly` draws. Keeps buffers and graphs from one rollout to the next.

    `record` makes a graph from a step, a device, and a graph that was made before or None. It runs
    the step once, and again at every `replay()`. If it fails and is not `required`, this and every
    later task is drawn by `sample_eagerly`.
    """

    def __init__(self, record: Record = Graph, required: bool = True) -> None:
        self.record, self.required, self.given_up = record, required, False
        self.forget()

    def forget(self) -> None:
        """Free graphs and buffers. Graphs go first, because they write to the buffers."""
        self.graphs: dict[tuple, Any] = {}
        self.buffers: Buffers | None = None
        self.weights: Weights | None = None
        self.graph_key: list[tuple] = []

    def __call__(self, task: Task) -> Rollout:
        """Draw all completions of a task; see Sampler.

        Raises SettingsError if graphs are required and cannot be recorded, and UsageError if the
        GPU is lost.
        """
        if not self.given_up:
            try:
                return self._draw(task)
            except NotRecorded as error:
                self._give_up(str(error))
        # Outside of the block: until it ends, the traceback keeps the buffers alive.
        return sample_eagerly(task)

    @torch.inference_mode()
    def _draw(self, task: Task) -> Rollout:
        try:
            self._prepare(task)
            self._prefill(task)
            return self._decode(task)
        except BaseException as error:
            self.forget()  # a retry in halves may have no room beside these
            if gpu_lost(error):
                problem = f"the GPU is lost to this process ({_first_line(error)})"
                raise UsageError(f"{problem}; start it again with --cuda-graphs off") from None
            raise

    def _give_up(self, why: str) -> None:
        problem = f"a decoding step cannot be recorded as a CUDA graph ({why})"
        if self.required:
            raise SettingsError(f"--cuda-graphs on: {problem}; use auto or off") from None
        self.given_up = True
        print(f"--cuda-graphs auto: {problem}; sampling goes on without graphs", file=sys.stderr)

    def _prepare(self, task: Task) -> None:
        """Reuse buffers and graphs if they are large enough and no weight has moved; else new ones.

        New graphs are recorded by `_step` as they are needed.
        """
        model, rows = task.language_model, len(task.uniforms)
        now = Weights(Layers(model), model.embed_tokens.weight, task.head, task.banned)
        slots, graph_key = max(map(len, task.embeds)) + task.max_length, now.graph_key()
        if graph_key == self.graph_key and self.buffers.fit(rows, slots):
            self.weights.copy_lora(now)
            return
        self.forget()
        self.weights, self.graph_key = now, graph_key
        slots = -(-slots // SLOTS) * SLOTS
        self.buffers = Buffers.make(now.layers, rows, slots, task.embeds[0])

    def _prefill(self, task: Task) -> None:
        """Compute each prompt once, and put every row before its first token."""
        at, rows, size = self.buffers, len(task.uniforms), task.group_size
        at.clear(max(map(len, task.embeds)))
        attention = partial(at.prefill_attention, size)
        last, position = prefill(self.weights.layers, attention, task.prompts, task.embeds)
        at.hidden[:rows] = last.repeat_interleave(size, dim=0)
        at.position[:rows] = position.repeat_interleave(size).to(at.position.device)

    def _decode(self, task: Task) -> Rollout:
        """Windows of WINDOW steps, until every row has ended."""
        at, rollout = self.buffers, Rollout(task)
        for start in range(task.first, task.max_length, WINDOW):
            live = len(rollout.row)
            if not live:
                break
            window = slice(start, min(start + WINDOW, task.max_length))
            steps = window.stop - start
            at.uniforms[:live, :steps] = task.uniforms[rollout.row, window]
            at.column.zero_()
            for _ in range(steps):
                self._step(live, task.temperature)
            # The host waits here, and nowhere else.
            done = rollout.add(start, at.drawn[:, :live, :steps].cpu())
            rollout.row = at.drop(done).apply(rollout.row)
        return rollout

    def _step(self, live: int, temperature: float) -> None:
        """One more token of the live rows, by the smallest graph that has room for them."""
        rows = len(self.buffers.hidden)
        while (half := -(-rows // 2)) >= live and half < rows:
            rows = half
        kind = (rows, temperature)
        if kind in self.graphs:
            self.graphs[kind].replay()
            return
        todo = partial(step, self.buffers.first(rows), self.weights, temperature)
        beside = next(iter(self.graphs.values()), None)
        try:
            self.graphs[kind] = self.record(todo, self.buffers.hidden.device, beside)
        except Exception as error:
            raise _recording_error(error) from None


def _recording_error(error: BaseException) -> BaseException:
    """What the failure of a recording means: the GPU or its memory is lost, or NotRecorded."""
    first = error.__context__ or error  # a capture that failed raises once more as it ends
    if gpu_lost(first) or out_of_memory(first):
        return first
    return NotRecorded(_first_line(first))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
