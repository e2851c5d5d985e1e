"""A web server for one page on this machine: gives its files, hands it commands and takes their answers.

The page asks for the next command and is answered when there is one, so nothing but HTTP is needed to drive it. It is
isolated from other origins by the headers of its answers: only then a browser lends it threads and a clock of 5 µs
(w3.org, "High Resolution Time", section "Clock resolution").
"""

from __future__ import annotations

import json
import queue
import secrets
import shutil
import socket
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deploykit.errors import ProviderError

__all__ = ["PageServer"]

_WAIT_S = 20.0  # then the page asks again; browsers give up on answers that take minutes
_MOST_BYTES = 1 << 26  # of an answer; the longest have some thousand latencies
_SHOWN = 60  # characters of an answer that is none
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".wasm": "application/wasm"}
_ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer:
    """Serves until ``close``.

    Args:
        files: What the page may get, by name below its address: a file, or its content.

    Attributes:
        url: The page's address; its path cannot be guessed, so that no other program's page gets the files.
    """

    def __init__(self, files: Mapping[str, Path | bytes]) -> None:
        self.files = files
        self.commands: queue.Queue[bytes | None] = queue.Queue()
        self.answers: queue.Queue[bytes] = queue.Queue()
        self.root = f"/{secrets.token_urlsafe(16)}/"
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.page = self
        self.url = f"http://127.0.0.1:{self._server.server_port}{self.root}index.html"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def send(self, command: Mapping[str, Any]) -> None:
        """Hands the page a command when it asks for the next."""
        self.commands.put(json.dumps(command).encode())

    def answer(self, timeout_s: float) -> dict[str, Any] | None:
        """The answer to the last command; None where there is none in that time.

        Raises: ProviderError for an answer that is no JSON object.
        """
        try:
            content = self.answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            shown = content[:_SHOWN].decode(errors="replace")
            raise ProviderError(f"the browser's page answered {shown!r}; expected a JSON object")
        return found

    def close(self) -> None:
        """Ends the server and whoever waits for a command."""
        self.commands.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: PageServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that is ended amid an answer is none; the base class would print it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for all
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        """A file, or the next command."""
        name = self._name()
        if name == "next":
            self._give_command()
        elif name in self.server.page.files:
            self._give_file(name, self.server.page.files[name])
        else:
            self._give(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """An answer. What is refused is not read, and therefore ends the connection."""
        length = self.headers.get("Content-Length", "")
        if self._name() != "answer":
            self._refuse(HTTPStatus.NOT_FOUND)
        elif not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif len(length) > len(str(_MOST_BYTES)) or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self.server.page.answers.put(self.rfile.read(int(length)))
            self._give(HTTPStatus.NO_CONTENT)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the base class prints."""

    def _name(self) -> str:
        """What is asked for below the page's address; empty for what does not begin with it."""
        root = self.server.page.root
        return self.path[len(root) :] if self.path.startswith(root) else ""

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._give(status)

    def _give_command(self) -> None:
        try:
            command = self.server.page.commands.get(timeout=_WAIT_S)
        except queue.Empty:
            command = None
        self._give(HTTPStatus.NO_CONTENT if command is None else HTTPStatus.OK, command or b"")

    def _give_file(self, name: str, source: Path | bytes) -> None:
        kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
        if isinstance(source, bytes):
            self._give(HTTPStatus.OK, source, kind)
            return
        with source.open("rb") as stream:
            self._head(HTTPStatus.OK, source.stat().st_size, kind)
            shutil.copyfileobj(stream, self.wfile, 1 << 20)

    def _give(self, status: HTTPStatus, content: bytes = b"", kind: str = "application/json") -> None:
        self._head(status, len(content), kind)
        self.wfile.write(content)

    def _head(self, status: HTTPStatus, length: int, kind: str) -> None:
        self.send_response(status)
        for key, value in {**_ISOLATION, "Content-Type": kind, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
