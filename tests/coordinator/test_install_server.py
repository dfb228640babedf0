"""The server of the agent: a fixed set of files, credentials once, and the address that a device can reach."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.command_line import fleetnas

from fleetnas.coordinator.app.install_line import AgentSetup, install_files, install_line, install_script
from fleetnas.coordinator.app.install_server import InstallServer, ServedFile
from fleetnas.coordinator.app.own_wheel import OwnWheel
from fleetnas.coordinator.app.reachable import addresses_for_devices, is_loopback, ordered
from fleetnas.fleet_protocol.errors import TransportError

WHEEL = OwnWheel("fleetnas-1.0-py3-none-any.whl", "1.0", b"wheel" * 100_000)


@pytest.fixture
def server() -> Iterator[InstallServer]:
    with InstallServer(install_files(b"echo hello\n", WHEEL)) as running:
        yield running


def get(server: InstallServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)  # as it is, dots and all
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_script_and_wheel_are_served_and_nothing_else(server: InstallServer) -> None:
    assert get(server, "/install") == (200, b"echo hello\n")
    assert get(server, f"/{WHEEL.name}") == (200, WHEEL.content)
    assert get(server, "/install?again") == (200, b"echo hello\n")
    assert get(server, f"/{WHEEL.name}", "HEAD") == (200, b"")
    for path in (
        "/",
        "/..",
        "/../etc/passwd",
        "/install/",
        "/x/install",
        "/%2e%2e/install",
        "/credentials/",
        "install",
    ):
        status, text = get(server, path)
        assert (status, b"install" in text) == (404, False), path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(server, "/install", method)[0] == 501


def test_credentials_are_given_once_and_only_when_they_arrived(server: InstallServer) -> None:
    served: list[tuple[str, str]] = []
    server.on_served(lambda path, client: served.append((path, client)))
    server.add([ServedFile("/credentials/abc", b"secret", once=True)])
    assert get(server, "/credentials/abc", "HEAD")[0] == 200  # asks, and takes nothing
    assert get(server, "/credentials/abc") == (200, b"secret")
    assert get(server, "/credentials/abc")[0] == 404
    assert served == [("/credentials/abc", "127.0.0.1")]


def test_a_client_that_says_nothing_keeps_no_other_out(server: InstallServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    try:
        assert get(server, "/install")[0] == 200
    finally:
        for each in silent:
            each.close()


def test_a_port_that_is_taken_is_told_with_the_option(server: InstallServer) -> None:
    with pytest.raises(TransportError, match=rf"cannot listen on 127.0.0.1:{server.port}.*--install-port"):
        InstallServer((), port=server.port)


def test_enrolled_devices_fetch_over_tls_with_the_fleets_authority(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    import datetime

    from fleetnas.coordinator.app.install_server import ServerIdentity
    from fleetnas.coordinator.security.authority import Authority

    now = datetime.datetime.now(datetime.timezone.utc)
    authority = Authority.create(tmp_path / "authority", fleet="lab", hosts=("broker.example",), now=now)
    issued = authority.install_server_identity(("127.0.0.1",), now)
    identity = ServerIdentity(issued.certificate, issued.key)
    with InstallServer([ServedFile("/credentials/t", b"secret", once=True)], identity=identity) as server:
        url = server.url("127.0.0.1") + "/credentials/t"
        assert url.startswith("https://127.0.0.1:")
        with socket.create_connection(("127.0.0.1", server.port)) as plain:  # speaks no TLS
            plain.sendall(b"GET /credentials/t HTTP/1.0\r\n\r\n")
            plain.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert b"secret" not in plain.recv(1000)
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url, context=ssl.create_default_context(), timeout=10)
        context = ssl.create_default_context(cadata=authority.certificate)
        with pytest.raises(urllib.error.URLError, match="match"):  # a certificate of another name
            urllib.request.urlopen(url.replace("127.0.0.1", "localhost"), context=context, timeout=10)
        assert urllib.request.urlopen(url, context=context, timeout=10).read() == b"secret"
    assert not any("install" in str(path) for path in (tmp_path / "authority").rglob("*"))  # nothing of it is stored


def test_the_line_and_the_script_pin_what_they_fetch() -> None:
    setup = AgentSetup(broker="10.0.0.1:1883", fleet="it's", index_url="https://pypi.example/simple")
    script = install_script(setup, WHEEL, "http://10.0.0.1:8730")
    text = script.decode()
    assert f"WHEEL_SHA256={WHEEL.sha256}\n" in text
    assert "FLEET='it'\"'\"'s'\n" in text  # quoted: a name is data
    assert "@" not in "".join(line for line in text.splitlines() if line.split("=")[0].isupper() and "=@" in line)
    line = install_line("http://10.0.0.1:8730", script)
    assert "\n" not in line
    assert line != install_line("http://10.0.0.1:8730", script + b" ")
    assert "no-check-certificate" not in line
    assert "--no-check-certificate" in install_line("https://10.0.0.1:8730", script)


@pytest.mark.parametrize(
    ("routed", "interfaces", "found"),
    [
        (None, [("lo", "127.0.0.1")], ()),
        ("192.168.1.5", [("lo", "127.0.0.1"), ("eth0", "192.168.1.5")], ("192.168.1.5",)),
        (
            "10.0.0.7",
            [("docker0", "172.17.0.1"), ("usb0", "169.254.3.4"), ("wlan0", "10.0.0.7"), ("eth0", "192.168.1.5")],
            ("10.0.0.7", "192.168.1.5", "172.17.0.1", "169.254.3.4"),
        ),
        (None, [("br-1a2b", "172.18.0.1"), ("eth1", "192.168.9.1")], ("192.168.9.1", "172.18.0.1")),
        ("127.0.0.1", [], ()),
    ],
)
def test_the_first_address_is_that_of_the_route_and_never_loopback(
    routed: str | None, interfaces: list[tuple[str, str]], found: tuple[str, ...]
) -> None:
    assert ordered(routed, interfaces) == found


def test_one_address_is_taken_as_it_is() -> None:
    assert addresses_for_devices("192.168.1.5") == ("192.168.1.5",)
    assert addresses_for_devices("[fd00::1]") == ("fd00::1",)
    for every in ("0.0.0.0", "::", ""):
        assert not any(is_loopback(address) or address in ("0.0.0.0", "::") for address in addresses_for_devices(every))
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "fleet.example", "10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("installer",), "no broker is known"),
        (("installer", "--broker", "localhost"), "this machine's own loopback, which no other device reaches"),
        (
            ("installer", "--broker", "10.0.0.1", "--extras", "agent;rm"),
            "is no list of extras; give such as agent,litert",
        ),
        (("installer", "--broker", "10.0.0.1", "--index-url", "pypi"), "is no URL; give such as https://"),
        (
            ("broker", "--no-installer", "--advertise", "pi.example"),
            "--no-installer serves no agent; leave out --advertise",
        ),
        (("broker", "--install-port", "1", "init", "x"), "leave out --install-port"),
        (("enroll", "pi4", "--authority", "a", "--install-port", "1"), "only --serve serves the agent"),
        (("enroll", "watcher", "--authority", "a", "--serve"), "a watcher is no agent"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_served(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, _, err = fleetnas(capsys, *words)
    assert (code, said in err) == (2, True), err


def test_nobody_is_enrolled_where_devices_cannot_reach_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent is enrolled once: what can be refused is refused before."""
    authority, credentials = tmp_path / "authority", tmp_path / "pi4.credentials"
    words = ("enroll", "pi4", "--authority", str(authority), "-o", str(credentials))
    assert fleetnas(capsys, "broker", "init", str(authority), "--host", "fleet.example")[0] == 0
    monkeypatch.setattr("fleetnas.coordinator.app.reachable.addresses_for_devices", lambda host: ())
    code, _, err = fleetnas(capsys, *words, "--serve")
    assert (code, "no address in a network; give the one" in err) == (2, True), err
    assert not credentials.exists()
    assert fleetnas(capsys, *words)[0] == 0
