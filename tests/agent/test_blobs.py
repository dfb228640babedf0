"""Blobs arrive whole and verified whatever happens to their chunks; the cache stays within its cap."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from fleetnas.agent.transfer.blobs import CHUNK_TIMEOUT_S, MAX_WRONG_HASHES, WINDOW, BlobCache, BlobFetch
from fleetnas.fleet_protocol.codec import MAX_CHUNK_BYTES, BlobChunk, decode, decode_chunk, encode, encode_chunk
from fleetnas.fleet_protocol.errors import BundleError, HashMismatchError
from fleetnas.fleet_protocol.messages import BlobReference, BlobRequest
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.memory import Delivery, MemoryBroker

BLOB = np.random.default_rng(5).bytes(23 * MAX_CHUNK_BYTES + 777)
REFERENCE = BlobReference(sha256=hashlib.sha256(BLOB).hexdigest(), size=len(BLOB))


def serve(request: BlobRequest, blob: bytes = BLOB) -> BlobChunk:
    return BlobChunk(request.sha256, request.offset, blob[request.offset : request.offset + request.length])


class Wire:
    """A fetch on one end of an in-memory broker and a server of blobs on the other, with a clock that is set."""

    def __init__(self, partial: Path, fault: Callable[[Delivery], Iterable[Delivery]] | None = None) -> None:
        self.broker = MemoryBroker(fault)
        self.now = 0.0
        #: Requests that reached the server, and all that the fetch sent.
        self.requests: list[BlobRequest] = []
        self.sent: list[BlobRequest] = []
        self.agent, self.server = self.broker.transport("agent"), self.broker.transport("server")
        self.agent.subscribe("chunks")
        self.server.subscribe("requests")
        self.agent.start()
        self.server.start()
        self.fetch = BlobFetch(REFERENCE, partial, self._send)

    def _send(self, request: BlobRequest) -> None:
        self.sent.append(request)
        self.agent.publish("requests", encode(request), qos=1)

    def turn(self) -> Path | None:
        """The fetch asks, the server answers, the fetch takes what arrived."""
        file = self.fetch.step(self.now)
        while event := self.server.poll(0):
            if isinstance(event, Received):
                request = decode(BlobRequest, event.payload)
                self.requests.append(request)
                self.server.publish("chunks", encode_chunk(serve(request)), qos=0)
        while event := self.agent.poll(0):
            if isinstance(event, Received):
                self.fetch.receive(decode_chunk(event.payload))
        return file

    def run(self, limit_s: float = 3600) -> Path:
        while self.now < limit_s:
            if file := self.turn():
                return file
            self.now += 0.1
        raise AssertionError(f"not here after {limit_s} s: {self.fetch.fraction:.0%}")


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "partial" / "blob"


def chunks_only(change: Callable[[Delivery], Iterable[Delivery]]) -> Callable[[Delivery], Iterable[Delivery]]:
    return lambda delivery: change(delivery) if delivery.client_id == "agent" else (delivery,)


def test_a_clean_wire_asks_for_each_chunk_once_and_never_more_than_a_window(partial: Path) -> None:
    link = Wire(partial)
    assert link.turn() is None
    assert len(link.requests) == WINDOW
    assert link.run().read_bytes() == BLOB
    offsets = [request.offset for request in link.requests]
    assert offsets == sorted(set(offsets))
    assert all(request.length <= MAX_CHUNK_BYTES for request in link.requests)


@pytest.mark.parametrize("seed", range(5))
def test_lost_repeated_and_reordered_chunks_do_no_harm(partial: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    held: list[Delivery] = []

    def mangle(delivery: Delivery) -> Iterable[Delivery]:
        fate = rng.random()
        if fate < 0.2:
            return ()
        if fate < 0.4:
            held.append(delivery)
            return ()
        out = [delivery, delivery] if fate < 0.5 else [delivery]
        if held and rng.random() < 0.7:
            out.insert(0, held.pop(int(rng.integers(len(held)))))
        return out

    assert Wire(partial, chunks_only(mangle)).run().read_bytes() == BLOB


def test_lost_requests_are_asked_again_after_a_growing_time(partial: Path) -> None:
    link = Wire(partial, lambda delivery: ())
    asked_at = []
    while link.now < 60:
        before = len(link.sent)
        link.turn()
        if any(request.offset == 0 for request in link.sent[before:]):
            asked_at.append(round(link.now))
        link.now += 1.0
    assert asked_at == [0, 5, 15, 35]


def test_damaged_bytes_are_noticed_and_fetched_again(partial: Path) -> None:
    damaged = []

    def flip_once(delivery: Delivery) -> Iterable[Delivery]:
        if not damaged and decode_chunk(delivery.message.payload).offset > 0:
            damaged.append(True)
            broken = delivery.message.payload[:-1] + bytes([delivery.message.payload[-1] ^ 1])
            return (Delivery(delivery.client_id, Received(delivery.message.topic, broken)),)
        return (delivery,)

    link = Wire(partial, chunks_only(flip_once))
    assert link.run().read_bytes() == BLOB
    assert len(link.requests) == 2 * 24


def test_a_sender_of_other_bytes_than_announced_is_given_up(partial: Path) -> None:
    def other(delivery: Delivery) -> Iterable[Delivery]:
        chunk = decode_chunk(delivery.message.payload)
        payload = encode_chunk(BlobChunk(chunk.sha256, chunk.offset, bytes(len(chunk.data))))
        return (Delivery(delivery.client_id, Received(delivery.message.topic, payload)),)

    link = Wire(partial, chunks_only(other))
    with pytest.raises(HashMismatchError, match=f"arrived {MAX_WRONG_HASHES} times"):
        link.run()
    assert not partial.exists()


def test_chunks_nobody_asked_for_or_cut_short_change_nothing(partial: Path) -> None:
    fetch = BlobFetch(REFERENCE, partial, lambda request: None)
    fetch.receive(BlobChunk(REFERENCE.sha256, 0, BLOB[:MAX_CHUNK_BYTES]))  # not asked yet
    fetch.step(0.0)
    fetch.receive(BlobChunk(REFERENCE.sha256, 0, BLOB[:100]))
    fetch.receive(BlobChunk("0" * 64, 0, BLOB[:MAX_CHUNK_BYTES]))
    fetch.receive(BlobChunk(REFERENCE.sha256, 5, BLOB[5 : 5 + MAX_CHUNK_BYTES]))
    assert fetch.fraction == 0
    fetch.receive(BlobChunk(REFERENCE.sha256, 0, BLOB[:MAX_CHUNK_BYTES]))
    assert fetch.received_bytes == MAX_CHUNK_BYTES


def test_a_new_process_resumes_where_the_old_one_was_killed(partial: Path) -> None:
    link = Wire(partial)
    link.turn()
    had = link.fetch.received_bytes
    assert 0 < had < len(BLOB)
    with partial.open("ab") as file:
        file.write(b"half a chunk that was being written")
    again = Wire(partial)
    assert again.fetch.received_bytes == had
    assert again.run().read_bytes() == BLOB
    assert min(request.offset for request in again.requests) == had


def test_a_reconnect_asks_again_at_once(partial: Path) -> None:
    link = Wire(partial, chunks_only(lambda delivery: ()))
    link.turn()
    link.turn()
    assert len(link.requests) == WINDOW
    link.fetch.on_reconnected()
    link.turn()
    assert len(link.requests) == 2 * WINDOW
    assert link.now < CHUNK_TIMEOUT_S


def test_a_leftover_longer_than_the_blob_is_not_trusted(partial: Path) -> None:
    partial.parent.mkdir()
    partial.write_bytes(bytes(len(BLOB) + 5))
    assert Wire(partial).run().read_bytes() == BLOB


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="--state-dir"):
        BlobFetch(REFERENCE, tmp_path / "file" / "blob", lambda request: None)


def put(cache: BlobCache, folder: Path, name: str, size: int, used_at: float) -> None:
    source = folder / "source"
    source.write_bytes(bytes(size))
    os.utime(cache.add(name, source), (used_at, used_at))


def test_the_least_recently_used_blobs_make_room_and_those_in_use_never(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs", max_bytes=1000)
    for used_at, name in enumerate(["old", "kept", "middle", "new"]):
        put(cache, tmp_path, name, 250, used_at)
    cache.make_room(400, keep=["kept"])
    assert sorted(path.name for path in (tmp_path / "blobs").iterdir()) == ["kept", "new"]


def test_finding_a_blob_counts_as_using_it(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs", max_bytes=500)
    put(cache, tmp_path, "first", 250, 1)
    put(cache, tmp_path, "second", 250, 2)
    assert cache.find("first") is not None
    assert cache.find("third") is None
    cache.make_room(250)
    assert cache.find("second") is None
    assert cache.find("first") is not None


def test_a_blob_larger_than_the_cap_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--cache-mb"):
        BlobCache(tmp_path / "blobs", max_bytes=1000).make_room(1001)


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="free some space"):
        BlobCache(tmp_path / "blobs", max_bytes=2**60).make_room(2**55)
