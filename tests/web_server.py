"""A web of faults on loopback: an HTTP server that gives each path what a test put there."""

from __future__ import annotations

import io
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from PIL import Image


@dataclass(frozen=True)
class Answer:
    """What the server says of one path."""

    body: bytes = b""
    kind: str = "image/jpeg"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0  # before the first byte
    drip_s: float = 0.0  # between bytes of the body
    missing_bytes: int = 0  # promised by Content-Length and never sent
    has_length: bool = True


class WebServer:
    """Serves on 127.0.0.1, on a port of the system's choice, while its `with` block runs."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []  # every path asked for, in order
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, body: bytes = b"", **options: object) -> str:
        """Set what a path answers, with the fields of `Answer`; returns its URL."""
        self.answers[path] = Answer(body, **options)  # type: ignore[arg-type]
        return self.url(path)

    def redirect(self, path: str, target: str) -> str:
        return self.put(path, status=302, headers={"Location": target})

    def use_tls(self, key: Path, certificate: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append(self.path)
                answer = web.answers.get(self.path, Answer(b"nothing here", "text/plain", 404))
                time.sleep(answer.wait_s)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                if answer.has_length:
                    self.send_header("Content-Length", str(len(answer.body) + answer.missing_bytes))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for piece in pieces(answer):
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:
                    self.close_connection = True  # the client has given up, as tests make it

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def pieces(answer: Answer) -> Iterator[bytes]:
    if not answer.drip_s:
        yield answer.body
        return
    for byte in answer.body:
        time.sleep(answer.drip_s)
        yield bytes([byte])


def picture(width: int = 200, height: int = 150, colour: object = "orange") -> Image.Image:
    image = Image.new("RGB", (width, height), colour)  # type: ignore[arg-type]
    image.paste("navy", (width // 4, height // 4, width // 2, height // 2))
    return image


def encoded(image: Image.Image, fmt: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def huge_png(side: int = 20_000) -> bytes:
    """A true gray PNG of side x side pixels, all black, made row by row: 400 kB for 400 million."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    packer = zlib.compressobj()
    row = bytes(side + 1)  # a filter byte, then one byte per pixel
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def animated_gif() -> bytes:
    frames = [picture(colour=colour) for colour in ("red", "green")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def palette_png_with_alpha() -> bytes:
    return encoded(picture().quantize(8), "PNG", transparency=bytes([0] + [255] * 7))


# Name -> how a server fails with it. Each has its own place in a shard's statuses.
FAULTS: Mapping[str, Callable[[], Answer]] = {
    "html": lambda: Answer(b"<html>gone</html>", "text/html"),
    "truncated": lambda: Answer(encoded(picture())[:-400]),
    "empty": lambda: Answer(b""),
    "short": lambda: Answer(encoded(picture()), missing_bytes=1000),
    "slow": lambda: Answer(encoded(picture()), wait_s=6),
    "dripping": lambda: Answer(encoded(picture()), drip_s=0.2),
    "huge": lambda: Answer(huge_png(), "image/png"),
    "gone": lambda: Answer(status=410),
    "robots": lambda: Answer(encoded(picture()), headers={"X-Robots-Tag": "noai"}),
}

# Name -> an image that downloads, however odd.
IMAGES: Mapping[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: encoded(picture()),
    "large.jpg": lambda: encoded(picture(1000, 800)),
    "cmyk.jpg": lambda: encoded(picture().convert("CMYK")),
    "palette.png": palette_png_with_alpha,
    "animated.gif": animated_gif,
    "modern.webp": lambda: encoded(picture(), "WEBP"),
    "pixel.gif": lambda: encoded(Image.new("RGB", (1, 1)), "GIF"),
}
