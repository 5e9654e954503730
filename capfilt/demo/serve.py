"""A folder as a web site on loopback, for as long as a `with` block runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the download says what came of each request."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # a download's threads knock all at once; 5 would have some wait long


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on 127.0.0.1, on a port of the system's choice.

    Yields:
        The site's URL, without a slash at its end.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
