"""Somebody's program that a webhook tells: keeps what it gets, and answers as told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """`status` is what it answers; a silent one waits until it is released, and a slow one
    is done after six seconds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status = 200
        self.is_silent = False
        self.is_slow = False
        self.released = threading.Event()
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.names: list[str] = []  # that it was called by where it speaks TLS


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers), body))
        if self.server.is_silent:
            self.server.released.wait(30)
            return
        if self.server.is_slow:
            self.answer_slowly()
            return
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.url}/elsewhere")
        self.end_headers()

    def answer_slowly(self) -> None:
        """A header that goes on and on, a letter at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nSlow: ")
        for _ in range(60):
            if self.server.released.wait(0.1):
                return
            self.wfile.write(b"x")
        self.wfile.write(b"\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def run_server() -> Iterator[Server]:
    """It ends with its test, whatever becomes of that."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
