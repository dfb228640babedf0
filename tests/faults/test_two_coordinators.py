"""Two coordinators on one agent, one store and a real mosquitto: both finish, and nothing is stored twice."""

from __future__ import annotations

from pathlib import Path

from rigs import waiting
from rigs.fault_fleet import FaultFleet, Observer, fault_fleet

from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.codec import decode_task_update
from fleetnas.fleet_protocol.messages import Measurement, Result
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport


def test_two_campaigns_share_an_agent_and_its_results(tmp_path: Path) -> None:
    with fault_fleet(tmp_path / "first") as first:
        (tmp_path / "second").mkdir()
        second = FaultFleet(tmp_path / "second", first.mosquitto, store_folder=first.folder)
        observer = Observer(first.mosquitto.address)
        between = MqttTransport(first.mosquitto.address, "between")
        between.subscribe("fleetnas/v1/default/forwarded/+/alpha")
        between.start()
        between.wait_connected(waiting.STALL_S)
        try:
            first.start_agent("alpha")
            for number, fleet in enumerate((first, second)):
                fleet.start_search("--share", "--targets", "auto:1", "--budget", "6", "--seed", str(number))
            endings = [fleet.wait_search() for fleet in (first, second)]
            assert endings == [0, 0], first.said("coordinator") + second.said("coordinator")
            forwarded = sum(isinstance(event, Received) for event in iter(lambda: between.poll(0), None))
        finally:
            observer.close()
            between.close()
            second.close()
        sent = []
        while (message := observer.next()) is not None:
            if message[0].endswith("/up/task") and isinstance(update := decode_task_update(message[1]), Result):
                sent.append(update.task)
        store = MeasurementStore.open(first.store)
        runs = store.runs()
        outcomes = [found for run in runs for found in store.outcomes(run.run_id)]
        tasks = [task.task_id for run in runs for task in store.tasks(run.run_id)]
        store.close()
    assert forwarded > 0
    assert [run.status for run in runs] == ["complete", "complete"]
    assert all(isinstance(found.outcome, Measurement) for found in outcomes)
    assert len({found.key for found in outcomes}) == len(outcomes)
    assert {found.key for found in outcomes} == set(sent)
    # No lease ended for want of an update, and no coordinator called off the other's work.
    assert sorted(found.key.task_id for found in outcomes) == sorted(tasks)
    assert {found.key.attempt for found in outcomes} == {1}
