"""A web server of one folder that answers range requests, incorrectly if requested."""

from __future__ import annotations

import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Served:
    """What a server did, and how it should misbehave; may be changed while it runs."""

    folder: Path
    suffix: str = ".npy"  # of its files
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)  # by class
    sent: int = 0  # bytes of bodies
    no_ranges: bool = False
    missing: set[str] = field(default_factory=set)
    fails: Counter[str] = field(default_factory=Counter)  # class -> how many times HTTP 500
    until: dict[str, int] = field(default_factory=dict)  # class -> HTTP 500 after how many requests
    md5: dict[str, str] = field(default_factory=dict)  # class -> its reported MD5
    cuts: Counter[str] = field(default_factory=Counter)  # class -> how many times half a body
    shifts: Counter[str] = field(default_factory=Counter)  # class -> how many times another range
    stalls: Counter[str] = field(default_factory=Counter)  # class -> how many times silent forever
    pauses: Counter[str] = field(default_factory=Counter)  # class -> how many times half, then half
    passes: Callable[[float], None] | None = None  # lets seconds pass, for stalls and pauses
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, faults: Counter[str], name: str) -> bool:
        with self.lock:
            faults[name] -= 1
            return faults[name] >= 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms
    served: Served

    def do_GET(self) -> None:
        served, name = self.served, Path(unquote(self.path)).stem
        file = served.folder / f"{name}{served.suffix}"
        with served.lock:
            served.requests[name] += 1
        over = served.requests[name] > served.until.get(name, served.requests[name])
        if over or served.take(served.fails, name):
            return self.answer(500)
        if name in served.missing or not file.is_file():
            return self.answer(404)
        if served.no_ranges or "Range" not in self.headers:
            return self.answer(200, file.read_bytes(), served.take(served.cuts, name))
        size = file.stat().st_size
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or size), size - 1)
        if served.take(served.shifts, name):
            first, last = first - 1, last - 1
        if served.take(served.stalls, name):
            while not select.select([self.connection], [], [], 0.01)[0]:  # until the client leaves
                served.passes(30)
        headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
        if name in served.md5:
            headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={served.md5[name]}"
        with file.open("rb") as data:
            data.seek(max(first, 0))
            part = data.read(last + 1 - first)
        cut, pause = served.take(served.cuts, name), served.take(served.pauses, name)
        self.answer(206, part, cut, pause, **headers)

    def answer(
        self, status: int, body: bytes = b"", cut: bool = False, pause: bool = False, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if cut:
            body, self.close_connection = body[: len(body) // 2], True
        with self.served.lock:
            self.served.sent += len(body)
        if pause:
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.served.passes(15)
            body = body[half:]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *args: object) -> None:
        pass  # a client may close a connection early


@contextmanager
def serve(folder: Path, suffix: str = ".npy") -> Iterator[Served]:
    """Serve the files of ``folder`` with this suffix on a free port of this machine."""
    served = Served(folder, suffix)
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
