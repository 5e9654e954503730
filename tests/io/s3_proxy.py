"""An S3 that misbehaves: a proxy in front of the tests' own server."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

FAULTS = ("reset_half_way", "500", "503", "slow_down", "reset", "slow")
_SLOW_DOWN = b"""<?xml version="1.0"?><Error><Code>SlowDown</Code>
<Message>Please reduce your request rate.</Message></Error>"""


class Proxy:
    """Forwards requests; a share of them meets a fault, each kind in turn."""

    def __init__(self, upstream: str, *, share: float = 0.0, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.share = share
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[float, str, str]] = []  # when, method, path
        self.answered: Counter[str] = Counter()  # requests that met no fault, by path
        self.lock = threading.Lock()
        self._rng = random.Random(seed)
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def meet(self, method: str, path: str) -> str | None:
        """Note a request; the fault that it meets."""
        with self.lock:
            self.requests.append((time.monotonic(), method, path))
            if self._rng.random() >= self.share:
                self.answered[path] += 1
                return None
            # Each kind in turn, so that a handful of faults is one of each; first the one that only
            # a GET can meet, of which there may be few.
            kinds = [kind for kind in FAULTS if kind != "reset_half_way" or method == "GET"]
            fault = min(kinds, key=self.faults.__getitem__)
            self.faults[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self._body()
        fault = self.proxy.meet(self.command, self.path)
        if fault in ("500", "503"):
            return self._answer(int(fault), b"")
        if fault == "slow_down":
            return self._answer(503, _SLOW_DOWN)
        if fault == "reset":
            return self._reset()
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "slow":
            time.sleep(0.3)
        if fault == "reset_half_way" and content and self.command == "GET":
            self._answer(answer.status, content, answer.headers, cut=len(content) // 2)
            return self._reset()
        return self._answer(answer.status, content, answer.headers)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, content: bytes, headers: Any = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            skipped = ("content-length", "transfer-encoding", "connection", "date", "server")
            if name.lower() not in skipped:
                self.send_header(name, value)
        length = len(content)
        if self.command == "HEAD" and headers is not None:
            length = int(headers.get("Content-Length") or 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
            self.wfile.flush()

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # closes with RST in place of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the client, or this handler's own reset
            return
