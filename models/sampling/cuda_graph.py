"""The sampler on a GPU: the loop of sampler.py, its steps replayed from CUDA graphs.

A token of a 2B model is some thousand kernels, and a GPU is done with each before Python has asked
for the next. Recorded once and replayed, a step takes what its memory traffic takes. The price:

* Shapes are fixed, so there is a graph per number of rows: of all, of half of them, and so on. As
  rows finish, the live ones move together, and a smaller graph goes on with the first rows of the
  same storages.
* The host looks every WINDOW steps only. A row may run on past its end until then; that is thrown
  away, and can change nothing else: rows share no number.
* Addresses are fixed. Before each rollout everything that graphs have baked in is compared, and
  where anything moved all are recorded anew: a graph that replays on freed memory says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.layers import Layers, Linear
from models.sampling.decode_step import SLOTS, WINDOW, Storages, Weights, step
from models.sampling.sampler import Rollout, not_finite, prefill
from models.tree import Prompt

Step = Callable[[], None]


class Replayed(Protocol):
    """A step that was run once when this was made, and runs again at every replay."""

    def replay(self) -> None: ...


class Graph:
    """A step as a torch.cuda.CUDAGraph. These lines have not been run on a GPU yet.

    The one run is what torch asks for before a capture, so that libraries make their handles and
    workspaces outside; on the capture's own stream, because they make them for a stream. Capturing
    then executes nothing.
    """

    def __init__(self, step: Step, device: torch.device, beside: Graph | None) -> None:
        """`beside` is a graph that is never replayed at the same time: they share their memory."""
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream() if beside is None else beside.stream
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                step()
            torch.cuda.current_stream().wait_stream(self.stream)
            self.graph = torch.cuda.CUDAGraph()
            # The pool of a live graph and no handle of our own: one whose graphs are all gone
            # may not be used again.
            pool = None if beside is None else beside.graph.pool()
            with torch.cuda.graph(self.graph, pool=pool, stream=self.stream):
                step()

    def replay(self) -> None:
        self.graph.replay()


class Called:
    """The same step without a graph: on any device, and to find a bug."""

    def __init__(self, step: Step, device: torch.device, beside: Any) -> None:
        self.replay = step
        step()


class Captured:
    """Draws as sampling's own loop does. Holds storages and graphs from one rollout to the next.

    `record` makes a `Replayed` of a step, a device, and one that was made before or None.
    """

    def __init__(self, record: Callable[[Step, torch.device, Any], Replayed] = Graph) -> None:
        self.record = record
        self.forget()

    def forget(self) -> None:
        """Graphs first: they are of no use without what they write to."""
        self.graphs: dict[tuple, Replayed] = {}
        self.storages: Storages | None = None
        self.weights: Weights | None = None
        self.baked: list[tuple] = []

    @torch.inference_mode()
    def __call__(
        self,
        language_model: nn.Module,
        head: Linear,
        prompts: Sequence[Prompt],
        embeds: Sequence[Tensor],
        *,
        banned: Tensor,
        group_size: int,
        max_length: int,
        **rest: Any,
    ) -> Rollout:
        """What `sampling.rollout` asks of its `draw`."""
        weights = Weights(Layers(language_model), language_model.embed_tokens.weight, head, banned)
        rows, longest = len(prompts) * group_size, max(map(len, embeds))
        try:
            self._prepare(weights, rows, longest + max_length, embeds[0])
            self._begin(prompts, embeds, group_size)
            return self._decode(prompts, group_size, max_length, **rest)
        except BaseException:
            self.forget()  # the next rollout may have had no room beside these
            raise

    def _prepare(self, now: Weights, rows: int, slots: int, like: Tensor) -> None:
        """Storages with room enough, and graphs of nothing but what is where it was."""
        baked = now.baked()
        if baked == self.baked and self.storages.fit(rows, slots):
            self.weights.refresh(now)
            return
        self.forget()
        self.weights, self.baked = now.owning_lora(), baked
        self.storages = Storages.make(now.layers, rows, -(-slots // SLOTS) * SLOTS, like)

    def _begin(self, prompts: Sequence[Prompt], embeds: Sequence[Tensor], group_size: int) -> None:
        """Each prompt once through the layers, and its rows stand before their first token."""
        at, rows = self.storages, len(prompts) * group_size
        at.clear(max(map(len, embeds)))
        # (B, hidden)
        last = prefill(self.weights.layers, at.filling(group_size), prompts, embeds)
        at.hidden[:rows] = last.repeat_interleave(group_size, dim=0)
        position = torch.tensor([p.next_position for p in prompts])
        at.position[:rows] = position.repeat_interleave(group_size).to(at.position.device)

    def _decode(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        max_length: int,
        *,
        u: Tensor | None,
        temperature: float,
        eos: frozenset[int],
        keep_logprobs: bool = False,
    ) -> Rollout:
        at, row = self.storages, torch.arange(len(prompts) * group_size)  # row: of each live place
        tokens = torch.zeros(len(row), max_length, dtype=torch.int64)
        logprobs = torch.zeros(len(row), max_length) if keep_logprobs else None
        lengths = torch.zeros(len(row), dtype=torch.int64)
        stopped = torch.zeros(len(row), dtype=torch.bool)
        ends = torch.tensor(sorted(eos))
        for start in range(0, max_length, WINDOW):
            if not len(row):
                break
            window = slice(start, min(start + WINDOW, max_length))
            seen = slice(len(row)), slice(window.stop - start)  # of what a window holds
            if u is not None:
                at.uniforms[seen] = u[row, window].to(at.uniforms.device)
            at.column.zero_()
            for _ in range(window.stop - start):
                self._step(len(row), temperature, keep_logprobs)
            new = at.tokens[seen].cpu()  # the host waits here, and nowhere else
            end = torch.isin(new, ends)
            done = end.any(dim=1)
            length = torch.where(done, end.int().argmax(dim=1) + 1, new.shape[1])  # first EOS in
            _check(at.probable[seen].cpu(), length, [prompts[i] for i in row // group_size])
            tokens[row, window] = new
            if logprobs is not None:
                logprobs[row, window] = at.logprobs[seen].cpu()
            lengths[row], stopped[row] = start + length, done
            holes, sources, live = at.drop(done)
            row[holes] = row[sources]
            row = row[:live]
        return Rollout(tokens, lengths, stopped, logprobs)

    def _step(self, live: int, temperature: float, keep_logprobs: bool) -> None:
        """One more token of the live rows, by the smallest graph that has room for them."""
        rows = len(self.storages.hidden)
        while (half := -(-rows // 2)) >= live and half < rows:
            rows = half
        kind = (rows, temperature, keep_logprobs)
        if kind in self.graphs:
            self.graphs[kind].replay()
            return
        todo = partial(step, self.storages.first(rows), self.weights, temperature, keep_logprobs)
        beside = next(iter(self.graphs.values()), None)
        self.graphs[kind] = self.record(todo, self.storages.hidden.device, beside)


def _check(probable: Tensor, length: Tensor, prompts: Sequence[Prompt]) -> None:
    """Raise of the first token (rows, many) without a probability that is one of its row's."""
    wrong = ~probable & (torch.arange(probable.shape[1]) < length[:, None])
    if bool(wrong.any()):
        raise not_finite(prompts[int(wrong.T.nonzero()[0, 1])])
