"""Telling somebody how a run ended: one POST of JSON to a URL of the user's own.

Chat services put a secret into the path of such URLs, so only scheme and host are ever shown. A run
never fails, and never waits long, because nobody listens.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from capfilt.errors import ConfigError
from capfilt.run.engine import one_line

if TYPE_CHECKING:
    from capfilt.run.summary import Summary

ENVIRONMENT = "CAPFILT_WEBHOOK"  # keeps the URL out of command lines
TRIES, TIMEOUT_S, PAUSE_S = 3, 8.0, 2.0
DEADLINE_S = 30.0  # for all tries; the timeout starts anew with every byte that a server drips
STOPPING_S = 2.0  # when told to stop: Ray kills a job three seconds after its SIGTERM
_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})

Event = Literal["finished", "failed", "interrupted"]

log = logging.getLogger("capfilt")


class Webhook:
    """Where to send the news of one command; nowhere without a URL."""

    def __init__(self, url: str | None, *, command: str, output: str) -> None:
        """Check the URL; nothing is sent yet.

        Raises:
            ConfigError: It is not one of http or https, or has credentials before its host.
        """
        self._url = url
        self._command = command
        self._output = output
        if url is None:
            return
        try:
            place = urlsplit(url)
            self._shown = f"{place.scheme}://{place.hostname}"
            is_good = place.scheme in ("http", "https") and bool(place.hostname)
            is_good = is_good and "@" not in place.netloc
        except ValueError:
            is_good = False
        if not is_good:  # not shown: it may hold a secret
            raise ConfigError("--webhook: not a URL of the form https://host/path")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Tell of what ends the block early: an error, Ctrl-C or SIGTERM."""
        try:
            yield
        except KeyboardInterrupt:
            told = "was interrupted; the same command goes on where it stopped"
            self._tell("interrupted", 130, told, deadline_s=STOPPING_S)
            raise
        except Exception as error:
            self._tell("failed", 2, f"failed: {one_line(error)}", error=one_line(error))
            raise

    def finished(self, summary: Summary) -> None:
        """Tell what came of a run; failed shards are among its figures."""
        failed = len(summary.shards_failed)
        told = f"finished: {summary.images:,} images, {summary.shards_done:,} shards done"
        told += f", {failed:,} failed" if failed else ""
        told += f", {len(summary.missing):,} failed ones not in INPUT" if summary.missing else ""
        self._tell("finished", summary.exit_code, told, summary=summary.to_dict())

    def _tell(
        self,
        event: Event,
        exit_code: int,
        told: str,
        *,
        deadline_s: float | None = None,
        **more: Any,
    ) -> None:
        if self._url is None:
            return
        content = {
            "event": event,
            "exit_code": exit_code,
            "command": self._command,
            "output": self._output,
            "host": socket.gethostname(),
            "text": f"capfilt {self._command} of {self._output} {told}",  # what chats show
            **more,
        }
        body = json.dumps(content).encode()
        posting = threading.Thread(target=self._post, args=(self._url, body), daemon=True)
        posting.start()
        deadline_s = deadline_s or DEADLINE_S
        posting.join(deadline_s)
        if posting.is_alive():
            log.warning("webhook %s: no answer within %g s", self._shown, deadline_s)

    def _post(self, url: str, body: bytes) -> None:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        why = ""
        for number in range(TRIES):
            time.sleep(number * PAUSE_S)
            try:
                _OPENER.open(request, timeout=TIMEOUT_S).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                why = f"HTTP {error.code}"
                if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in _AGAIN:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = type(error).__name__  # their messages may have the URL
                if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
                    why = error.reason.strerror or type(error.reason).__name__
        log.warning("webhook %s: nobody was told (%s)", self._shown, why)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
