"""Prefetching: worker threads prepare the images that are needed next, while a step runs.

Decoding, resizing and hashing release Python's lock, so threads are enough: they need no copy
of the model, and nothing is sent between processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import repeat
from threading import Lock, Thread, current_thread
from typing import Any
from weakref import WeakMethod, finalize

WORKERS = 2
LIMIT = 1 << 30  # bytes of results that wait to be taken; no image is begun above it
PATIENCE = 2.0  # seconds that the end of the program waits for an image under way

Draw = Callable[[int, int, int], Any]  # (step, slot, attempt) -> a question


class Prefetcher:
    """The results of `work(image)` for images named in advance, computed by threads.

    An image has a `key`, a result has `nbytes`.

    Threads exist only while there is work. An image under way when the program ends is waited for
    briefly, and no other is begun.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        """`work` is a bound method, held weakly: its owner holds the prefetcher."""
        self._work = WeakMethod(work)
        self._lock = Lock()  # guards the three below
        self._waiting: dict[str, Any] = {}  # by key, in the order to be begun
        self._begun: dict[str, Future] = {}
        self._threads: list[Thread] = []
        finalize(self, _stop, self._waiting, self._threads)

    def prefetch(self, images: Sequence[Any]) -> None:
        """Compute these, in this order. Images of an earlier call that are not among them are
        forgotten."""
        wanted = {image.key: image for image in images}
        with self._lock:
            self._begun = {k: f for k, f in self._begun.items() if k in wanted}
            self._waiting.clear()
            self._waiting |= {k: image for k, image in wanted.items() if k not in self._begun}
        self._start()

    def take(self, image: Any) -> Any:
        """The result, once: ready, waited for, or computed now. Raises what `work` raises."""
        with self._lock:
            self._waiting.pop(image.key, None)
            future = self._begun.pop(image.key, None)
        self._start()  # there may be room again
        return self._work()(image) if future is None else future.result()

    def _start(self) -> None:
        with self._lock:
            for _ in range(min(WORKERS, len(self._waiting)) - len(self._threads)):
                # A daemon: an image on a disk that does not answer cannot hold up the end.
                self._threads.append(Thread(target=self._run, daemon=True))
                self._threads[-1].start()

    def _run(self) -> None:
        for image, future in iter(self._next, None):
            try:
                future.set_result(self._work()(image))
            except Exception as error:  # raised again in `take`
                future.set_exception(error)

    def _next(self) -> tuple[Any, Future] | None:
        """The next image of a thread; None, and the thread ends, if there is none, or no room."""
        with self._lock:
            done = [future for future in self._begun.values() if future.done()]
            held = sum(future.result().nbytes for future in done if not future.exception())
            if not self._waiting or held >= LIMIT:
                self._threads.remove(current_thread())
                return None
            key = next(iter(self._waiting))
            self._begun[key] = Future()
            return self._waiting.pop(key), self._begun[key]


def _stop(waiting: dict[str, Any], threads: list[Thread]) -> None:
    """End the threads before the interpreter shuts down, which would end them midway."""
    waiting.clear()
    for thread in list(threads):
        if thread is not current_thread():
            thread.join(PATIENCE)


def prefetching(
    draw: Draw, prefetch: Callable, share: Callable, prompts_per_step: int, steps: int
) -> Draw:
    """`draw`, which also prefetches the questions of a step and of the next one as a step begins.

    `prefetch` is given a list of questions; `share` gives this process's part of such a list.
    `draw` is a function of its arguments, so calling it early changes nothing. Redrawn slots
    (dynamic sampling) depend on the rewards, so their images cannot be prefetched.
    """

    def drawn(step: int, slot: int, attempt: int = 0) -> Any:
        if slot == 0 and attempt == 0:
            coming: list[Any] = []
            for number in range(step, min(step + 2, steps)):
                whole = list(map(draw, repeat(number), range(prompts_per_step), repeat(0)))
                # This process's share first: the others' are needed after sampling.
                coming += share(whole) + whole
            prefetch(coming)
        return draw(step, slot, attempt)

    return drawn
