import json
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleetnas.fleet_protocol import codec
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import (
    MAX_SESSIONS,
    SCHEMA_MINOR,
    AgentState,
    BlobReference,
    Failed,
    Heartbeat,
    Measurement,
    Result,
    RuntimeSetting,
    TaskKey,
    Versioned,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, MeasureTask

V = TypeVar("V", bound=Versioned)
KEY = TaskKey(task_id="t1", attempt=2)
TASK = MeasureTask(
    task=KEY,
    run_id="run-1",
    bundle=BlobReference(sha256="a" * 64, size=1000),
    architecture=Architecture(ks=(3,) * 20, e=(6,) * 20, d=(4,) * 5, r=224),
    setting=RuntimeSetting(threads=4, runtime="litert"),
    deadline_s=60,
)
MEASUREMENT = Measurement(
    model_sha256="b" * 64,
    model_bytes=20_000_000,
    median_ms=12.5,
    mad_ms=0.1,
    p90_ms=13.0,
    min_ms=12.3,
    runs=100,
    half_width_percent=0.4,
    quality="ok",
    times_us=tuple(12_500.0 + i for i in range(100)),
    provider="CPUExecutionProvider",
    build_ms=11.0,
    load_ms=40.0,
    finished_unix_s=1.7e9,
)


def _as_sent(message: V) -> V:
    """Return a message as its recipient has it: with the minor version of the program that sent it."""
    return message.model_copy(update={"schema_minor": SCHEMA_MINOR})


def test_tasks_and_updates_come_back_equal_and_as_their_own_kind() -> None:
    for task in (TASK, CancelTask(task=KEY)):
        assert codec.decode_task(codec.encode(task)) == _as_sent(task)
    for update in (Result(task=KEY, measurement=MEASUREMENT), Failed(task=KEY, reason="crashed", detail="signal 11")):
        assert codec.decode_task_update(codec.encode(update)) == _as_sent(update)
    for message in (
        Acknowledgement(task=KEY),
        AgentState(state="ready", session=3, instance="x"),
        Heartbeat(session=1, uptime_s=2),
    ):
        assert codec.decode(type(message), codec.encode(message)) == _as_sent(message)


@pytest.mark.parametrize(
    ("sessions", "medians"),
    [(1, ()), (1, (12.5,)), (2, (12.0, 13.0)), (MAX_SESSIONS, (12.5,) * MAX_SESSIONS)],
)
def test_sessions_with_a_latency_each_are_accepted(sessions: int, medians: tuple[float, ...]) -> None:
    found = Measurement.model_validate({**vars(MEASUREMENT), "sessions": sessions, "session_medians_ms": medians})
    assert (found.sessions, found.session_medians_ms) == (sessions, medians)


@pytest.mark.parametrize(
    ("sessions", "medians"),
    [
        (3, ()),
        (1, (12.5, 12.5)),
        (3, (12.5, 12.5)),
        (0, ()),
        (MAX_SESSIONS + 1, (12.5,) * (MAX_SESSIONS + 1)),
        (2, (12.5, float("nan"))),
        (2, (12.5, 0.0)),
        (2, (1.0, 2.0)),
        (2, (13.0, 14.0)),
    ],
)
def test_sessions_that_contradict_their_latencies_are_refused(sessions: int, medians: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Measurement.model_validate({**vars(MEASUREMENT), "sessions": sessions, "session_medians_ms": medians})


def test_a_measurement_of_a_program_without_sessions_is_of_one() -> None:
    fields = json.loads(codec.encode(Result(task=KEY, measurement=MEASUREMENT)))
    del fields["schema_minor"]
    assert not fields["measurement"].keys() & {"sessions", "session_medians_ms"}
    found = codec.decode_task_update(json.dumps(fields).encode())
    assert isinstance(found, Result)
    assert (found.measurement.sessions, found.measurement.session_medians_ms) == (1, ())


def test_a_measurement_costs_at_most_2_kib_on_the_wire() -> None:
    sent = [
        codec.encode(TASK),
        codec.encode(Result(task=KEY, measurement=MEASUREMENT)),
        codec.encode(Acknowledgement(task=KEY)),
    ]
    assert sum(len(payload) for payload in sent) <= 2048


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"op": "execute"},
        {"extra": 1},
        {"deadline_s": float("inf")},
        {"deadline_s": -1},
        {"run_id": "../../etc"},
        {"architecture": {"ks": [3] * 65, "r": 224}},
    ],
)
def test_a_task_that_breaks_the_contract_is_refused(change: dict[str, object]) -> None:
    fields = json.loads(codec.encode(TASK)) | change
    with pytest.raises(ProtocolError, match="refused"):
        codec.decode_task(json.dumps(fields).encode())


def test_a_refused_state_of_an_agent_is_told_with_every_state_that_there_is() -> None:
    payload = codec.encode(AgentState(state="busy", session=3, instance="x")).replace(b"busy", b"asleep")
    with pytest.raises(ProtocolError, match=r"refused: state: it must be 'ready', 'leaving', 'lost' or 'busy'$"):
        codec.decode(AgentState, payload)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.decode_task(payload)
    with pytest.raises(ProtocolError):
        codec.decode_task_update(payload)


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_task_is_refused_or_still_a_valid_task(position: int, byte: int) -> None:
    payload = bytearray(codec.encode(TASK))
    payload[position % len(payload)] = byte
    try:
        task = codec.decode_task(bytes(payload))
    except ProtocolError:
        return
    assert isinstance(task, (MeasureTask, CancelTask))


def test_an_oversized_message_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        codec.decode_task(b"[" * (codec.MAX_JSON_BYTES + 1))


@given(data=st.binary(min_size=1, max_size=1000), offset=st.integers(0, 2**63))
def test_chunks_come_back_equal(data: bytes, offset: int) -> None:
    chunk = codec.BlobChunk("c" * 64, offset, data)
    assert codec.decode_chunk(codec.encode_chunk(chunk)) == chunk


@pytest.mark.parametrize("size", [0, 40, 40 + codec.MAX_CHUNK_BYTES + 1])
def test_a_chunk_of_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="chunk"):
        codec.decode_chunk(bytes(size))
