"""A hub of one's own: the few routes of the Hugging Face hub that a download takes."""

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Hub:
    """Serves `files` of data set `repo`; `asked` lists what was asked for, as (path, range).

    After `fails_after` bytes of content, every answer is an error.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.asked: list[tuple[str, str]] = []
        self.fails_after = 10**12
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((path, request.headers.get("Range", "")))
        content = self.content(path)
        if content is None:
            return self.send(request, 404, b"")
        first, last = 0, len(content) - 1
        if asked := request.headers.get("Range"):
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
        self.fails_after -= last + 1 - first
        if self.fails_after < 0:
            return self.send(request, 403, b"")  # one that is not tried again
        self.send(request, 206 if asked else 200, content[first : last + 1])

    def content(self, path: str) -> bytes | None:
        api = f"/api/datasets/{self.repo}"
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return json.dumps({"id": self.repo, "sha": COMMIT, "siblings": []}).encode()
        if path.startswith(f"{api}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            inside = {n: c for n, c in self.files.items() if n.rpartition("/")[0] == folder}
            tops = {n.partition("/")[0] for n in self.files if "/" in n} if not folder else set()
            folders = [{"type": "directory", "oid": "0" * 40, "path": name} for name in tops]
            return json.dumps(folders + [self.entry(*item) for item in inside.items()]).encode()
        return self.files.get(path.removeprefix(f"/datasets/{self.repo}/resolve/{COMMIT}/"))

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, object]:
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return {"type": "file", "oid": "0" * 40, "size": len(content), "path": name, "lfs": lfs}

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(content)
