"""Addresses of brokers and mirrors: names, IPv4 and IPv6, with and without a port, as users and files write them."""

from __future__ import annotations

import platform
import re
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError
from rigs import waiting

from fleetnas.agent.cli.main import build_parser
from fleetnas.agent.cli.options import broker_address, with_credentials
from fleetnas.agent.transfer.mirror import Mirrors
from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.cli import security
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.monitoring.metrics import Metrics
from fleetnas.coordinator.security.authority import Authority
from fleetnas.fleet_protocol.addresses import check_host, host_and_port
from fleetnas.fleet_protocol.errors import DownloadError, UsageError
from fleetnas.fleet_protocol.messages import BlobReference
from fleetnas.fleet_protocol.mirrors import check_mirror
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.security.credentials import Credentials, write_credentials
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.supernet_export.checkpoints.download import PublishedFile, download


@pytest.mark.parametrize(
    ("text", "host", "port", "tls"),
    [
        ("broker.example", "broker.example", 1883, False),
        ("broker.example:1884", "broker.example", 1884, False),
        ("192.168.1.10", "192.168.1.10", 1883, False),
        ("::1", "::1", 1883, False),
        ("[::1]", "::1", 1883, False),
        ("[::1]:1884", "::1", 1884, False),
        ("2001:db8::10", "2001:db8::10", 1883, False),
        ("fe80::1%eth0", "fe80::1%eth0", 1883, False),
        ("[fe80::1%eth0]:1884", "fe80::1%eth0", 1884, False),
        ("::ffff:192.168.1.10", "::ffff:192.168.1.10", 1883, False),
        ("mqtts://::1", "::1", 8883, True),
        ("mqtts://[2001:db8::10]", "2001:db8::10", 8883, True),
        ("MQTTS://broker.example", "broker.example", 8883, True),
        ("mqtt://[::1]:1884", "::1", 1884, False),
        (" pi_4.local ", "pi_4.local", 1883, False),
        ("broker.example.", "broker.example.", 1883, False),
        ("bücher.example", "bücher.example", 1883, False),
    ],
)
def test_an_address_is_read_and_written_again(text: str, host: str, port: int, tls: bool) -> None:
    address = BrokerAddress.parse(text)
    assert (address.host, address.port, address.tls) == (host, port, tls)
    assert BrokerAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1883",
        "host:",
        "host:0",
        "host:65536",
        "host:99999999999999999999",
        "host:-1",
        "host:18x3",
        "host:١٨٨٣",
        "also:wrong:1883",
        "[::1",
        "::1]",
        "[::1]:",
        "[::1]1883",
        "[]:1883",
        "[host]:1883",
        "[192.168.1.10]:1883",
        "[::1]:1883:1883",
        ":::1",
        "::1:1:1:1:1:1:1:1883",
        "::1%",
        "::1%a b",
        "1::2::3",
        "http://host",
        "mqtt://host/path",
        "mqtt://host?x=1",
        "two words",
        "host\nname",
        "a..b",
        f"{'a' * 64}.example",
        f"{'a.' * 150}example",
    ],
)
def test_what_is_no_address_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"not HOST:PORT .*\[fd00::10\]:1883"):
        BrokerAddress.parse(text)


def test_a_login_in_an_address_is_refused_and_not_repeated() -> None:
    for text in ("mqtt://pi4:secret@host:1883", "pi4:secret@host", "secret@[::1]:1883"):
        with pytest.raises(UsageError, match="--password-file") as refused:
            BrokerAddress.parse(text)
        assert "secret" not in str(refused.value)


def test_a_host_is_a_name_or_an_address_and_nothing_around_it() -> None:
    assert [check_host(text) for text in ("pi4", "[::1]", "::1", "10.0.0.1")] == ["pi4", "::1", "::1", "10.0.0.1"]
    for text in ("", "host:1883", "[::1]:1883", "mqtt://host", "host/", "a b", "user@host"):
        with pytest.raises(UsageError, match="leave out scheme, port and path"):
            check_host(text)


def test_an_address_is_shown_so_that_its_port_can_be_told() -> None:
    assert host_and_port("::1", 1883) == "[::1]:1883"
    assert host_and_port("host", 1883) == "host:1883"


# -- files that name a broker ------------------------------------------------------------------------------------


def credentials(host: str, port: int = 8884) -> Credentials:
    return Credentials(role="agent", fleet="lab", name="pi4", host=host, port=port, password="secret")


def test_credentials_hold_an_ipv6_address_and_keep_their_port(tmp_path: Path) -> None:
    file = tmp_path / "pi4.credentials"
    write_credentials(file, credentials("2001:db8::10"))
    cases: tuple[tuple[str | None, str, int], ...] = (
        (None, "2001:db8::10", 8884),
        ("fd00::1", "fd00::1", 8884),
        ("[fd00::1]:9999", "fd00::1", 9999),
        ("other.example", "other.example", 8884),
    )
    for broker, host, port in cases:
        options = build_parser()[0].parse_args(["run", "--credentials", str(file)])
        options.broker = broker
        options = with_credentials(options)
        address = broker_address(options)
        assert (address.host, address.port, address.tls) == (host, port, True)


def test_a_coordinator_that_names_another_host_keeps_the_port_of_its_credentials(tmp_path: Path) -> None:
    file = tmp_path / "coordinator.credentials"
    write_credentials(file, credentials("::1").model_copy(update={"role": "coordinator"}))
    assert ConnectionOptions("fd00::1", credentials=file).connection().broker.port == 8884
    assert ConnectionOptions("[fd00::1]:1", credentials=file).connection().broker.port == 1


@pytest.mark.parametrize("host", ["host:1883", "[::1]:8883", "a b", "mqtts://host", "user@host", "a..b"])
def test_credentials_with_a_host_that_is_none_are_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="leave out scheme"):
        credentials(host)


def test_a_new_authority_takes_hosts_as_users_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    security.init(tmp_path / "named", host=["[::1]", "::1", "pi4"])
    assert Authority.open(tmp_path / "named").register.hosts == ("::1", "pi4")
    with pytest.raises(UsageError, match="leave out scheme, port and path"):
        security.init(tmp_path / "wrong", host=["broker.example:8883"])
    assert not (tmp_path / "wrong").exists()
    for number, (name, own) in enumerate((("", ()), ("pi4", ("pi4",)), ("a b", ()))):
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        security.init(tmp_path / str(number))
        assert Authority.open(tmp_path / str(number)).register.hosts == (*own, "localhost", "127.0.0.1")


def test_metrics_are_not_served_at_an_address_that_is_none() -> None:
    for address in ("a..b", "localhost:9000"):
        with pytest.raises(UsageError, match="leave out scheme, port and path"):
            Metrics(address, 0)


# -- mirrors ---------------------------------------------------------------------------------------------------------

GOOD_MIRRORS = ["https://[2001:db8::1]/m", "https://[::1]:8443", "http://127.0.0.1:8000/x", "https://m.example"]
BAD_MIRRORS = ["https://[:]/m", "https://[1.2]/m", "https://[::1/m", "https://h:99999", "https://h:0", "https://a..b/m"]


@pytest.mark.parametrize("url", GOOD_MIRRORS)
def test_a_mirror_at_an_ipv6_address_is_one(url: str) -> None:
    assert check_mirror(url) == url


@pytest.mark.parametrize("url", BAD_MIRRORS)
def test_a_mirror_that_nobody_can_ask_is_refused_by_user_and_agent(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the address of a folder"):
        check_mirror(url)
    with pytest.raises(ValidationError) as refused:
        MeasureTask.model_validate({"mirror": url})
    assert ("mirror",) in [error["loc"] for error in refused.value.errors()]
    blob = BlobReference(sha256="0" * 64, size=1)
    if "[" in url:  # what a redirect names is checked nowhere else
        assert Mirrors("any").begin(url, blob, tmp_path / "partial", 0.0) is None


@pytest.mark.parametrize("mirror", ["http://[zz", "https://[::1", "http://h:99999", "ftp://h", "nonsense"])
def test_a_download_mirror_that_is_none_is_named(tmp_path: Path, mirror: str) -> None:
    file = PublishedFile("x", "file:///nowhere", None, "sha256", "0" * 64)
    with pytest.raises(DownloadError, match=re.escape(f"{mirror}/x: not an http address")):
        download(file, cache=tmp_path, mirrors=[mirror])


# -- real sockets ----------------------------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_the_embedded_broker_is_reached_over_ipv6(host: str) -> None:
    with EmbeddedBroker(host, 0) as broker:
        assert str(broker.address).startswith("[::1]:")
        transport = MqttTransport(BrokerAddress.parse(str(broker.address)), "test")
        transport.start()
        try:
            transport.wait_connected(waiting.STALL_S)
        finally:
            transport.close()
