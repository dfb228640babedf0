"""Every field of every message with values that no honest program sends, against programs at work.

No crash, honest devices' winners as they are without it, results and report written. A case is counted when it is sent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from rigs.agent_rig import TOPICS as AGENT_TOPICS
from rigs.agent_rig import Rig, task
from rigs.hostile_fleet import HONEST, KEY, HostileCampaign, Said
from rigs.hostile_values import Case, cases, combined, is_accepted
from rigs.simulated_fleet import TOPICS, measurement
from rigs.store_examples import MEASUREMENT

from fleetnas.coordinator.monitoring.broker_feed import BrokerFeed
from fleetnas.coordinator.monitoring.fleet_observer import FleetObserver
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE, read_results
from fleetnas.coordinator.report.html import REPORT_FILE
from fleetnas.coordinator.store.export_files import write_rows
from fleetnas.coordinator.store.exported_fields import FIELDS, exported_rows
from fleetnas.coordinator.store.measurement_table import read_measurements
from fleetnas.device_profiles.profile import CpuCluster, DeviceProfile, MicroBenchmarks
from fleetnas.fleet_protocol import messages, orders, updates
from fleetnas.fleet_protocol.codec import decode
from fleetnas.fleet_protocol.messages import (
    Accepted,
    AgentInfo,
    AgentState,
    BlobReference,
    BlobRequest,
    Conditions,
    Failed,
    Heartbeat,
    Inventory,
    Message,
    Progress,
    Rejected,
    Result,
    RuntimeSetting,
    Versioned,
)
from fleetnas.fleet_protocol.orders import (
    Acknowledgement,
    CancelTask,
    CoordinatorState,
    MeasurementProtocol,
    MeasureTask,
    ModelReference,
    ModelTask,
)
from fleetnas.fleet_protocol.topics import UpChannel
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.memory import MemoryBroker
from fleetnas.fleet_protocol.updates import RunEvents, RunPage, RunSummary

LEAST_CASES, SOAK_CASES = 2000, 20_000
#: Answers of one hostile device, and of each of its settings: there are tasks for all of them.
ANSWERS, ANSWERS_PER_SETTING = 100, 50
#: Values of each field that are thrown in `make test`; all of them in the soak run.
PER_FIELD = 12

_CONDITIONS = Conditions(
    temperature_c=40.0,
    clock_mhz=1500.0,
    governor="performance",
    throttled=False,
    load_1min=0.1,
    battery_percent=80.0,
    battery_state="idle",
    battery_temperature_c=30.0,
    power_mw=900.0,
)
_PROFILE = DeviceProfile(
    model="Pi",
    machine="aarch64",
    clusters=(CpuCluster(name="Cortex-A72", cores=4, max_clock_mhz=1800.0),),
    cores=4,
    vector_extensions=("neon",),
    memory_mb=4000,
    accelerator="none",
    micro_benchmarks=MicroBenchmarks(
        gemm_gflops=5.0, depthwise_gflops=1.0, copy_gb_per_s=3.0, session_overhead_us=20.0
    ),
)
_SETTING = RuntimeSetting(affinity=(1,))
_MEASUREMENT = MEASUREMENT.model_copy(update={"before": _CONDITIONS, "after": _CONDITIONS})
_BLOB = BlobReference(sha256="d" * 64, size=1000)

#: What agents tell coordinators: by channel, every message with all of its fields.
UP: dict[UpChannel, list[Versioned]] = {
    "state": [AgentState(state="ready", session=1, instance="imp", detail="x")],
    "info": [
        AgentInfo(
            agent="imp-info-0",
            session=1,
            profile=_PROFILE,
            settings=(_SETTING,),
            versions={"a": "1"},
            tags=("camera",),
            host="0123456789abcdef",
        )
    ],
    "heartbeat": [Heartbeat(session=1, uptime_s=1.0, conditions=_CONDITIONS, task_id="run-1.1", outbox=1)],
    "task": [
        Accepted(task=KEY),
        Rejected(task=KEY, reason="busy", detail="x"),
        Progress(task=KEY, phase="measuring", fraction=0.5),
        Failed(task=KEY, reason="crashed", detail="x"),
    ],
    "inventory": [Inventory(session=1, running=KEY, queued=(KEY,), unacknowledged=(KEY,))],
    "blob": [BlobRequest(sha256="b" * 64, offset=0, length=100)],
}
RESULT = Result(task=KEY, measurement=_MEASUREMENT)
LAST = ("session", "instance", "state")
#: What coordinators tell agents.
DOWN: dict[str, list[Versioned]] = {
    "task": [
        MeasureTask(
            task=KEY,
            run_id="run",
            bundle=_BLOB,
            architecture=task().architecture.model_copy(update={"w": (1,)}),
            mirror="https://mirror.example/x",
            calibration=_BLOB,
            protocol=MeasurementProtocol(percentiles=(95.0,)),
            setting=_SETTING,
            wait_s=1.0,
            wait_above=1.1,
            deadline_s=60.0,
            stored=(KEY,),
            signature="A" * 118,
        ),
        ModelTask(
            task=KEY,
            run_id="run",
            bundle=_BLOB,
            mirror="https://mirror.example/x",
            model=ModelReference(sha256="b" * 64, size=1000, format="onnx", input_shapes={"x": (1, 3)}),
            protocol=MeasurementProtocol(percentiles=(95.0,)),
            setting=_SETTING,
            wait_s=1.0,
            wait_above=1.1,
            deadline_s=60.0,
            stored=(KEY,),
            signature="A" * 118,
        ),
        CancelTask(task=KEY, signature="A" * 118),
    ],
    "ack": [Acknowledgement(task=KEY, signature="A" * 118)],
}
COORDINATOR = CoordinatorState(state="ready", session=1)
#: What coordinators tell those who watch.
WATCHED: dict[str, Versioned] = {
    "summary": RunSummary(
        run_id="run-1",
        state="running",
        supernet="x",
        phase="x",
        started_unix_s=1.0,
        at_unix_s=2.0,
        settings=1,
        pages=1,
        log=("x",),
    ),
    "page-0": RunPage(devices=({"device": "pi", "setting_label": "x", "state": "idle", "temperature_c": 40.0},)),
    "events": RunEvents(first=0, events=({"event": "device_lost", "at_s": 1.0, "run_id": "r", "device": "x"},)),
}


def all_messages() -> list[Versioned]:
    """Every message of this file."""
    listed = [message for group in (*UP.values(), *DOWN.values()) for message in group]
    return [*listed, RESULT, COORDINATOR, *WATCHED.values()]


def said(channel: UpChannel, found: Iterable[Case]) -> list[Said]:
    """With what would end an agent's part in the campaign last."""
    return [(channel, case.payload) for case in sorted(found, key=lambda case: case.path[0] in LAST)]


def test_every_message_of_the_contract_is_attacked() -> None:
    kinds = {
        value
        for module in (messages, orders, updates)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Versioned) and value is not Versioned
    }
    assert {type(message) for message in all_messages()} == kinds


def check_written(out: Path, campaign: HostileCampaign, devices: int) -> None:
    """All that a run leaves behind can be read, and holds every device setting."""
    results = read_results(out)
    assert len(results.fleet) == devices
    rows = read_measurements(out / MEASUREMENTS_FILE)
    assert {device for device, _ in rows} >= set(HONEST)
    assert "</html>" in (out / REPORT_FILE).read_text()
    for device in results.fleet:
        if device.device in HONEST:
            assert [target.model is not None for target in device.targets] == [True] * len(device.targets)
    for form in ("csv", "parquet"):
        count = write_rows(exported_rows(campaign.fleet.store), FIELDS, out / f"export.{form}", form)  # type: ignore[arg-type]
        assert count == sum(len(found) for found in rows.values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> HostileCampaign:
    campaign = HostileCampaign()
    assert campaign.run(tmp_path_factory.mktemp("undisturbed")) == []
    return campaign


def attacked(out: Path, answers: list[bytes], noise: dict[str, list[Said]]) -> HostileCampaign:
    """A campaign in which devices give these answers to their tasks, and one device for each kind of noise makes it."""
    campaign = HostileCampaign()
    for first in range(0, len(answers), ANSWERS):
        given = answers[first : first + ANSWERS]
        settings = max(1, len(given) // ANSWERS_PER_SETTING)
        campaign.add(f"mallory-{first}", settings=settings, answers=given)
    for name, kind in noise.items():
        campaign.add(name, noise=kind)
    expected = len(answers) + sum(map(len, noise.values()))
    assert campaign.run(out) == []
    assert sum(agent.thrown for agent in campaign.hostile) == expected
    return campaign


@pytest.mark.parametrize("per_field", [PER_FIELD, pytest.param(None, marks=pytest.mark.soak)])
def test_hostile_values_in_every_field_change_nothing_for_honest_devices(
    undisturbed: HostileCampaign, tmp_path: Path, per_field: int | None
) -> None:
    results = list(cases(RESULT, per_field))
    noise = {
        f"imp-{channel}-{number}": said(channel, cases(message, per_field))
        for channel, found in UP.items()
        for number, message in enumerate(found)
    }
    # A result that is refused ends its task as an accepted one does: most of them are told of tasks that have ended.
    refused = [case for case in results if not case.accepted]
    noise["imp-result"] = said("task", refused[20:])
    answers = [case.payload for case in results if case.accepted] + [case.payload for case in refused[:20]]
    random.Random(1).shuffle(answers)
    campaign = attacked(tmp_path, answers, noise)
    assert len(answers) + sum(map(len, noise.values())) >= LEAST_CASES
    assert campaign.winners() == undisturbed.winners()
    check_written(tmp_path, campaign, len(campaign.fleet.campaign.setting_runs))
    # And whoever resumes that run comes to the same.
    resumed = campaign.fleet.begin(resume=True)
    campaign.fleet.run(most_steps=4000)
    resumed.finish()
    assert campaign.winners() == undisturbed.winners()


@pytest.mark.soak
def test_twenty_thousand_hostile_messages_change_nothing(undisturbed: HostileCampaign, tmp_path: Path) -> None:
    """Several fields at once."""
    thrown = 0
    for seed in range(1000):
        rng = random.Random(seed)
        drawn = [combined(RESULT, rng, rng.randint(1, 3)) for _ in range(1500)]
        answers = [payload for payload in drawn if is_accepted(Result, payload)][:100]
        noise = {
            f"imp-{channel}-{number}": [(channel, combined(message, rng, rng.randint(1, 3))) for _ in range(150)]
            for channel, found in UP.items()
            for number, message in enumerate(found)
        }
        noise["imp-result"] = [("task", payload) for payload in drawn[:500]]
        out = tmp_path / str(seed)
        campaign = attacked(out, answers, noise)
        assert campaign.winners() == undisturbed.winners(), f"seed {seed}"
        check_written(out, campaign, len(campaign.fleet.campaign.setting_runs))
        thrown += len(answers) + sum(map(len, noise.values()))
        if thrown >= SOAK_CASES:
            break
    assert thrown >= SOAK_CASES


def test_an_agent_that_is_told_hostile_values_takes_genuine_orders_as_before(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    agent = rig.agent(accepts_models=True)
    rig.run(agent, seconds=10)
    told = [(AGENT_TOPICS.down("pi", channel), case) for channel, found in DOWN.items() for message in found  # type: ignore[arg-type]
            for case in cases(message, PER_FIELD)]  # fmt: skip
    told += [(AGENT_TOPICS.coordinator, case) for case in cases(COORDINATOR, PER_FIELD)]
    for number, (topic, case) in enumerate(told):
        rig.coordinator.transport.publish(topic, case.payload)
        kind = {"MeasureTask": MeasureTask, "ModelTask": ModelTask}.get(case.kind)
        if case.accepted and kind is not None:  # it may be told to wait for years
            rig.coordinator.send("pi", "task", CancelTask(task=decode(kind, case.payload).task))
        if number % 50 == 0:
            rig.run(agent, seconds=0.5)
    rig.run(agent, seconds=200, tick_s=2)
    rig.coordinator.send("pi", "task", task(900))
    rig.run(agent, seconds=200, tick_s=2)
    measured = [result.task.task_id for result in rig.coordinator.updates("result")]  # type: ignore[attr-defined]
    assert "task-900" in measured
    assert len(told) > 500


def test_who_watches_a_hostile_run_goes_on_watching() -> None:
    broker = MemoryBroker()
    hostile, watcher = broker.transport("hostile"), broker.transport("watcher")
    ticks = iter(range(10**6))
    feed = BrokerFeed(watcher, TOPICS, "run-1", clock=lambda: next(ticks) / 10)
    fleet_observer = FleetObserver(TOPICS)
    hostile.start()
    watcher.start()
    thrown: Counter[str] = Counter()
    for part, message in WATCHED.items():
        for case in cases(message, PER_FIELD):
            topic = f"{TOPICS.run('run-1')[:-1]}{part}"
            hostile.publish(topic, case.payload)
            feed.poll(0.5)
            fleet_observer.take(Received(topic, case.payload), 1.0)
            thrown[part] += 1
    for channel in ("state", "info", "heartbeat"):
        for message in UP[channel]:  # type: ignore[index]
            for case in cases(message, PER_FIELD):
                fleet_observer.take(Received(TOPICS.up("imp", channel), case.payload), 1.0)  # type: ignore[arg-type]
                thrown[channel] += 1
    for entry in fleet_observer.registry.agents.values():
        assert fleet_observer.explain(entry, "1.0")
    hostile.publish(TOPICS.run_summary("run-1"), messages_of(WATCHED["summary"]))
    update = feed.poll(5.0)
    assert update.snapshot is not None
    assert update.snapshot.phase == "x"
    assert min(thrown.values()) > 30


def messages_of(message: Message) -> bytes:
    return message.model_dump_json().encode()


def test_a_measurement_as_devices_make_them_is_accepted() -> None:
    assert is_accepted(Result, messages_of(Result(task=KEY, measurement=measurement(1.0))))
