"""Serving bundles: right bytes, bounded rate, nothing for who asks for nonsense."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from coordinator.blob_server import BlobServer
from fleet_protocol.codec import decode_chunk
from fleet_protocol.errors import ProtocolError, TransportError
from fleet_protocol.messages import BlobRequest

BYTES = os.urandom(200_000)


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


def test_the_rate_is_bounded_and_shared(tmp_path: Path) -> None:
    link = Link()
    server = BlobServer(link, rate_bytes_per_s=1_000_000)
    reference = server.add(BYTES)
    server.pump(0.0)
    for _ in range(40):
        for agent in ("a", "b"):
            server.request(agent, BlobRequest(sha256=reference.sha256, offset=0, length=50_000))
    server.pump(0.0)
    burst = len(link.chunks)
    assert 20 <= burst <= 22  # one burst of 1 MiB, however many ask
    server.pump(0.5)
    assert len(link.chunks) - burst == 10
    assert abs(sum(a == "a" for a, _ in link.chunks) - sum(a == "b" for a, _ in link.chunks)) <= 1


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
    asked = BlobRequest(sha256=reference.sha256, offset=0, length=65_536)
    for _ in range(256):
        server.request("flood", asked)
    with pytest.raises(ProtocolError, match="256"):
        server.request("flood", asked)
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
