"""HTTP for URLs that strangers wrote: public hosts only, whole images only, an end in sight.

A list of image URLs is an input like any other, and a fetcher that runs inside a company or a cloud
is a way into it: `http://169.254.169.254/` hands out credentials, `file:///etc/passwd` is read as
readily as a picture. The guard sits where the connection is made, after redirects and after DNS:
the address that was checked is the address that is connected to, so no spelling of a host
(`http://2130706433/`), no redirect and no name that resolves to something private gets past it.

It is urllib's machinery with its own connections, in place of `urllib.request`'s opener. Proxies
are not used: through one, the proxy resolves the name, and nothing could be said of the address.

It also bounds what a server can cost: seconds for a whole response (urllib's timeout starts anew
with every byte) and bytes in memory.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import math
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from capfilt.config import ImageConfig

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Public to Python's `ipaddress` in some of the versions supported, and not so.
_NOT_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),  # IETF protocols; a cloud's metadata at .192
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's, answered by the virtual machine's host
    ipaddress.ip_network("64:ff9b:1::/48"),  # NAT64 into a local network
    ipaddress.ip_network("2001::/32"),  # Teredo carries any IPv4 address
    ipaddress.ip_network("3fff::/20"),  # documentation
    ipaddress.ip_network("5f00::/16"),  # segment routing
)


class RefusedError(Exception):
    """A URL that the guard does not fetch. No OSError: urllib would wrap its message."""


@dataclass(frozen=True)
class Guard:
    """What may be fetched, and how much of it.

    Attributes:
        private_hosts: Hosts that may have any address; True for all of them.
        max_bytes: Of a response's body.
        max_response_s: For one response in full, however busily its server drips.
    """

    private_hosts: bool | frozenset[str] = False
    max_bytes: int = ImageConfig.max_bytes
    max_response_s: float = 60.0

    def install(self) -> None:
        """Make every `urllib.request.urlopen` of this process go through the guard."""
        urllib.request.install_opener(self.opener())

    def opener(self) -> urllib.request.OpenerDirector:
        """An opener for http and https, redirects included, and for nothing else."""
        opener = urllib.request.OpenerDirector()
        for handler in (
            _OtherSchemes(),
            _HTTPHandler(self),
            _HTTPSHandler(self),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        return opener

    def addresses(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Resolve a host, as `socket.getaddrinfo` does.

        Raises:
            RefusedError: One of its addresses is not public; which one is connected to would be the
                resolver's choice.
            OSError: It does not resolve.
        """
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        exempt = self.private_hosts
        if not (exempt if isinstance(exempt, bool) else host.lower() in exempt):
            for *_, place in found:
                if not is_public(str(place[0])):
                    named = "" if place[0] == host else f" (address of {host})"
                    raise RefusedError(
                        f"refused: {place[0]}{named} is not a public address; "
                        "allow_private_hosts fetches it"
                    )
        return found


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one that anybody on the internet could reach.

    Addresses that carry an IPv4 address within them (mapped, 6to4, NAT64) are what they carry.
    """
    ip: Address = ipaddress.ip_address(address.partition("%")[0])  # without an IPv6 zone
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local:
            return False
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or ip
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def ascii_url(url: str) -> str:
    """A URL as HTTP can carry it: other characters percent-encoded, the host in IDNA.

    What is encoded already stays as it is, and a host that has no IDNA form too.
    """
    parts = urlsplit(url.strip())
    host = parts.netloc
    with contextlib.suppress(UnicodeError):
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    safe = "!#$%&'()*+,/:;=?@[]~"
    return urlunsplit(parts._replace(
        netloc=host, path=quote(parts.path, safe), query=quote(parts.query, safe)
    ))  # fmt: skip


class _DeadlineMixin:
    """A socket whose reads end at a time of day, not only after a pause.

    Buffered readers, which is what http.client uses, read through `recv_into` alone.
    """

    deadline = math.inf  # of time.monotonic()
    pause_s: float | None = None

    def recv_into(self, *args: Any, **options: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out: the response took too long in all")
        if left < math.inf:
            self.settimeout(left if self.pause_s is None else min(self.pause_s, left))  # type: ignore[attr-defined]
        received: int = super().recv_into(*args, **options)  # type: ignore[misc]
        return received


class _Socket(_DeadlineMixin, socket.socket):
    pass


class _TLSSocket(_DeadlineMixin, ssl.SSLSocket):
    pass


class _Response(http.client.HTTPResponse):
    max_bytes = 0  # of a connection's own subclass

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        if self.length is None:  # chunked, or up to the connection's end
            body = super().read(self.max_bytes + 1)
        else:
            body = b"" if self.length > self.max_bytes else super().read()
        if len(body) > self.max_bytes or (self.length or 0) > self.max_bytes:
            raise RefusedError(f"refused: a response above {self.max_bytes} bytes")
        return body


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, guard: Guard, **options: Any) -> None:
        super().__init__(host, **options)
        self._guard = guard
        self.response_class = type("_Response", (_Response,), {"max_bytes": guard.max_bytes})

    def connect(self) -> None:
        # The whole of the base class's work, so that nothing of it can go around the guard.
        self.sock = self._connected()
        self._arm(self.sock)

    def _connected(self) -> _Socket:
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, place in self._guard.addresses(self.host, self.port):
            sock = _Socket(family, kind, protocol)
            try:
                sock.settimeout(self.timeout)
                sock.connect(place)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _arm(self, sock: _DeadlineMixin) -> None:
        sock.pause_s = self.timeout
        sock.deadline = time.monotonic() + self._guard.max_response_s


class _TLSConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(host, **options)
        self._tls = context

    def connect(self) -> None:
        sock = self._tls.wrap_socket(self._connected(), server_hostname=self.host)
        assert isinstance(sock, _TLSSocket)
        self.sock = sock
        self._arm(sock)


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def http_request(self, req: urllib.request.Request) -> urllib.request.Request:
        req.full_url = ascii_url(req.full_url)
        return super().do_request_(req)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req, guard=self._guard)  # type: ignore[arg-type]


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, guard: Guard) -> None:
        context = ssl.create_default_context()
        context.sslsocket_class = _TLSSocket
        super().__init__(context=context)
        self._guard = guard
        self._tls = context

    def https_request(self, req: urllib.request.Request) -> urllib.request.Request:
        req.full_url = ascii_url(req.full_url)
        return super().do_request_(req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TLSConnection, req, guard=self._guard, context=self._tls)  # type: ignore[arg-type]


class _OtherSchemes(urllib.request.BaseHandler):
    def unknown_open(self, req: urllib.request.Request) -> None:
        raise RefusedError(f"refused: {req.type}: URLs are not fetched, only http and https")
