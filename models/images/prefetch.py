"""Images made ready by worker threads before they are asked for.

Decoding, resizing and hashing let go of Python's lock, so threads are enough: they need no copy of
the model, and nothing has to be sent between processes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock, Thread, current_thread
from typing import Generic, Protocol, TypeVar

WORKERS = 2
LIMIT = 1 << 30  # bytes of results that wait to be taken; no image is begun above it
PATIENCE = 2.0  # seconds that the end of the program waits for an image under way


class Keyed(Protocol):
    @property
    def key(self) -> str: ...


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Image = TypeVar("Image", bound=Keyed)
Result = TypeVar("Result", bound=Sized)


class Ahead(Generic[Image, Result]):
    """`work(image)` of the images that will be asked for, done by threads meanwhile.

    A thread lives while there is work, so that none is left when all is taken; an image under way
    when the program ends is waited for briefly, and nothing else is begun.
    """

    def __init__(self, work: Callable[[Image], Result]) -> None:
        self._work = work
        self._lock = Lock()  # guards the three below
        self._waiting: dict[str, Image] = {}  # by key, in the order to be begun
        self._begun: dict[str, Future[Result]] = {}
        self._threads: list[Thread] = []
        weakref.finalize(self, _stop, self._waiting, self._threads)

    def want(self, images: Sequence[Image]) -> None:
        """Begin these, in this order. What was wanted before and is not among them is forgotten."""
        wanted = {image.key: image for image in images}
        with self._lock:
            for key in self._begun.keys() - wanted.keys():
                del self._begun[key]
            self._waiting.clear()
            self._waiting |= {k: image for k, image in wanted.items() if k not in self._begun}
        self._start()

    def take(self, image: Image) -> Result:
        """The work's result, once: ready, waited for, or done now. Raises what the work raises."""
        with self._lock:
            self._waiting.pop(image.key, None)
            future = self._begun.pop(image.key, None)
        self._start()  # there may be room again
        return self._work(image) if future is None else future.result()

    def _start(self) -> None:
        with self._lock:
            for _ in range(min(WORKERS, len(self._waiting)) - len(self._threads)):
                # A daemon: an image on a disk that does not answer cannot hold up the end.
                self._threads.append(Thread(target=self._run, daemon=True))
                self._threads[-1].start()

    def _run(self) -> None:
        while task := self._next():
            image, future = task
            try:
                future.set_result(self._work(image))
            except Exception as error:  # whoever takes the image is told
                future.set_exception(error)
            del task, image, future

    def _next(self) -> tuple[Image, Future[Result]] | None:
        """What a thread is to do; None: it leaves, for there is nothing, or no room."""
        with self._lock:
            done = [future for future in self._begun.values() if future.done()]
            held = sum(future.result().nbytes for future in done if not future.exception())
            if not self._waiting or held >= LIMIT:
                self._threads.remove(current_thread())
                return None
            key = next(iter(self._waiting))
            self._begun[key] = Future()
            return self._waiting.pop(key), self._begun[key]


def _stop(waiting: dict[str, Image], threads: list[Thread]) -> None:
    """Before the interpreter is taken down: a thread inside it would be cut off in the middle."""
    waiting.clear()
    for thread in list(threads):
        thread.join(PATIENCE)
