"""What is asked wrongly is answered with one clear message, at once, and nothing hangs."""

from __future__ import annotations

from rigs import brokers, waiting
from rigs.process_fleet import QUICK, Fleet, events


def refused(fleet: Fleet, *options: str) -> str:
    """A search that must not start; returns what it says."""
    search = fleet.search(*options)
    assert list(events(search)) == []
    assert waiting.ended(search) in (1, 2)
    said = fleet.complaints()
    assert "Traceback" not in said
    return said


def test_unknown_targets(fleet: Fleet) -> None:
    assert "auto:4" in refused(fleet, "--supernet", str(fleet.supernet), "--targets", "fast")


def test_a_corrupt_bundle(fleet: Fleet) -> None:
    content = bytearray(fleet.supernet.read_bytes())
    content[len(content) // 2] ^= 1
    fleet.supernet.write_bytes(content)
    assert "export or fetch it again" in refused(fleet, "--supernet", str(fleet.supernet), "--targets", "auto:2")


def test_a_broker_that_is_not_there(fleet: Fleet) -> None:
    nowhere = f"127.0.0.1:{brokers.free_port()}"
    options = ("--supernet", str(fleet.supernet), "--targets", "auto:2", "--broker", nowhere)
    said = refused(fleet, *options)
    assert nowhere in said
    assert "fleetnas broker" in said


def test_an_infeasible_target_is_named_and_the_feasible_one_is_met(fleet: Fleet) -> None:
    fleet.agent("alpha")
    search = fleet.new_search("--budget", "6", targets="0.0001,1000")
    happenings = list(events(search))
    assert waiting.ended(search) == 1
    (infeasible,) = [event for event in happenings if event["event"] == "target_infeasible"]
    assert infeasible["target_ms"] == 0.0001
    assert f"{infeasible['fastest_ms']:.3g} ms" in infeasible["reason"]
    (device,) = fleet.results()["fleet"]
    assert [target["met"] for target in device["targets"]] == [False, True]


def test_a_bundle_that_changed_since_the_run_began_is_not_resumed(fleet: Fleet) -> None:
    fleet.agent("alpha")
    search = fleet.new_search("--budget", "6", *QUICK)
    for event in events(search):
        if event["event"] == "measurement":
            search.kill()
            break
    waiting.ended(search)
    other = fleet.folder / "other.supernet"
    from rigs.untrained_supernet import write_untrained

    write_untrained(other, seed=1)
    assert "SHA-256" in refused(fleet, "--resume", "--supernet", str(other))


def test_two_agents_of_one_name_leave_one_at_work(fleet: Fleet) -> None:
    fleet.agent("alpha")
    search = fleet.new_search("--budget", "6")
    rival = None
    happenings = []
    for event in events(search):
        happenings.append(event)
        if event["event"] == "measurement" and rival is None:
            rival = fleet.agent("alpha", "--state-dir", str(fleet.folder / "elsewhere"))
    assert waiting.ended(search) == 0
    assert rival is not None
    assert waiting.ended(rival) == 2
    (device,) = fleet.results()["fleet"]
    assert [target["met"] for target in device["targets"]] == [True, True]
