"""Serving bundles: right bytes, bounded rate, nothing for who asks for nonsense."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.fleet_protocol.codec import decode_chunk
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError
from fleetnas.fleet_protocol.messages import BlobReference, BlobRequest

BYTES = os.urandom(200_000)
LARGE = os.urandom(2_000_000)


class Link:
    """Takes chunks until it is full."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str, bytes]] = []
        self.full = False

    def __call__(self, agent: str, payload: bytes) -> None:
        if self.full:
            raise TransportError("full")
        self.chunks.append((agent, payload))


def test_a_file_is_put_together_again_from_its_ranges(tmp_path: Path) -> None:
    link, digest = Link(), hashlib.sha256(BYTES).hexdigest()
    (tmp_path / "b").write_bytes(BYTES)
    server = BlobServer(link)
    assert server.add_file(tmp_path / "b", digest).size == len(BYTES)
    for offset in range(0, len(BYTES), 65_536):
        server.request("pi", BlobRequest(sha256=digest, offset=offset, length=65_536))
    server.pump(0.0)
    chunks = [decode_chunk(payload) for _, payload in link.chunks]
    assert {chunk.sha256 for chunk in chunks} == {digest}
    assert b"".join(chunk.data for chunk in sorted(chunks, key=lambda c: c.offset)) == BYTES


def ask(server: BlobServer, agent: str, blob: BlobReference, chunks: Iterable[int], length: int = 50_000) -> None:
    for chunk in chunks:
        server.request(agent, BlobRequest(sha256=blob.sha256, offset=chunk * length, length=length))


def test_the_rate_is_bounded_and_shared() -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=1_000_000)
    reference = server.add(LARGE)
    server.pump(0.0)
    for agent in ("a", "b"):
        ask(server, agent, reference, range(40))
    server.pump(0.0)
    burst = len(link.chunks)
    assert 20 <= burst <= 22  # one burst of 1 MiB, however many ask
    server.pump(0.5)
    assert len(link.chunks) - burst == 10
    assert abs(sum(a == "a" for a, _ in link.chunks) - sum(a == "b" for a, _ in link.chunks)) <= 1


def fetch_all(server: BlobServer, link: Link, agents: Sequence[str], blob: BlobReference, until_s: float) -> list[str]:
    """Agents that ask for a window ahead, as real ones do; returns them in the order in which they had it all."""
    chunks = -(-blob.size // 50_000)
    asked, got = dict.fromkeys(agents, 0), dict.fromkeys(agents, 0)
    finished: list[str] = []
    now_s = 0.0
    while len(finished) < len(agents):
        assert now_s < until_s, f"after {now_s:g} s: {got}"
        for agent in agents:
            while asked[agent] < min(chunks, got[agent] + 8):
                ask(server, agent, blob, [asked[agent]])
                asked[agent] += 1
        seen = len(link.chunks)
        server.pump(now_s)
        for agent, _ in link.chunks[seen:]:
            got[agent] += 1
            if got[agent] == chunks:
                finished.append(agent)
        now_s += 0.01
    return finished


def test_a_bundle_reaches_the_first_while_the_others_wait() -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=10_000_000, at_once=2)
    reference = server.add(LARGE)
    server.pump(0.0)
    agents = [f"pi{number}" for number in range(10)]
    until_s = 1.1 * len(agents) * reference.size / 10_000_000
    finished = fetch_all(server, link, agents, reference, until_s)
    assert set(finished[:2]) == {"pi0", "pi1"}
    order = [agent for agent, _ in link.chunks]
    assert len(order) == 40 * len(agents)
    # The others had no more than what two windows left of the first burst, before the first two had it all.
    early = order[:100]
    assert (early.count("pi0"), early.count("pi1")) == (40, 40)
    assert "pi9" not in early


def test_a_slow_agent_on_the_stage_leaves_the_rate_to_others() -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=10_000_000, at_once=1)
    reference = server.add(LARGE)
    server.pump(0.0)
    ask(server, "slow", reference, [0])
    server.pump(0.0)
    ask(server, "quick", reference, range(8))
    server.pump(0.01)
    assert [agent for agent, _ in link.chunks] == ["slow"] + 8 * ["quick"]


def test_who_vanished_from_the_stage_makes_room() -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=100_000, at_once=1)
    reference = server.add(LARGE)
    ask(server, "gone", reference, [0])
    server.pump(0.0)
    for agent in ("next", "last"):
        ask(server, agent, reference, range(25))
    server.pump(10.0)
    order = [agent for agent, _ in link.chunks]
    assert order[0] == "gone"
    assert set(order[1:]) == {"next"}


def test_a_calibration_does_not_wait_behind_bundles() -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=1_000_000, at_once=1)
    bundle, calibration = server.add(LARGE), server.add(BYTES)
    ask(server, "pi0", bundle, range(40))
    server.pump(0.0)
    ask(server, "pi1", calibration, range(4))
    before = len(link.chunks)
    server.pump(0.2)
    assert [agent for agent, _ in link.chunks[before:]] == 4 * ["pi1"]


@pytest.mark.parametrize(("length", "rate"), [(65_536, 1_000_000), (65_536, 16_000_000), (1, 16_000_000)])
def test_one_that_asks_for_small_blobs_over_and_over_takes_its_share(length: int, rate: int) -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=rate)
    bundle, small = server.add(LARGE), server.add(BYTES)
    fetching = [f"pi{number}" for number in range(4)]
    asked, got = dict.fromkeys(fetching, 0), dict.fromkeys(fetching, 0)
    chunks = -(-bundle.size // 50_000)
    requests = [BlobRequest(sha256=small.sha256, offset=offset, length=length) for offset in range(20)]
    now_s = 0.0
    while min(got.values()) < chunks:
        # What an ordinary rate would take for five, and as much again for what may go ahead.
        assert now_s < 2 * 5 * bundle.size / rate, got
        for request in requests:
            with contextlib.suppress(ProtocolError):
                server.request("greedy", request)
        for agent in fetching:
            while asked[agent] < min(chunks, got[agent] + 8):
                ask(server, agent, bundle, [asked[agent]])
                asked[agent] += 1
        seen = len(link.chunks)
        server.pump(now_s)
        for agent, _ in link.chunks[seen:]:
            if agent in got:
                got[agent] += 1
        now_s += 0.01


def test_one_that_had_many_small_blobs_goes_ahead_again_after_a_while() -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=1_000_000)
    bundle, small = server.add(LARGE), server.add(BYTES)
    server.pump(0.0)
    for round_ in range(30):
        ask(server, "pi1", small, range(4))
        server.pump(1.0 * round_)
    ask(server, "pi0", bundle, range(40))
    ask(server, "pi1", small, range(4))
    before = len(link.chunks)
    server.pump(30.0)
    assert {agent for agent, _ in link.chunks[before : before + 4]} == {"pi0", "pi1"}
    server.pump(60.0)
    ask(server, "pi1", small, range(4))
    before = len(link.chunks)
    server.pump(61.0)
    assert [agent for agent, _ in link.chunks[before : before + 4]] == 4 * ["pi1"]


def test_what_is_asked_for_again_while_it_waits_is_sent_once() -> None:
    link = Link()
    server = BlobServer(link)
    reference = server.add(LARGE)
    for _ in range(3):
        ask(server, "pi", reference, range(2))
    assert server.waiting == 2
    server.pump(0.0)
    assert len(link.chunks) == 2


@pytest.mark.parametrize(("sha256", "offset"), [("f" * 64, 0), (None, len(BYTES))])
def test_what_is_not_there_is_refused(sha256: str | None, offset: int) -> None:
    server = BlobServer(Link())
    reference = server.add(BYTES)
    with pytest.raises(ProtocolError):
        server.request("pi", BlobRequest(sha256=sha256 or reference.sha256, offset=offset, length=1))


def test_an_agent_that_floods_is_cut_short_and_hurts_nobody() -> None:
    link = Link()
    server = BlobServer(link)
    reference = server.add(BYTES)
    for length in range(1, 257):
        server.request("flood", BlobRequest(sha256=reference.sha256, offset=0, length=length))
    with pytest.raises(ProtocolError, match="256"):
        server.request("flood", BlobRequest(sha256=reference.sha256, offset=0, length=300))
    server.request("pi", BlobRequest(sha256=reference.sha256, offset=0, length=10))
    server.pump(0.0)
    assert "pi" in {agent for agent, _ in link.chunks[:2]}


def test_a_full_queue_to_the_broker_loses_nothing_that_is_not_asked_for_again() -> None:
    link = Link()
    server = BlobServer(link)
    reference = server.add(BYTES)
    link.full = True
    server.request("pi", BlobRequest(sha256=reference.sha256, offset=0, length=10))
    server.pump(0.0)
    link.full = False
    server.request("pi", BlobRequest(sha256=reference.sha256, offset=0, length=10))
    server.pump(1.0)
    assert [decode_chunk(payload).data for _, payload in link.chunks] == [BYTES[:10]]
