from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_folders(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where maps of pictures are kept, unless a test names another place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes ``tmp_path/<folder>/<class>/<i>.png`` of random pixels, returns ``tmp_path``."""
    rng = np.random.default_rng(0)

    def make(counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
        for name, count in counts.items():
            (tmp_path / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        return tmp_path

    return make


class Server:
    """A local web server.

    Attributes:
        files: path -> content.
        ranges: whether it serves parts of a file.
        failures: how many of the requests for parts to come get an error, the status.
        compresses: whether it compresses the texts for clients that take them so.
        cut_after: bytes after which it closes the connection, of the requests to come.
        requests: (path, Range header) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.failures, self.status = 0, 503
        self.compresses = False
        self.cut_after: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""

    def respond(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        content = self.files.get(handler.path)
        if self.failures and wanted:
            self.failures -= 1
            handler.send_error(self.status)
            return
        if content is None:
            handler.send_error(404)
            return
        takes = "gzip" in handler.headers.get("Accept-Encoding", "")
        if self.compresses and takes and handler.path.endswith(".json"):
            content = gzip.compress(content)
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(content):
                handler.send_error(416)
                return
            content = content[int(first) : int(last) + 1 if last else None]
            handler.send_response(206)
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if self.cut_after:
            content = content[: self.cut_after.pop(0)]
            handler.close_connection = True
        handler.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients keep their connections

        def do_GET(self) -> None:
            state.respond(self)

        def log_message(self, *args: object) -> None:
            pass

    class Listening(http.server.ThreadingHTTPServer):
        request_queue_size = 64  # connections that wait; 5 by default, more would be dropped

    with Listening(("127.0.0.1", 0), Handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()
