"""A judge that speaks OpenAI's wire format on 127.0.0.1, with faults on demand."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.programs import join

PATIENCE = 10.0  # seconds, so that a broken test ends


def verdict(choice: str | int, reason: str = "as seen") -> str:
    """The reply of a judge that does as it is told."""
    return json.dumps({"reason": reason, "verdict": choice})


def wire(content: Any) -> dict[str, Any]:
    """A chat completion, as OpenAI, vLLM and Ollama send it."""
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


class Server:
    """Answers `reply(body)`; `faults`, one a request, come first: see `_Handler.fail`.

    A reply that is a tuple is a fault, too.
    """

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Any] = lambda body: verdict("yes")
        self.faults: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.in_flight = self.peak = 0  # requests that are being answered, and the most ever
        self.together = 0  # requests that wait until so many are there
        self.arrived = threading.Condition()
        self.waiting = 0
        self.met = False
        self.closing = threading.Event()
        self.url = ""

    def wait_for_others(self) -> None:
        with self.arrived:
            self.waiting += 1
            self.met = self.met or self.waiting >= self.together
            self.arrived.notify_all()
            self.arrived.wait_for(lambda: self.met, PATIENCE)
            self.waiting -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        judge: Server = self.server.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.arrived:
            judge.bodies.append(body)
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            judge.paths.append(self.path)
            fault = judge.faults.pop(0) if judge.faults else None
            judge.in_flight += 1
            judge.peak = max(judge.peak, judge.in_flight)
        if judge.together:
            judge.wait_for_others()
        said = judge.reply(body)
        fault = said if isinstance(said, tuple) else fault
        reply = b"" if isinstance(said, tuple) else json.dumps(wire(said)).encode()
        with judge.arrived:
            judge.in_flight -= 1
        if fault is None:
            self.send(200, reply)
        else:
            self.fail(fault, judge)

    def fail(self, fault: Any, judge: Server) -> None:
        """A status, (status, headers, body), the body of a 200, or "slow", "endless", "cut", "hang
        up"."""
        if fault == "endless":
            self.send(200, b"{", length=2**62)
            with suppress(OSError):
                while not judge.closing.is_set():
                    self.wfile.write(b" " * 2**16)
            self.close_connection = True
        elif fault == "slow":
            judge.closing.wait(PATIENCE)
        elif fault in ("cut", "hang up"):
            if fault == "cut":
                whole = json.dumps(wire(verdict("no"))).encode()
                self.send(200, whole[: len(whole) // 2], length=len(whole))
            self.close_connection = True
        elif isinstance(fault, bytes):
            self.send(200, fault)
        else:
            status, headers, body = fault if isinstance(fault, tuple) else (fault, {}, b"{}")
            self.send(status, body, headers)

    def send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def serving() -> Iterator[Server]:
    """A judge that serves until the end of the block."""
    judge = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.judge = judge
    http.daemon_threads = True
    judge.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    loop = {"poll_interval": 0.02}
    thread = threading.Thread(target=http.serve_forever, kwargs=loop, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.closing.set()
        http.shutdown()
        join(thread)
        http.server_close()
