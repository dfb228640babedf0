"""What docs/brokers.md says of other brokers' limits, held against our own topics and messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleetnas.fleet_protocol.codec import MAX_CHUNK_BYTES, MAX_JSON_BYTES, BlobChunk, encode_chunk
from fleetnas.fleet_protocol.topics import DOWN_CHANNELS, UP_CHANNELS, Topics

DOCUMENT = (Path(__file__).parents[2] / "docs" / "brokers.md").read_text()
LONGEST = "x" * 64
TOPICS = Topics(LONGEST)
EVERY_TOPIC = [
    TOPICS.coordinator,
    *(TOPICS.up(LONGEST, channel) for channel in UP_CHANNELS),
    *(TOPICS.down(LONGEST, channel) for channel in DOWN_CHANNELS),
]
LARGEST_BYTES = max(MAX_JSON_BYTES, len(encode_chunk(BlobChunk("f" * 64, 0, bytes(MAX_CHUNK_BYTES)))))


def kilobytes(pattern: str) -> int:
    found = re.search(pattern, DOCUMENT)
    assert found, f"docs/brokers.md no longer says {pattern!r}"
    return int(found.group(1))


@pytest.mark.parametrize("topic", EVERY_TOPIC)
def test_aws_takes_every_topic(topic: str) -> None:
    assert topic.count("/") <= 7, "AWS IoT Core: at most seven slashes"
    assert len(topic.encode()) <= 256, "AWS IoT Core: at most 256 bytes"


@pytest.mark.parametrize("channel", UP_CHANNELS)
def test_aws_takes_the_coordinators_filters(channel: str) -> None:
    assert TOPICS.every_agent(channel).count("/") <= 7  # type: ignore[arg-type]


def test_the_largest_message_fits_every_broker() -> None:
    header = 5 + 2 + max(len(topic) for topic in EVERY_TOPIC) + 2 + 5  # fixed header, topic, identifier, properties
    packet = LARGEST_BYTES + header
    assert packet <= kilobytes(r"and (\d+) KB in a payload") * 1024
    assert packet <= kilobytes(r"Packets of up to (\d+) MB") * 1024 * 1024
    assert packet <= int(re.search(r"`max-packet-size` of (\d+)", DOCUMENT).group(1))  # type: ignore[union-attr]


def test_an_agent_and_a_coordinator_subscribe_within_awss_eight_filters() -> None:
    agent = [*DOWN_CHANNELS, "own state", "coordinator's state"]
    assert len(agent) <= 8
    assert len(UP_CHANNELS) <= 8


def test_the_documented_depth_is_the_real_one() -> None:
    assert "seven levels, six slashes" in DOCUMENT
    assert {topic.count("/") for topic in EVERY_TOPIC if "/agents/" in topic} == {6}
