"""One worker's try of a shard while another worker may be at the same one: who may publish."""

from __future__ import annotations

import threading
from collections.abc import Callable

from capfilt.errors import CapfiltError

Claim = Callable[[], bool]  # whether the caller is the first to ask


class OvertakenError(CapfiltError):
    """Another worker's try of the shard was first; this one leaves nothing behind."""


class Attempt:
    """A try alone publishes when it is done; one with a rival asks first. Thread-safe."""

    def __init__(self, claim: Claim | None = None) -> None:
        """Begin.

        Args:
            claim: Asked before anything is published; None where nobody else is at the shard.
        """
        self._claim = claim
        self._is_publishing = False
        self._lock = threading.Lock()
        self._is_given_up = threading.Event()

    def contest(self, claim: Claim) -> bool:
        """Let another worker try the shard as well; False when it is too late for that."""
        with self._lock:
            if not self._is_publishing:
                self._claim = claim
            return not self._is_publishing

    def give_up(self) -> None:
        """The shard is done: end soon."""
        self._is_given_up.set()

    def check(self) -> None:
        """To be called now and then.

        Raises:
            OvertakenError: The shard is done.
        """
        if self._is_given_up.is_set():
            raise OvertakenError("another worker was first")

    def begin_publishing(self) -> None:
        """To be called once all is there, and before any of it is published.

        Raises:
            OvertakenError: Another worker was first.
        """
        with self._lock:
            self.check()
            if self._claim is not None and not self._claim():
                raise OvertakenError("another worker was first")
            self._is_publishing = True


class Referee:
    """Lets the first that asks publish, in each race of two tries of a shard."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}

    def claim(self, race: int, who: str) -> bool:
        return self._first.setdefault(race, who) == who
