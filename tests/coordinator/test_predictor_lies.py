"""Devices that measured what is not so: what they said earlier spoils no other device's search."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from rigs.simulated_fleet import SPACE, HiddenDevice, SimulatedAgent, Simulation, measurement

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import MeasuredDevice, fit_devices
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.posterior import Posterior
from fleetnas.coordinator.predictors.prior import Hypothesis, Prior, hierarchical_prior
from fleetnas.coordinator.predictors.similarity import MAX_DISTANCE, distances
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, RunRecord, TaskRecord
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.store import stored_devices
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.store.stored_devices import StoredPriors
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import AgentInfo, Measurement, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask

PROFILE = DeviceProfile(model="board", machine="none", cores=1)
FEATURES = FeatureMap(SPACE)
#: Who measured, the agent and its threads, and the latency in ms that it says a subnet has.
Measured = Mapping[tuple[str, int], Callable[[Architecture], float]]
LATER_S = 10.0


def size(architecture: Architecture) -> float:
    return float(SPACE.macs(SPACE.encode([architecture]))[0])


def drawn(architecture: Architecture) -> np.random.Generator:
    return np.random.default_rng(int(architecture.fingerprint, 16))


LIES: dict[str, Callable[[Architecture], float]] = {
    "random": lambda subnet: float(np.exp(drawn(subnet).normal(0, 1.5))),
    "inverted": lambda subnet: 1e6 / size(subnet),
    "next to nothing or an age": lambda subnet: float(drawn(subnet).choice([1e-3, 1e4])),
    "far too steep": lambda subnet: 1e-21 * size(subnet) ** 4,
    "always the same": lambda _: 3.0,
}


LIARS: Measured = {(f"liar{number}", 1): lie for number, lie in enumerate(LIES.values())}


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    with single_threaded_blas():
        yield


def relatives(count: int, like: int = 100) -> Measured:
    """Honest devices of one kind."""
    return {(f"pi{seed}", 1): HiddenDevice(like + seed, like=like).latency_ms for seed in range(count)}


def stored(devices: Measured) -> MeasurementStore:
    """A store of one earlier run: 16 subnets on each setting."""
    store = MeasurementStore.open("sqlite://")
    settings = {"design_space": SPACE.name, "space_options": dict(SPACE.options)}
    store.create_run(RunRecord("run-1", "test", "digits.supernet", "b" * 64, settings, 1.0))
    for number, ((agent, threads), latency_ms) in enumerate(devices.items()):
        setting = RuntimeSetting(threads=threads)
        info = AgentInfo(agent=agent, session=1, profile=PROFILE, settings=(setting,), versions={})
        store.put_devices([DeviceRecord("run-1", agent, setting, info)])
        subnets = SPACE.decode(SPACE.sample(16, np.random.default_rng(number)))
        tasks = [
            TaskRecord(f"run-1.{100 * number + i}", "run-1", agent, setting.label, "initial-design", subnet, attempt=1)
            for i, subnet in enumerate(subnets)
        ]
        store.put_tasks(tasks)
        keys = [TaskKey(task_id=task.task_id, attempt=1) for task in tasks]
        store.add_outcomes([Arrival(k, measurement(latency_ms(s)), 2.0) for k, s in zip(keys, subnets, strict=True)])
    return store


def priors(devices: Measured, *without: str) -> tuple[StoredPriors, list[str]]:
    """What a later run learns from, and what is said of that."""
    lines: list[str] = []
    return StoredPriors(stored(devices), SPACE, LATER_S, without=without, note=lines.append), lines


def error(found: StoredPriors, agent: str = "new") -> float:
    """Median error on relatives of the honest devices after five measurements each."""
    prior = found.prior(PROFILE, RuntimeSetting(), agent)
    x = FEATURES.features(SPACE.sample(200, np.random.default_rng(11)))
    prior = prior or hierarchical_prior(x, FEATURES.groups)
    errors = []
    for seed in range(40, 46):
        hidden = HiddenDevice(seed, like=100)
        truth = np.array([hidden.latency_ms(subnet) for subnet in SUBNETS])
        predictor = BayesianPredictor(prior)
        predictor.update(x[:5], truth[:5], 0.01 * truth[:5])
        errors.append(float(np.mean(np.abs(predictor.predict(x[5:])[0] / truth[5:] - 1.0))))
    return float(np.median(errors))


SUBNETS = SPACE.decode(SPACE.sample(200, np.random.default_rng(11)))


@pytest.fixture(scope="module")
def truthful() -> float:
    return error(priors(relatives(3))[0])


@pytest.mark.parametrize("lie", LIES)
def test_one_that_lies_spoils_no_honest_one(lie: str, truthful: float) -> None:
    found, lines = priors({**relatives(3), ("liar", 1): LIES[lie]})
    assert error(found) < 1.1 * truthful
    assert len(lines) == 1
    assert lines[0].startswith("liar/")


def test_several_that_lie_each_in_its_own_way_spoil_none_either(truthful: float) -> None:
    found, lines = priors({**relatives(3), **LIARS})
    assert error(found) == truthful
    assert all(f"liar{number}/" in lines[0] for number in range(len(LIES)))
    assert "pi" not in lines[0].split(":")[0].replace("_cpu", "")


def test_believed_they_would(monkeypatch: pytest.MonkeyPatch, truthful: float) -> None:
    monkeypatch.setattr(stored_devices, "MAX_DISTANCE", float("inf"))
    # The measurements of the new device show that it is unlike the liars, so these harm less than they might.
    assert error(priors({**relatives(3), **LIARS})[0]) > 1.2 * truthful


@pytest.mark.parametrize("like", range(100, 800, 100))
def test_honest_devices_are_all_learned_from(like: int) -> None:
    assert priors(relatives(3, like))[1] == []


def test_honest_devices_that_are_no_relatives_are_all_learned_from() -> None:
    assert priors({(f"pi{seed}", 1): HiddenDevice(500 + seed).latency_ms for seed in range(6)})[1] == []


def test_of_two_that_contradict_each_other_neither_teaches_a_third() -> None:
    found, lines = priors({**relatives(1), ("liar", 1): LIES["random"]})
    assert found.prior(PROFILE, RuntimeSetting(), "new") is None
    assert "liar/" in lines[0]
    assert "pi0/" in lines[0]


def test_one_agent_alone_is_learned_from() -> None:
    found, lines = priors({("pi0", threads): LIES["inverted"] for threads in (1, 2)})
    assert found.prior(PROFILE, RuntimeSetting(), "new") is not None
    assert lines == []


def test_two_settings_of_one_liar_do_not_vouch_for_each_other() -> None:
    _, lines = priors({**relatives(3), ("liar", 1): LIES["inverted"], ("liar", 2): LIES["inverted"]})
    assert lines[0].count("liar/") == 2


def test_one_of_a_kind_still_learns_from_itself() -> None:
    odd: Measured = {("odd", threads): LIES["inverted"] for threads in (1, 2)}
    found, _ = priors({**relatives(3), **odd})
    own = found.prior(PROFILE, RuntimeSetting(), "odd")
    others = found.prior(PROFILE, RuntimeSetting(), "new")
    assert own is not None
    assert others is not None
    assert not np.array_equal(own.hypotheses[0].mean, others.hypotheses[0].mean)


def test_who_is_left_out_by_name_teaches_nobody(truthful: float) -> None:
    devices: Measured = {**relatives(3), ("liar", 1): LIES["random"]}
    found, lines = priors(devices, "liar")
    assert lines == []
    assert error(found, "liar") == error(found) < 1.1 * truthful
    assert priors(devices, "pi0", "pi1", "liar")[0].prior(PROFILE, RuntimeSetting()) is None


def test_a_prior_that_cannot_be_computed_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> np.ndarray:
        raise np.linalg.LinAlgError("Matrix is not positive definite")

    monkeypatch.setattr(np.linalg, "solve", breaks)
    found, lines = priors({("pi0", threads): LIES["inverted"] for threads in (1, 2)})
    assert found.prior(PROFILE, RuntimeSetting()) is None
    assert any("cannot be computed" in line and "default" in line for line in lines)


def test_a_far_fetched_prior_is_learned_under_without_an_error() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(len(FEATURES), 3)) * 1e8
    prior = Prior((Hypothesis(np.full(len(FEATURES), 1e-9), root @ root.T, 0.005),))
    x = FEATURES.features(SPACE.sample(60, rng))
    beliefs = Posterior(prior)
    beliefs.learn(x, np.ones(60), beliefs.noise(x, np.full(60, 0.01)))
    assert np.isfinite(beliefs.speeds()).all()


def test_distance_is_of_shape_not_of_speed() -> None:
    x = FEATURES.features(SPACE.encode(SUBNETS[:40]))

    def device(name: str, factor: float, seed: int) -> MeasuredDevice:
        hidden = HiddenDevice(seed, like=100)
        return MeasuredDevice(name, name, x, factor * np.array([hidden.latency_ms(a) for a in SUBNETS[:40]]))

    assert (
        max(distances(fit_devices([device("slow", 1e4, 101), device("fast", 1e-4, 102)], FEATURES.groups)))
        < MAX_DISTANCE / 2
    )
    assert distances(fit_devices([device("alone", 1.0, 101)], FEATURES.groups)) == [float("inf")]


class Liar(SimulatedAgent):
    def _measure(self, task: MeasureTask) -> Measurement:
        return measurement(LIES["random"](task.architecture), super()._measure(task).model_sha256)


def test_a_campaign_after_one_with_a_liar_searches_as_after_one_without() -> None:
    plan = CampaignPlan(targets="2", budget=10, initial_design=10, wait_for=3, deadline_s=60)
    errors = []
    for lies in (False, True):
        before = Simulation(plan.model_copy(update={"wait_for": 3 + lies}))
        for seed in range(3):
            before.add(f"pi{seed}", seed=100 + seed, like=100)
        if lies:
            before.take_in(Liar(before.broker, "liar", before.clock))
        before.begin()
        before.run()
        prior = StoredPriors(before.store, SPACE, before.clock.unix()).prior(PROFILE, RuntimeSetting(), "new")
        after = Simulation(
            plan.model_copy(update={"wait_for": 1, "budget": 5, "initial_design": 5}),
            design=InitialDesign(SPACE, count=5, seed=0, prior=prior),
        )
        agent = after.add("new", seed=44, like=100)
        after.begin()
        after.run()
        assert after.campaign.finish() == "complete"
        (setting_run,) = after.campaign.setting_runs.values()
        hidden = agent.devices[RuntimeSetting()]
        truth = np.array([hidden.latency_ms(subnet) for subnet in SUBNETS])
        errors.append(float(np.mean(np.abs(setting_run.search.predict(SPACE.encode(SUBNETS))[0] / truth - 1.0))))
    assert errors[1] < 1.1 * errors[0]
