"""Targets of other kinds than the median latency: parsing, search, verification, misses, and a run from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.simulated_fleet import ACCURACY, SPACE, Simulation, measurement
from rigs.tailed_device import TailedDevice, targets_of_kinds
from rigs.tuners import make, run

from fleetnas.coordinator.app.target_checks import check_targets, checked_on
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.device_targets import DeviceTargets
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.target_kinds import Target, TargetKind, kind_of_target
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import TargetKey, TargetRequest, key_of, ordered, target_name
from fleetnas.coordinator.report.artifacts import ArtifactFolder
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.tuning.cost_ratio import CostRatio
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import SCHEMA_MINOR, AgentInfo, RuntimeSetting
from fleetnas.fleet_protocol.percentiles import runs_needed

# -- words -----------------------------------------------------------------------------------------------------------


def kinds() -> st.SearchStrategy[Target]:
    values = st.floats(1e-3, 1e6)
    return st.one_of(
        st.builds(Target, st.just(TargetKind.PERCENTILE), values, st.floats(50.0, 99.9)),
        st.builds(Target, st.sampled_from([TargetKind.RATE, TargetKind.ENERGY]), values),
        st.builds(
            Target,
            st.just(TargetKind.ACCURACY),
            st.floats(0.1, 99.9),
            minimise=st.sampled_from(["latency", "energy", "parameters"]),
        ),
    )


@given(target=kinds())
def test_the_text_of_a_target_reads_as_the_same_target(target: Target) -> None:
    assert Target.parse(target.text) == target
    assert TargetRequest.parse(target.text).others == (target,)
    assert kind_of_target(target.text) is target.kind


def test_a_list_may_mix_all_kinds() -> None:
    request = TargetRequest.parse("33, accuracy:75:energy, fps:30, 20,p95:33ms, p99.9:50,energy:5mJ")
    assert str(request) == "20,33,p95:33,p99.9:50,fps:30,energy:5mJ,accuracy:75:energy"
    assert request.count == 7
    assert request.percentiles == (95.0, 99.9)
    assert TargetRequest.parse_stored(str(request)) == request
    assert str(TargetRequest.parse("p95:33,auto:4")) == "auto:4,p95:33"
    assert TargetRequest.parse("energy:0.005J").others == TargetRequest.parse("energy:5000uJ").others
    assert target_name(None, target="energy:5mJ") == "5 mJ"
    keys = [key_of(target) for target in request.others[::-1]]
    assert ordered([*keys, TargetKey(33.0), TargetKey(20.0)]) == [
        TargetKey(20.0),
        TargetKey(33.0),
        *(key_of(target) for target in request.others),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p40:33", "percentiles are from p50 to p99.9"),
        ("p100:33", "percentiles are from p50 to p99.9"),
        ("p95", "'p95' is not a number"),
        ("p95:", "not a number"),
        ("p95:0", "not above 0"),
        ("p95:-3", "not a number"),
        ("fps:0", "not above 0"),
        ("fps:inf", "not above 0"),
        ("energy:5", "has no unit"),
        ("power:5mW", "is no target"),
        ("accuracy:0", "not above 0"),
        ("accuracy:100", "between 0 and 100"),
        ("accuracy:75:time", "cannot be minimised"),
        ("auto:2,20", "leave out one or the other"),
        ("auto:2,auto:3", "once"),
        (",".join(f"fps:{number}" for number in range(1, 70)), "at most 64"),
    ],
)
def test_what_is_no_target_is_refused_with_the_value_and_the_next_action(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"targets .* cannot be used") as refused:
        TargetRequest.parse(text)
    assert words in str(refused.value)
    assert "give milliseconds" in str(refused.value)
    assert "\n" not in str(refused.value)


# -- learned ratios --------------------------------------------------------------------------------------------------


def test_the_ratio_of_cost_to_latency_is_learned_with_its_slope() -> None:
    rng = np.random.default_rng(1)
    latencies = np.geomspace(1.0, 30.0, 25)
    costs = 1.4 * latencies**0.8 * np.exp(rng.normal(0.0, 0.01, 25))
    ratio = CostRatio.learned(sorted(zip(latencies.tolist(), costs.tolist(), strict=True)))
    found = ratio.costs(np.array([2.0, 20.0]), 0.0)
    assert found == pytest.approx([1.4 * 2.0**0.8, 1.4 * 20.0**0.8], rel=0.03)
    assert ratio.latency_ms(float(found[0]), 0.0) == pytest.approx(2.0)
    assert ratio.latency_ms(float(found[0]), 1.0) < 2.0


def test_one_measurement_is_enough_for_a_first_ratio() -> None:
    ratio = CostRatio.learned([(10.0, 12.0)])
    assert ratio.costs(np.array([10.0]), 0.0) == pytest.approx([12.0])
    assert ratio.scatter > 0


# -- searching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_winners_keep_targets_of_every_kind_by_the_truth(seed: int) -> None:
    device = TailedDevice(seed, stalled=(0.02, 0.08)[seed % 2])
    tuner = make(",".join(targets_of_kinds(device)), budget=20, seed=seed)
    told = run(tuner, device.answer)
    assert [state.status for state in tuner.targets] == [TargetStatus.MET] * 6
    for state in tuner.targets:
        assert state.architecture is not None
        if state.target is not None and state.target.kind is TargetKind.ACCURACY:
            continue
        share = device.true_share(state.target, state.target_ms, state.architecture)
        assert 0.5 < share <= 1.01, state.label
    counted = [proposal for proposal, _ in told if proposal.purpose != "verification" and not proposal.has_target]
    assert len(counted) == tuner.measurements <= 20


def test_a_percentile_is_verified_over_its_own_number_of_runs() -> None:
    device = TailedDevice(0)
    tuner = make(targets_of_kinds(device)[1], budget=12)
    told = run(tuner, device.answer)
    verified = [outcome for proposal, outcome in told if proposal.purpose == "verification"]
    assert verified
    for outcome in verified:
        (found,) = [each for each in outcome.percentiles if each.percentile == 95.0]  # type: ignore[union-attr]
        assert found.runs >= runs_needed(95.0)
    (state,) = tuner.targets
    assert state.shown.high is not None
    assert state.target is not None
    assert state.shown.value is not None
    assert state.shown.value <= state.shown.high <= state.target.value


def test_the_subnet_that_keeps_an_accuracy_is_near_the_fastest_there_is() -> None:
    device = TailedDevice(3)
    tuner = make("accuracy:84", budget=20)
    run(tuner, device.answer)
    (state,) = tuner.targets
    assert state.status is TargetStatus.MET
    assert state.accuracy is not None
    assert state.accuracy >= 0.84
    sample = SPACE.sample(4000, np.random.default_rng(0))
    keeps = np.asarray(ACCURACY.predict(sample)) >= 0.84
    fastest = min(device.latency_ms(architecture) for architecture in SPACE.decode(sample[keeps][:400]))
    assert state.architecture is not None
    assert device.latency_ms(state.architecture) <= fastest


@pytest.mark.parametrize("minimise", ["energy", "parameters"])
def test_energy_or_parameters_may_be_minimised_instead(minimise: str) -> None:
    device = TailedDevice(2)
    tuner = make(f"accuracy:84:{minimise}", budget=16)
    run(tuner, device.answer)
    (state,) = tuner.targets
    assert state.status is TargetStatus.MET
    assert state.genome is not None
    sample = SPACE.sample(2000, np.random.default_rng(1))
    keeps = sample[np.asarray(ACCURACY.predict(sample)) >= 0.84][:300]
    if minimise == "parameters":
        assert float(SPACE.parameters(state.genome[None])[0]) <= float(SPACE.parameters(keeps).min())
    else:
        assert state.architecture is not None
        least = min(device.true_energy_mj(architecture) for architecture in SPACE.decode(keeps))
        assert device.true_energy_mj(state.architecture) <= least


def test_a_device_that_does_not_tell_misses_that_target_alone() -> None:
    device = TailedDevice(1, power_mw=None)
    tuner = make("5,energy:5mJ", budget=10)
    run(tuner, device.answer)
    latency, energy = tuner.targets
    assert latency.status is TargetStatus.MET
    assert energy.status is TargetStatus.MISSED
    assert "tells no energy" in energy.reason


def test_an_older_agent_serves_a_rate_and_is_told_about_percentiles() -> None:
    device = TailedDevice(1, reports=False)
    slowest_ms = device.latency_ms(SPACE.decode(SPACE.largest())[0])
    tuner = make(f"fps:{1000 / slowest_ms:.3g},p95:{slowest_ms:.3g}", budget=10)
    run(tuner, device.answer)
    percentile, rate = tuner.targets
    assert rate.status is TargetStatus.MET
    assert percentile.status is TargetStatus.MISSED
    assert "update fleetnas" in percentile.reason


def test_a_percentile_that_no_subnet_can_have_names_what_can_be_asked_for() -> None:
    device = TailedDevice(1)
    smallest_ms = device.latency_ms(SPACE.decode(SPACE.smallest())[0])
    tuner = make(f"p95:{0.5 * smallest_ms:.3g}", budget=12)
    run(tuner, device.answer)
    (state,) = tuner.targets
    assert state.status in (TargetStatus.MISSED, TargetStatus.INFEASIBLE)
    assert "ask for at least" in state.reason
    asked = float(state.reason.rpartition("at least ")[2].removesuffix(" ms"))
    assert smallest_ms < asked < 3 * smallest_ms


def test_a_resumed_search_ends_with_the_same_winners() -> None:
    device = TailedDevice(5)
    text = ",".join(targets_of_kinds(device))
    whole = make(text, budget=16, seed=2)
    told = run(whole, device.answer, at_once=1)
    again = make(text, budget=16, seed=2)
    for proposal, outcome in told:
        again.tell(proposal, outcome)
    again.ask(1)
    assert again.finished

    def ends(states: list[TargetState]) -> list[object]:
        return [(state.label, state.status, state.architecture, state.shown) for state in states]

    assert ends(again.targets) == ends(whole.targets)


# -- before any measuring --------------------------------------------------------------------------------------------


def info(**changes: object) -> AgentInfo:
    fields = {
        "agent": "pi4",
        "session": 1,
        "profile": DeviceProfile(model="simulated", machine="none", cores=1),
        "settings": (RuntimeSetting(),),
        "versions": {},
        "schema_minor": SCHEMA_MINOR,
        "tells_energy": True,
    }
    return AgentInfo.model_validate({**fields, **changes})


def test_a_device_is_told_which_targets_it_cannot_serve() -> None:
    request = TargetRequest.parse("20,energy:5mJ,p95:30,accuracy:75:energy")
    assert checked_on(request, info(), RuntimeSetting()) == {}
    without = checked_on(request, info(tells_energy=False), RuntimeSetting())
    assert set(without) == {"energy:5mJ", "accuracy:75:energy"}
    assert "pi4 tells no energy" in without["energy:5mJ"]
    older = checked_on(request, info(schema_minor=1, tells_energy=None), RuntimeSetting())
    assert set(older) == {"p95:30"}
    assert set(checked_on(request, info(), RuntimeSetting(runtime="adb"))) == {"p95:30"}
    with pytest.raises(UsageError, match=r"^5 mJ: pi4 tells no energy .*; least energy at 75 %: pi4 tells no energy"):
        checked_on(TargetRequest.parse("energy:5mJ,accuracy:75:energy"), info(tells_energy=False), RuntimeSetting())
    with pytest.raises(UsageError, match="no target is asked for"):
        checked_on(TargetRequest(), info(), RuntimeSetting())


def test_an_accuracy_beyond_every_subnet_names_the_highest_one() -> None:
    check_targets(SPACE, ACCURACY, CampaignPlan(targets="accuracy:90"))
    with pytest.raises(UsageError, match=r"reach an accuracy of 99 %: the highest found is (\d+\.\d+) %"):
        check_targets(SPACE, ACCURACY, CampaignPlan(targets="20,accuracy:99"))
    smallest = float(SPACE.parameters(SPACE.smallest())[0])
    of_device = DeviceTargets(
        device="pi4", targets=TargetRequest.parse("accuracy:92"), bounds=Bounds(parameters=1.3 * smallest)
    )
    with pytest.raises(UsageError, match=r"at most .* parameters"):
        check_targets(SPACE, ACCURACY, CampaignPlan(targets="20", device_targets=(of_device,)))


def test_devices_may_have_targets_and_bounds_of_their_own() -> None:
    entries = tuple(
        DeviceTargets(device=device, targets=TargetRequest.parse(targets), bounds=bounds)
        for device, targets, bounds in (
            ("pi*", "fps:30", Bounds(macs=2e6)),
            ("pi4", "20,p95:33", Bounds(parameters=9e5)),
        )
    )
    plan = CampaignPlan(targets="50", bounds=Bounds(macs=1e6), device_targets=entries)
    assert CampaignPlan.model_validate(plan.model_dump(mode="json")) == plan
    for name, targets, bounds in (
        ("pi4", "20,p95:33", Bounds(parameters=9e5, macs=1e6)),
        ("pi5", "fps:30", Bounds(macs=1e6)),
        ("phone", "50", Bounds(macs=1e6)),
    ):
        assert str(plan.request_for(name, info(agent=name))) == targets
        assert plan.bounds_for(name, info(agent=name)) == bounds
    assert plan.asked_of("pi4", info()) == 2


# -- a run, stored and shown -----------------------------------------------------------------------------------------


def simulation(device: TailedDevice, targets: str, **plan: object) -> Simulation:
    made = Simulation(CampaignPlan(targets=targets, budget=14, initial_design=8, **plan), search_rounds=3)
    agent = made.add("pi4")
    agent.devices = {RuntimeSetting(): device}  # type: ignore[dict-item]
    return made


def test_a_run_with_all_kinds_is_stored_and_written_as_it_was_decided(tmp_path: Path) -> None:
    device = TailedDevice(4)
    texts = targets_of_kinds(device)
    made = simulation(device, ",".join(texts))
    made.begin()
    made.run()
    made.campaign.finish()
    outcome = outcome_of(made.store, made.run_id)
    (found,) = outcome.devices
    assert [target.target for target in found.targets] == ["", *(Target.parse(text).text for text in texts[1:])]
    assert all(target.met for target in found.targets)
    assert found.targets_asked == 6
    shown = made.campaign.snapshot(made.clock.unix()).devices[0]
    assert [(each.target, each.met, each.value) for each in shown.targets] == [
        (each.target, each.met, each.value) for each in found.targets
    ]
    results = ArtifactFolder(tmp_path).write(outcome)
    kinds_written = [target.kind for target in results.fleet[0].targets]
    assert kinds_written == ["latency", "percentile", "percentile", "rate", "energy", "accuracy"]
    assert results.fleet[0].targets[1].label == Target.parse(texts[1]).label
    rate = results.fleet[0].targets[3]
    assert rate.value is not None
    assert rate.value >= Target.parse(texts[3]).value
    verified = {event.target for event in made.events if event.event == "winner_verified"}
    assert verified == {target.target for target in found.targets}


def test_a_killed_coordinator_goes_on_with_the_same_kinds() -> None:
    device = TailedDevice(6)
    made = simulation(device, "p95:4,fps:300")
    made.begin()
    made.run(until=lambda: any(task.purpose == "verification" for task in made.store.tasks(made.run_id)))
    made.vanish()
    made.begin(resume=True)
    made.run()
    made.campaign.finish()
    outcome = outcome_of(made.store, made.run_id)
    assert [target.target for target in outcome.devices[0].targets] == ["p95:4", "fps:300"]
    asked = [task for task in made.store.tasks(made.run_id) if task.asked_percentiles]
    assert len(asked) == len(made.store.tasks(made.run_id))


def test_a_measurement_of_an_older_agent_is_read_as_before() -> None:
    old = measurement(20.0)
    assert (old.mean_ms, old.percentiles) == (None, ())
