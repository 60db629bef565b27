"""``dwsep demo``: a local page with networks beside each other, for a picture or a drawing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, read
from dwsep_zoo.errors import UserError, first_line, say
from dwsep_zoo.schema.texts import Text

if TYPE_CHECKING:
    from dwsep_zoo.artefacts import Artefact

MOST = 4  # networks that fit beside each other
TIMEOUT_S = 20  # of a browser that stops in the middle of a picture
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; frame-ancestors 'none'"
)
"""The browser fetches nothing from anywhere else, whatever a class may be called."""


class DemoArguments(Arguments):
    """Open a page that shows what networks say about a picture, beside each other."""

    port: Annotated[int, Field(ge=1, le=65535)] = Field(7860, description="of the page")
    host: Text = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 lets the whole network use it"
    )


def run(arguments: list[str]) -> None:
    sources, options = read("demo", arguments, DemoArguments, words="ARTEFACT ...")
    if not 1 <= len(sources) <= MOST:
        raise UserError(
            f"demo: name one to {MOST} networks, for example: dwsep demo logs/train/runs/RUN"
        )
    with Server(options.host, options.port) as server:  # before anything slow
        from dwsep_zoo.artefacts import open_artefact

        server.show([open_artefact(source) for source in sources])
        print(f"{server.address} (ctrl-C ends it)", flush=True)
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """Serves the page, and what its networks say about the pictures that the page sends.

    Raises:
        UserError: for a port in use, and an address that is not this machine's.
    """

    daemon_threads = True
    artefacts: Sequence[Artefact]

    def __init__(self, host: str, port: int):
        try:
            family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(place[0]), port), Handler)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"cannot listen on host={host} port={port}: {reason}") from error
        name = f"[{host}]" if ":" in host else host
        self.address = f"http://{name}:{self.server_port}"
        self.turn = threading.Lock()  # one picture at a time, so that times are comparable

    def server_bind(self) -> None:
        """Without HTTPServer's search for the machine's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def show(self, artefacts: Sequence[Artefact]) -> None:
        """Choose the networks, and try each once.

        Raises:
            UserError: for one that cannot take pictures.
        """
        from PIL import Image

        from dwsep_zoo.artefacts.demo import see

        self.artefacts = artefacts
        for artefact in artefacts:
            see(artefact, Image.new("RGB", (64, 64)))

    @cached_property
    def page(self) -> bytes:
        from dwsep_zoo.artefacts.demo import facts
        from dwsep_zoo.artefacts.sources import MOST_BYTES
        from dwsep_zoo.report.html.template import page_template

        text = page_template("dwsep_zoo", "commands", "demo.html.jinja").render(
            networks=[facts(one) for one in self.artefacts],
            drawing_first=all(one.about.in_chans == 1 for one in self.artefacts),
            most_bytes=MOST_BYTES,
        )
        return text.encode()

    def answer(self, kind: str, content: bytes) -> list[dict[str, Any]]:
        """What each network says about the bytes of a picture or of a drawing.

        Raises:
            UserError: for what is not a picture.
        """
        from dwsep_zoo.artefacts.demo import from_drawing, see
        from dwsep_zoo.artefacts.sources import decoded

        image = decoded(content, f"this {kind}")
        drawn = kind == "drawing"
        with self.turn:
            return [
                see(one, from_drawing(image, one.about) if drawn else image).plain()
                for one in self.artefacts
            ]


class Handler(BaseHTTPRequestHandler):
    """The page at ``/``; pictures are sent to ``/picture`` and ``/drawing``."""

    server: Server
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        kind = self.path.lstrip("/")
        if kind not in ("picture", "drawing"):
            return self.send_error(404)
        values: dict[str, Any]
        try:
            status, values = 200, {"networks": self.server.answer(kind, self._content())}
        except UserError as error:
            status, values = 400, {"error": str(error)}
        except Exception as error:  # of a runtime, such as too little memory
            say(error)
            status, values = 500, {"error": first_line(error)}
        self._send(status, json.dumps(values).encode(), "application/json")

    def _content(self) -> bytes:
        from dwsep_zoo.artefacts.sources import MOST_BYTES

        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            raise UserError(f"a picture may have at most {MOST_BYTES:,} bytes")
        return self.rfile.read(int(length))

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: each picture would be a line."""
