"""A web server that takes down what it is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Listener:
    """Answers with the given codes in turn, the last one again and again."""

    url: str = ""
    codes: list[int] = field(default_factory=lambda: [200])
    heard: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def listening() -> Iterator[Listener]:
    """On this machine's loopback interface."""
    found = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(found.codes.pop(0) if len(found.codes) > 1 else found.codes[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/hooks/secret"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
