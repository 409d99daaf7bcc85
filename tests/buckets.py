"""A server of S3 for the tests: moto's, over HTTP, that can be gone for a while, refuse strangers, and be the killer.

Its buckets live in this process, and outlive the time in which the server is gone. One request is answered at a time,
for moto itself does not make a condition and the write after it one step, as S3 does.
"""

from __future__ import annotations

import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "speech"
WRITES = ("PUT", "POST", "DELETE")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing."""


class BucketServer:
    """`environment` is what lets a process use it. `writes` are those since `forget`, as `METHOD key`."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self.writes: list[str] = []
        self._kill_at: int | None = None
        self._victim = 0
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.port = self._server.port
        self._serve()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        self._ask("PUT", f"/{BUCKET}")

    def go_away(self) -> None:
        """Nothing answers at the address any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def come_back(self) -> None:
        """With everything that was there."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=_Quiet)
        self._serve()

    def refuse_strangers(self, *, refuse: bool) -> None:
        """Whether requests of users that it does not know, which are all, are refused from now on."""
        self._ask("POST", "/moto-api/reset-auth", b"0" if refuse else b"inf")

    def forget(self, victim: int = 0, kill_at: int | None = None) -> None:
        """Count writes anew. The process is killed when it asks for write number `kill_at`, which is then not made."""
        self.writes, self._victim, self._kill_at = [], victim, kill_at

    def _serve(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def _ask(self, method: str, path: str, content: bytes | None = None) -> None:
        kind = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, kind, method=method)
        urllib.request.urlopen(request).close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._one_at_a_time:
            if environ["REQUEST_METHOD"] in WRITES:
                if len(self.writes) == self._kill_at:
                    os.kill(self._victim, signal.SIGKILL)
                    start_response("503 Service Unavailable", [])
                    return []
                self.writes.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].removeprefix(f'/{BUCKET}/')}")
            return list(self._app(environ, start_response))


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[BucketServer]:
    """One for the tests of a file, and the environment in which it is used."""
    server = BucketServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.go_away()
