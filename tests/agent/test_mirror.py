"""Bundles from a mirror: real web servers, every way in which they fail, and the broker's chunks where they do."""

from __future__ import annotations

import datetime
import hashlib
import logging
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs import waiting
from rigs.agent_rig import BLOB, BUNDLE, Rig, measured, task
from rigs.mirror_server import MirrorServer, mirror

from fleetnas.agent.service.running import mirrors_beside
from fleetnas.agent.transfer.mirror import (
    ATTEMPTS,
    MIN_BYTES_PER_S,
    RETRY_AFTER_S,
    WINDOW_S,
    MirrorFetch,
    MirrorPolicy,
    Mirrors,
    mirror_policy,
)
from fleetnas.coordinator.security.certificates import Issued, issue, new_authority
from fleetnas.fleet_protocol.codec import decode_task, encode
from fleetnas.fleet_protocol.errors import MirrorError, ProtocolError, UsageError
from fleetnas.fleet_protocol.messages import BlobReference
from fleetnas.fleet_protocol.mirrors import bundle_url, check_mirror
from fleetnas.fleet_protocol.transports.base import BrokerAddress

LARGE = np.random.default_rng(8).bytes(1_500_000)
REFERENCE = BlobReference(sha256=hashlib.sha256(LARGE).hexdigest(), size=len(LARGE))
PATH = f"/{REFERENCE.sha256}.supernet"


def fetched(url: str, partial: Path, policy: MirrorPolicy = "https", *, mirrors: Mirrors | None = None) -> Path | None:
    """The verified file; `MirrorError` where the mirror failed; None where it was not asked."""
    fetch = (mirrors or Mirrors(policy)).begin(url, REFERENCE, partial, 0.0)
    if fetch is None:
        return None
    waiting.until(fetch.ended.is_set)
    return fetch.step(0.0)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "partial" / "bundle"


@pytest.mark.parametrize("folder", ["", "/", "/a/b"])
def test_a_bundle_comes_whole(partial: Path, folder: str) -> None:
    with mirror() as server:
        server.files[folder.rstrip("/") + PATH] = LARGE
        file = fetched(server.url + folder, partial)
        assert file is not None
        assert file.read_bytes() == LARGE
        assert server.asked == [(folder.rstrip("/") + PATH, None)]


def test_what_came_before_is_kept(partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(LARGE[:700_000])
    with mirror(MirrorServer({PATH: LARGE})) as server:
        assert fetched(server.url, partial) == partial
        assert server.asked == [(PATH, 700_000)]
    assert partial.read_bytes() == LARGE


def test_an_answer_that_breaks_off_is_resumed(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE}, breaks_off_after=400_000)) as server:
        assert fetched(server.url, partial) == partial
        assert server.asked == [(PATH, None), (PATH, 400_000), (PATH, 800_000), (PATH, 1_200_000)]
    assert partial.read_bytes() == LARGE


def test_a_server_without_ranges_begins_again(partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(LARGE[:700_000])
    with mirror(MirrorServer({PATH: LARGE}, knows_ranges=False)) as server:
        assert fetched(server.url, partial) == partial
    assert partial.read_bytes() == LARGE


def test_a_bad_beginning_from_before_is_replaced(partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 1000)
    with mirror(MirrorServer({PATH: LARGE})) as server:
        assert fetched(server.url, partial) == partial
        assert server.asked == [(PATH, 1000), (PATH, None)]
    assert partial.read_bytes() == LARGE


def test_other_bytes_under_that_name_are_refused_and_not_kept(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE[:-1] + b"x"})) as server:
        with pytest.raises(MirrorError, match="SHA-256"):
            fetched(server.url, partial)
        assert len(server.asked) == 1
    assert not partial.exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MirrorServer(), "HTTP 404 Not Found"),
        (MirrorServer({PATH: LARGE + b"more"}), "1,500,004 bytes and not 1,500,000"),
        (MirrorServer({PATH: LARGE[:5000]}), "5,000 bytes"),
        (MirrorServer({PATH: LARGE}, redirects_to="ftp://localhost"), "ftp is not https"),
        (MirrorServer({PATH: LARGE}, redirects_to="http://192.0.2.1"), "does not speak https"),
        (MirrorServer({PATH: LARGE}, breaks_off_after=100_000), "broke off after 400,000 of 1,500,000"),
    ],
    ids=["missing", "longer", "shorter", "redirect", "redirect to plain http", "breaks off for good"],
)
def test_what_a_mirror_does_wrong_is_said_in_one_line(partial: Path, fault: MirrorServer, said: str) -> None:
    with mirror(fault) as server:
        with pytest.raises(MirrorError, match=said) as raised:
            fetched(server.url, partial)
        assert str(raised.value).isprintable()
        assert len(server.asked) <= ATTEMPTS


def test_a_server_that_sends_another_part_than_was_asked_for_spoils_nothing(partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(LARGE[:700_000])
    with (
        mirror(MirrorServer({PATH: LARGE}, content_range="bytes 5-9/10")) as server,
        pytest.raises(MirrorError, match="another part"),
    ):
        fetched(server.url, partial)
    assert partial.read_bytes() == LARGE[:700_000]


def test_a_redirect_to_where_it_may_be_asked_is_followed(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE})) as store, mirror(MirrorServer(redirects_to=store.url)) as server:
        assert fetched(server.url, partial) == partial


def test_nothing_is_written_any_more_once_it_was_stopped(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE}, goes_on=threading.Event())) as server:
        fetch = Mirrors().begin(server.url, REFERENCE, partial, 0.0)
        assert fetch is not None
        waiting.until(server.stopped_at.is_set)
        fetch.stop()
        size = partial.stat().st_size if partial.exists() else 0
        assert server.goes_on is not None
        server.goes_on.set()
        waiting.until(fetch.ended.is_set)
        assert (partial.stat().st_size if partial.exists() else 0) == size


# -- a slow mirror -----------------------------------------------------------------------------------------------


def begun(server: MirrorServer, partial: Path) -> MirrorFetch:
    fetch = Mirrors().begin(server.url, REFERENCE, partial, 0.0)
    assert fetch is not None
    return fetch


def test_a_mirror_that_stops_sending_is_given_up_and_its_thread_ends(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE}, goes_on=threading.Event())) as server:
        fetch = begun(server, partial)
        waiting.until(server.stopped_at.is_set)
        while fetch.received_bytes < 1000:
            assert fetch.step(WINDOW_S - 1) is None
        with pytest.raises(MirrorError, match="it sent 1,000 bytes in 61 s"):
            fetch.step(WINDOW_S + 1)
        waiting.until(fetch.ended.is_set, what="while the server still keeps silent")
    assert partial.read_bytes() == LARGE[:1000], "to be resumed"


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nX-Header: ", b"HTTP/1.1 302 Found\r\nLocation: /"])
def test_a_mirror_that_never_ends_its_headers_is_given_up_and_its_thread_ends(partial: Path, reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = MirrorServer(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        fetch = begun(server, partial)
        connection, _ = listening.accept()
        with connection:
            connection.sendall(reply)
            with pytest.raises(MirrorError, match="it sent 0 bytes"):
                fetch.step(WINDOW_S + 1)
            waiting.until(fetch.ended.is_set)


def test_a_mirror_that_never_ends_its_handshake_is_given_up_and_its_thread_ends(partial: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = MirrorServer(url=f"https://127.0.0.1:{listening.getsockname()[1]}")
        fetch = begun(server, partial)
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(1), "it has begun"
            fetch.stop()
            waiting.until(fetch.ended.is_set)


def test_a_mirror_that_drips_is_given_up_when_the_broker_would_be_done(partial: Path) -> None:
    limit_s = WINDOW_S + REFERENCE.size / MIN_BYTES_PER_S
    with mirror(MirrorServer({PATH: LARGE}, goes_on=threading.Event())) as server:
        fetch = begun(server, partial)
        waiting.until(server.stopped_at.is_set)
        with pytest.raises(MirrorError, match=f"within {limit_s:.0f} s"):
            fetch.step(limit_s)
        waiting.until(fetch.ended.is_set)


def test_a_mirror_that_is_fast_enough_is_waited_for(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE}, goes_on=threading.Event(), stops_after=400_000)) as server:
        fetch = begun(server, partial)
        waiting.until(server.stopped_at.is_set)
        while fetch.received_bytes < 400_000:
            assert fetch.step(1.0) is None
        assert fetch.step(WINDOW_S + 1) is None  # the first window brought enough
        with pytest.raises(MirrorError, match="it sent 0 bytes in 60 s"):
            fetch.step(2 * WINDOW_S + 1)
        waiting.until(fetch.ended.is_set)


def test_no_connection_stays_open(partial: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fetch = begun(MirrorServer(url=f"http://127.0.0.1:{listening.getsockname()[1]}"), partial)
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            waiting.until(fetch.ended.is_set)
            assert connection.recv(1) == b""


# -- redirects inwards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inside",
    [
        "http://127.0.0.1:{port}",
        "http://127.1:{port}",
        "http://2130706433:{port}",
        "http://[::1]:{port}",
        "http://[::ffff:127.0.0.1]:{port}",
        "http://0.0.0.0:{port}",
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://10.0.0.1",
        "http://172.16.3.4",
        "http://192.168.1.1",
        "http://100.64.0.1",
        "http://[fd00::1]",
        "http://224.0.0.1",
    ],
)
def test_a_mirror_cannot_send_the_agent_to_itself_or_into_its_network(partial: Path, inside: str) -> None:
    with mirror(MirrorServer({PATH: LARGE})) as private, mirror() as server:
        server.redirects_to = inside.format(port=private.url.rpartition(":")[2])
        with pytest.raises(MirrorError, match="this device or in its own network") as refused:
            fetched(server.url, partial, "any")
        assert str(refused.value).isprintable()
        assert private.asked == []
    assert not partial.exists()


def test_a_name_that_leads_inwards_is_refused_before_anything_is_asked(
    partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirror(MirrorServer({PATH: LARGE})) as private, mirror() as server:
        port = int(private.url.rpartition(":")[2])
        server.redirects_to = f"http://cdn.example:{port}"
        known = socket.getaddrinfo

        def resolve(host: Any, *rest: Any, **options: Any) -> Any:
            return known("127.0.0.1" if host == "cdn.example" else host, *rest, **options)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(MirrorError, match=r"cdn\.example, which is this device"):
            fetched(server.url, partial, "any")
        assert private.asked == []


def test_a_private_mirror_that_was_named_is_asked_and_may_redirect_to_itself(partial: Path) -> None:
    with mirror(MirrorServer({PATH: LARGE})) as store, mirror() as server:
        server.redirects_to = store.url.replace("localhost", "LOCALHOST")
        assert fetched(server.url, partial) == partial


@pytest.mark.parametrize(
    ("policy", "url", "asked"),
    [
        ("off", "https://localhost", False),
        ("https", "https://fleet.example/b", True),
        ("https", "http://fleet.example/b", False),
        ("https", "http://127.0.0.1:80", True),
        ("https", "http://[::1]/", True),
        ("https", "http://localhost.example/", False),
        ("any", "http://fleet.example/b", True),
        ("any", "file:///etc", False),
    ],
)
def test_whom_an_agent_asks_is_its_own_choice(policy: MirrorPolicy, url: str, asked: bool) -> None:
    assert (Mirrors(policy).objection(url) == "") is asked


def test_a_policy_that_is_none_is_refused() -> None:
    assert mirror_policy("any", signed=False) == "any"
    assert mirror_policy(None, signed=True) == "https"
    assert mirror_policy(None, signed=False) == "off"  # anybody could have named the mirror
    with pytest.raises(UsageError, match="off, https, any"):
        mirror_policy("http", signed=True)


def test_a_mirror_that_failed_is_left_alone_for_a_while(partial: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirrors = Mirrors("https")
    with caplog.at_level(logging.WARNING):
        assert mirrors.begin("http://fleet.example", REFERENCE, partial, 0.0) is None
        assert mirrors.begin("http://fleet.example", REFERENCE, partial, 1.0) is None
        assert len(caplog.records) == 1
        assert mirrors.begin("http://fleet.example", REFERENCE, partial, RETRY_AFTER_S + 1) is None
        assert len(caplog.records) == 2


class TestTls:
    def context(self, folder: Path, ca: Issued, host: str) -> ssl.SSLContext:
        issued = issue(ca, host, "server", self.now, hosts=[host])
        (folder / "server.pem").write_text(issued.certificate + issued.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        return context

    now = datetime.datetime.now(datetime.timezone.utc)

    def test_the_brokers_authority_vouches_for_a_mirror_too(self, tmp_path: Path, partial: Path) -> None:
        ca = new_authority("fleet", self.now)
        beside = mirrors_beside(BrokerAddress("broker", ca_pem=ca.certificate), "https")
        with mirror(MirrorServer({PATH: LARGE}), self.context(tmp_path, ca, "localhost")) as server:
            assert server.url.startswith("https://")
            assert fetched(server.url, partial, mirrors=beside) == partial

    @pytest.mark.parametrize("case", ["unknown authority", "another host"])
    def test_a_certificate_that_does_not_fit_is_refused(self, tmp_path: Path, partial: Path, case: str) -> None:
        ca = new_authority("fleet", self.now)
        known = new_authority("other", self.now) if case == "unknown authority" else ca
        host = "fleet.example" if case == "another host" else "localhost"
        beside = mirrors_beside(BrokerAddress("broker", ca_pem=known.certificate), "https")
        with (
            mirror(MirrorServer({PATH: LARGE}), self.context(tmp_path, ca, host)) as server,
            pytest.raises(MirrorError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            fetched(server.url, partial, mirrors=beside)
        assert server.asked == []
        assert not partial.exists()


# -- the agent -------------------------------------------------------------------------------------------------


def follow(rig: Rig, agent: object, seconds: float = 5.0) -> None:
    """Let the agent act, and wait for a mirror's thread wherever one is at work."""
    for _ in range(round(4 * seconds)):
        rig.run(agent, seconds=0.25)  # type: ignore[arg-type]
        for thread in threading.enumerate():
            if thread.name == "mirror":
                waiting.until(lambda thread=thread: not thread.is_alive())  # type: ignore[misc]


def test_an_agent_that_has_a_mirror_asks_its_coordinator_for_nothing(tmp_path: Path) -> None:
    with mirror(MirrorServer({f"/{BUNDLE.sha256}.supernet": BLOB})) as server:
        rig = Rig(tmp_path)
        agent = rig.agent()
        rig.run(agent)
        rig.coordinator.send("pi", "task", task(mirror=server.url))
        follow(rig, agent)
    assert len(rig.coordinator.updates("result")) == 1
    assert rig.coordinator.on("blob") == []
    assert (tmp_path / "state" / "blobs" / BUNDLE.sha256).read_bytes() == BLOB
    assert len(server.asked) == 1


@pytest.mark.parametrize("case", ["missing", "breaks off", "other bytes", "nobody there", "not allowed"])
def test_where_the_mirror_fails_the_broker_serves(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    path = f"/{BUNDLE.sha256}.supernet"
    faults = {
        "missing": MirrorServer(),
        "breaks off": MirrorServer({path: BLOB}, breaks_off_after=10_000),
        "other bytes": MirrorServer({path: BLOB[::-1]}),
    }
    with mirror(faults.get(case)) as server, caplog.at_level(logging.WARNING):
        url = {"nobody there": "http://localhost:9", "not allowed": "http://192.0.2.1"}.get(case, server.url)
        rig = Rig(tmp_path)
        agent = rig.agent()
        rig.run(agent)
        for number in (1, 2):
            rig.coordinator.send("pi", "task", task(number, mirror=url))
            follow(rig, agent)
    assert len(rig.coordinator.updates("result")) == 2
    assert rig.coordinator.on("blob")
    assert (tmp_path / "state" / "blobs" / BUNDLE.sha256).read_bytes() == BLOB
    lines = [record.getMessage() for record in caplog.records if "mirror" in record.getMessage()]
    assert len(lines) == 1
    assert url in lines[0]
    assert "through the broker instead" in lines[0]


def test_a_mirror_that_takes_too_long_is_not_asked_at_the_next_attempt(tmp_path: Path) -> None:
    with mirror(MirrorServer({f"/{BUNDLE.sha256}.supernet": BLOB}, goes_on=threading.Event())) as server:
        rig = Rig(tmp_path)
        agent = rig.agent()
        rig.run(agent)
        rig.coordinator.send("pi", "task", task(mirror=server.url, deadline_s=5.0))
        rig.run(agent, seconds=1)
        waiting.until(server.stopped_at.is_set)
        rig.run(agent, seconds=6)
        assert [rejected.reason for rejected in rig.coordinator.updates("rejected")] == ["expired"]  # type: ignore[attr-defined]
        rig.measurer.script.append(measured())
        rig.coordinator.send("pi", "task", task(attempt=2, mirror=server.url))
        follow(rig, agent)
        assert len(rig.coordinator.updates("result")) == 1
        assert len(server.asked) == 1


# -- the wire --------------------------------------------------------------------------------------------------


def test_a_task_without_a_mirror_is_what_it_always_was() -> None:
    assert b"mirror" not in encode(task())
    named = task(mirror="https://fleet.example:8443/bundles/")
    assert decode_task(encode(named)).model_copy(update={"schema_minor": 0}) == named
    assert bundle_url("https://fleet.example:8443/bundles/", "ab") == "https://fleet.example:8443/bundles/ab.supernet"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/",
        "file:///etc/passwd",
        "https://user:word@fleet.example/",
        "https://fleet.example/?key=1",
        "https://fleet.example/a b",
        "https://fleet.example/\n",
        "https://fleet.example\x1b[0m",
        "https://" + "a" * 400,
    ],
)
def test_an_address_that_is_none_never_reaches_the_agents_work(url: str) -> None:
    with pytest.raises(UsageError, match="not the address of a folder"):
        check_mirror(url)
    payload = encode(task(mirror="https://fleet.example")).replace(
        b"https://fleet.example", url.encode("unicode_escape").replace(b"\\x", b"\\u00")
    )
    with pytest.raises(ProtocolError, match="mirror"):
        decode_task(payload)
