import http.client
import shutil
import socket
import subprocess
import time
import urllib.error
from pathlib import Path

import pytest

from capfilt.webguard import Guard, RefusedError, ascii_url, is_public
from tests.web_server import WebServer, encoded, picture

OPEN = Guard(private_hosts=True)


def fetch(guard: Guard, url: str, timeout_s: float = 60) -> bytes:
    with guard.opener().open(url, timeout=timeout_s) as response:
        return bytes(response.read())


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_is_public_of_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1",
        "224.0.0.1", "255.255.255.255", "240.0.0.1",
        "::", "::1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fec0::1",
        "ff02::1", "3fff::1", "5f00::1",
        "2001:db8::1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::5db8:d822", "2002:7f00:1::", "2002:0a00:0001::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)  # fmt: skip
def test_is_public_of_other_addresses_is_false(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "0", "[::1]",
     "[::ffff:127.0.0.1]", "①②⑦.⓪.⓪.①"],
)  # fmt: skip
def test_guard_any_spelling_of_loopback_is_refused_before_a_connection(
    host: str, web: WebServer
) -> None:
    web.put("/a.jpg", encoded(picture()))
    try:
        with pytest.raises(RefusedError, match="not a public address"):
            fetch(Guard(), web.url("/a.jpg", host))
    except urllib.error.URLError as error:  # this machine's resolver knows no such spelling
        assert isinstance(error.reason, socket.gaierror)  # noqa: PT017
    assert web.requests == []


def test_guard_https_to_loopback_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"127\.0\.0\.1 is not a public address"):
        fetch(Guard(), "https://127.0.0.1/")


@pytest.mark.parametrize("scheme", ["file", "ftp", "data", "gopher"])
@pytest.mark.parametrize("private_hosts", [False, True])
def test_guard_other_schemes_are_refused_always(scheme: str, private_hosts: bool) -> None:
    url = f"{scheme}:///etc/passwd"
    with pytest.raises(RefusedError, match="only http and https"):
        fetch(Guard(private_hosts=private_hosts), url)


def test_guard_redirect_to_a_private_host_is_refused(web: WebServer) -> None:
    web.put("/secret", b"secret")
    url = web.redirect("/hop", web.url("/secret", "localhost"))
    guard = Guard(private_hosts=frozenset({"127.0.0.1"}))
    with pytest.raises(RefusedError, match="address of localhost"):
        fetch(guard, url)
    assert web.requests == ["/hop"]


def test_guard_redirect_to_a_file_is_refused(web: WebServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="not allowed"):
        fetch(OPEN, web.redirect("/hop", "file:///etc/passwd"))


def test_guard_redirect_to_an_allowed_host_is_followed(web: WebServer) -> None:
    target = web.put("/a.jpg", b"image")
    assert fetch(OPEN, web.redirect("/hop", target)) == b"image"


def test_guard_proxy_of_the_environment_is_not_used(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch(OPEN, web.put("/a.jpg", b"image")) == b"image"


def test_guard_dripping_response_ends_in_time(web: WebServer) -> None:
    url = web.put("/drip", b"x" * 1000, drip_s=0.1)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        fetch(Guard(private_hosts=True, max_response_s=0.5), url)
    assert time.monotonic() - started < 50  # of 100


@pytest.mark.parametrize("has_length", [True, False])
def test_guard_response_above_max_bytes_is_refused(web: WebServer, has_length: bool) -> None:
    guard = Guard(private_hosts=True, max_bytes=1000)
    assert len(fetch(guard, web.put("/fits", b"x" * 1000, has_length=has_length))) == 1000
    with pytest.raises(RefusedError, match="above 1000 bytes"):
        fetch(guard, web.put("/more", b"x" * 1001, has_length=has_length))


def test_guard_response_cut_short_is_an_error(web: WebServer) -> None:
    with pytest.raises(http.client.IncompleteRead):
        fetch(OPEN, web.put("/cut", b"x" * 10, missing_bytes=5))


def test_guard_https_is_fetched_and_its_certificate_checked(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    web.use_tls(key, certificate)
    web.put("/a.jpg", b"x" * 100)
    url = f"https://localhost:{web.port}/a.jpg"
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(OPEN, url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(OPEN, url) == b"x" * 100
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(OPEN, url.replace("localhost", "127.0.0.1"))  # another name than the certificate's
    web.put("/drip", b"x" * 100, drip_s=0.1)
    with pytest.raises(TimeoutError, match="timed out"):
        fetch(Guard(True, max_response_s=0.5), f"https://localhost:{web.port}/drip")


def test_guard_non_ascii_url_is_fetched(web: WebServer) -> None:
    web.put("/k%C3%BCche%20blau.jpg?a=%C3%A9", b"image")
    assert fetch(OPEN, web.url("/küche blau.jpg?a=é")) == b"image"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.b/c%20d?e=f&g=%2F", "http://a.b/c%20d?e=f&g=%2F"),
        ("http://bücher.example/ä", "http://xn--bcher-kva.example/%C3%A4"),
        ("  http://a.b/c d\n", "http://a.b/c%20d"),
    ],
)
def test_ascii_url_encodes_what_is_not_encoded(url: str, expected: str) -> None:
    assert ascii_url(url) == expected
