"""Devices that measured what is not so: what they said earlier spoils no other device's search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from simulated_fleet import SPACE, HiddenDevice, SimulatedAgent, Simulation, measurement
from test_predictor_stored_devices import PLAN, error_after

from coordinator.predictors.belief import Beliefs
from coordinator.predictors.features import FeatureMap
from coordinator.predictors.learned_prior import MeasuredDevice
from coordinator.predictors.likeness import UNLIKE, distances
from coordinator.predictors.prior import Hypothesis, Prior
from coordinator.predictors.stored_devices import StoredPriors
from device_profiles.profile import DeviceProfile
from fleet_protocol.architecture import Architecture
from fleet_protocol.messages import Measurement, MeasureTask, RuntimeSetting
from fleet_protocol.transport import Received

SETTING = RuntimeSetting()
PROFILE = DeviceProfile(model="new", machine="none", cores=1)
FEATURES = FeatureMap(SPACE)


def size(architecture: Architecture) -> float:
    return float(SPACE.macs(SPACE.encode([architecture]))[0])


#: Latency in ms of a subnet, as a liar tells it.
LIES: dict[str, Callable[[Architecture], float]] = {
    "random": lambda subnet: float(np.exp(np.random.default_rng(int(subnet.fingerprint, 16) % 2**32).normal(0, 1.5))),
    "inverted": lambda subnet: 1e6 / size(subnet),
    "nothing and everything": lambda subnet: 1e-3 if int(subnet.fingerprint, 16) % 2 else 1e4,
    "far too steep": lambda subnet: 1e-12 * size(subnet) ** 4,
}


class Liar(SimulatedAgent):
    """Measures nothing, and says what its lie says."""

    lie: Callable[[Architecture], float]

    def _measure(self, task: MeasureTask) -> Measurement:
        honest = super()._measure(task)
        return measurement(self.lie(task.architecture), honest.model_sha256)

    def _hear(self, message: Received) -> None:
        super()._hear(message)


def earlier_run(honest: int, *lies: str, like: int = 100) -> Simulation:
    fleet = Simulation(PLAN.model_copy(update={"wait_for": honest + len(lies), "targets": "1,2,3"}))
    for seed in range(honest):
        fleet.add(f"pi{seed}", seed=like + seed, like=like)
    for number, lie in enumerate(lies):
        liar = Liar(fleet.broker, f"liar{number}", fleet.clock, seed=900 + number)
        liar.lie = LIES[lie]
        fleet.take_in(liar)
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    return fleet


def priors(fleet: Simulation, *without: str) -> tuple[StoredPriors, list[str]]:
    lines: list[str] = []
    return StoredPriors(fleet.store, SPACE, fleet.clock.unix(), without=without, note=lines.append), lines


def errors(found: StoredPriors, agent: str = "new", like: int = 100) -> float:
    """Median error on relatives of the honest devices after five measurements each."""
    prior = found.prior(PROFILE, SETTING, agent)
    return float(np.median([error_after(5, HiddenDevice(seed, like=like), prior) for seed in range(40, 44)]))


@pytest.fixture(scope="module")
def truthful() -> float:
    return errors(priors(earlier_run(3))[0])


@pytest.mark.parametrize("lie", LIES)
def test_one_that_lies_spoils_no_honest_one(lie: str, truthful: float) -> None:
    found, lines = priors(earlier_run(3, lie))
    assert errors(found) < 1.1 * truthful
    assert len(lines) == 1
    assert "liar0/" in lines[0]
    assert "pi" not in lines[0].split(":")[0]


def test_several_that_lie_each_in_its_own_way_spoil_none_either(truthful: float) -> None:
    found, lines = priors(earlier_run(3, *LIES))
    assert errors(found) < 1.1 * truthful
    assert len(lines) == 1


def test_honest_devices_are_all_learned_from() -> None:
    for like in (100, 200, 300):
        assert priors(earlier_run(3, like=like))[1] == []


def test_devices_that_were_never_alike_are_all_learned_from() -> None:
    fleet = Simulation(PLAN)
    for seed in range(3):
        fleet.add(f"pi{seed}", seed=500 + seed)
    fleet.begin()
    fleet.run()
    assert priors(fleet)[1] == []


def test_of_two_that_contradict_each_other_neither_teaches_a_third() -> None:
    found, lines = priors(earlier_run(1, "random"))
    assert found.prior(PROFILE, SETTING, "new") is None
    assert "liar0/" in lines[0]
    assert "pi0/" in lines[0]


def test_one_of_a_kind_still_learns_from_itself() -> None:
    fleet = Simulation(PLAN.model_copy(update={"targets": "1,2,3"}))
    for seed in range(2):
        fleet.add(f"pi{seed}", seed=100 + seed, like=100)
    odd = Liar(fleet.broker, "odd", fleet.clock, settings=(SETTING, RuntimeSetting(threads=2)))
    odd.lie = LIES["inverted"]
    fleet.take_in(odd)
    fleet.begin()
    fleet.run()
    found, _ = priors(fleet)
    own, others = found.prior(PROFILE, SETTING, "odd"), found.prior(PROFILE, SETTING, "new")
    assert own is not None
    assert others is not None
    assert not np.array_equal(own.hypotheses[0].mean, others.hypotheses[0].mean)


def test_who_is_left_out_by_name_teaches_nobody(truthful: float) -> None:
    fleet = earlier_run(3, "random")
    found, lines = priors(fleet, "liar0")
    assert lines == []
    assert errors(found, "liar0") == errors(found) < 1.1 * truthful
    assert priors(fleet, "pi0", "pi1", "liar0")[0].prior(PROFILE, SETTING) is None


def test_a_prior_that_cannot_be_computed_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = earlier_run(3)

    def breaks(*_: object) -> np.ndarray:
        raise np.linalg.LinAlgError("Matrix is not positive definite")

    monkeypatch.setattr(np.linalg, "eigh", breaks)
    found, lines = priors(fleet)
    assert found.prior(PROFILE, SETTING) is None
    assert any("default" in line or "like no other" in line for line in lines)


def test_a_far_fetched_prior_is_learned_under_without_an_error() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(len(FEATURES), 3)) * 1e8
    prior = Prior((Hypothesis(np.full(len(FEATURES), 1e-9), root @ root.T, 0.005),))
    x = FEATURES.features(SPACE.sample(60, rng))
    beliefs = Beliefs(prior)
    beliefs.learn(x[:0], x, np.ones(60), beliefs.noise(x, np.full(60, 0.01)))
    assert np.isfinite(beliefs.speeds()).all()


def test_distance_is_of_shape_not_of_speed() -> None:
    rng = np.random.default_rng(1)
    x = FEATURES.features(SPACE.sample(40, rng))
    architectures = SPACE.decode(SPACE.sample(40, np.random.default_rng(1)))

    def device(name: str, factor: float, like: int) -> MeasuredDevice:
        hidden = HiddenDevice(like, like=100)
        return MeasuredDevice(name, name, x, factor * np.array([hidden.latency_ms(a) for a in architectures]))

    found = distances([device("slow", 1e4, 101), device("fast", 1e-4, 102)], FEATURES.groups)
    assert max(found) < UNLIKE / 2
    assert distances([device("alone", 1.0, 101)], FEATURES.groups) == [float("inf")]
