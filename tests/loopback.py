"""A server on this machine that answers as it is told, for tests of the client."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server sends.

    Args:
        body: text as it is, anything else as JSON.
        status: HTTP status.
        headers: further ones.
        delay: seconds before the first byte.
        drip: seconds between bytes.
    """

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else self.text.encode()

    @property
    def text(self) -> str:
        return self.body if isinstance(self.body, str) else json.dumps(self.body)


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    path: str
    body: Any
    key: str | None


@dataclass
class Loopback:
    """A running server."""

    url: str
    asked: list[Asked]
    most_at_once: int = 0


Script = Callable[[Asked, int], Reply]
"""Gets a request and how many came before it."""


def completion(text: str, finish: str = "stop") -> Reply:
    return Reply({"choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": {"completion_tokens": 3}})


def chat(text: str) -> Reply:
    return Reply({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})


def models(*names: str) -> Reply:
    return Reply({"object": "list", "data": [{"id": name} for name in names]})


@contextmanager
def serving(script: Script) -> Iterator[Loopback]:
    """Serve until the block ends."""
    seen = Loopback("", [])
    lock, open_now = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            with lock:
                before = len(seen.asked)
                asked = Asked(self.path, body, self.headers.get("Authorization"))
                seen.asked.append(asked)
                open_now[0] += 1
                seen.most_at_once = max(seen.most_at_once, open_now[0])
            try:
                self._send(script(asked, before))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    open_now[0] -= 1

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.raw)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in [reply.raw] if not reply.drip else [bytes([one]) for one in reply.raw]:
                self.wfile.write(byte)
                self.wfile.flush()
                time.sleep(reply.drip)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of a client that hangs up between two requests."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
