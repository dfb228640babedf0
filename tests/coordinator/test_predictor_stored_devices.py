"""Priors from the store: what earlier runs measured makes the next device cheaper, and resumes unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, Simulation, measurement

from fleetnas.coordinator.predictors.prior import Prior
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.store.stored_devices import LEAST_SUBNETS, StoredPriors, stored_devices
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.fleet_protocol.messages import RuntimeSetting, TaskKey
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace

PLAN = CampaignPlan(targets="auto:3", budget=16, initial_design=10, wait_for=3, grace_s=30, join_s=60, deadline_s=60)


def three_alike(like: int) -> Simulation:
    """A run that has ended, of three devices that are relatives of the same."""
    simulation = Simulation(PLAN)
    for seed in range(3):
        simulation.add(f"pi{seed}", seed=like + seed, like=like)
    simulation.begin()
    simulation.run()
    simulation.campaign.finish()
    return simulation


@pytest.fixture(scope="module")
def fleet() -> Simulation:
    return three_alike(100)


def prior_of(store: MeasurementStore, space: DesignSpace, before_unix_s: float, **benches: float) -> Prior | None:
    """The prior of a board of which only these micro-benchmarks are known."""
    profile = DeviceProfile(model="new", machine="none", cores=1, micro_benchmarks=MicroBenchmarks(**benches))
    return StoredPriors(store, space, before_unix_s).prior(profile, RuntimeSetting(runtime="onnxruntime"))


def search(prior: Prior | None) -> DeviceTuner:
    design = InitialDesign(SPACE, count=10, seed=0, prior=prior)
    return DeviceTuner(
        design, ACCURACY, TargetRequest.parse("auto:3"), BundleTargetSolver(SPACE, ACCURACY, Strategy.BOTTOM_UP)
    )


def error_after(count: int, device: HiddenDevice, prior: Prior | None) -> float:
    """Mean absolute percentage error on subnets that were not measured; each search measures its own choice."""
    asking = search(prior)
    for proposal in asking.ask(count):
        asking.tell(proposal, measurement(device.latency_ms(proposal.architecture)))
    genomes = SPACE.sample(300, np.random.default_rng(11))
    truth = np.array([device.latency_ms(architecture) for architecture in SPACE.decode(genomes)])
    return float(np.mean(np.abs(asking.predict(genomes)[0] / truth - 1.0)))


def test_five_measurements_tell_more_with_what_similar_devices_measured() -> None:
    gains = []
    for like in (100, 200, 300, 400):
        fleet = three_alike(like)
        learned = prior_of(fleet.store, SPACE, fleet.clock.unix())
        assert learned is not None
        for seed in range(40, 44):
            device = HiddenDevice(seed, like=like)
            gains.append(error_after(5, device, learned) / error_after(5, device, None))
    assert float(np.median(gains)) < 0.9
    assert float(np.mean(np.array(gains) < 1.0)) > 0.7


def test_a_device_unlike_all_before_is_learned_all_the_same(fleet: Simulation) -> None:
    learned = prior_of(fleet.store, SPACE, fleet.clock.unix())
    ratios = [
        error_after(10, HiddenDevice(seed), learned) / error_after(10, HiddenDevice(seed), None)
        for seed in range(50, 56)
    ]
    assert float(np.median(ratios)) < 1.5


def test_what_is_stored_later_does_not_change_the_prior_of_a_resumed_run(fleet: Simulation) -> None:
    created = fleet.clock.unix()
    first = prior_of(fleet.store, SPACE, created)
    task = fleet.store.tasks("run-1")[0]
    fleet.store.add_outcome(TaskKey(task_id=task.task_id, attempt=99), measurement(1e3), created + 1)
    second = prior_of(fleet.store, SPACE, created)
    assert first is not None
    assert second is not None
    for before, after in zip(first.hypotheses, second.hypotheses, strict=True):
        assert np.array_equal(before.mean, after.mean)
        assert np.array_equal(before.covariance, after.covariance)
    later = prior_of(fleet.store, SPACE, created + 2)
    assert later is not None
    assert not np.array_equal(first.hypotheses[0].mean, later.hypotheses[0].mean)


def test_devices_are_read_as_they_were_measured(fleet: Simulation) -> None:
    known = stored_devices(fleet.store, SPACE, fleet.clock.unix())
    assert [device.measured.family for device in known] == ["pi0", "pi1", "pi2"]
    for seed, device in enumerate(found.measured for found in known):
        hidden = HiddenDevice(100 + seed, like=100)
        subnets = {
            found.task.architecture: hidden.latency_ms(found.task.architecture)
            for found in fleet.store.outcomes("run-1")
            if found.task.device == device.family
        }
        assert len(device.latency_ms) == len(subnets) >= LEAST_SUBNETS
        assert np.sort(device.latency_ms) == pytest.approx(np.sort(list(subnets.values())), rel=0.06)


def test_too_few_devices_and_other_spaces_teach_nothing(fleet: Simulation) -> None:
    assert prior_of(fleet.store, SPACE, 0.0) is None
    lonely = Simulation(PLAN.model_copy(update={"wait_for": 1}))
    lonely.add("pi0", like=100)
    lonely.begin()
    lonely.run()
    assert len(stored_devices(lonely.store, SPACE, lonely.clock.unix())) == 1
    assert prior_of(lonely.store, SPACE, lonely.clock.unix()) is None

    class OtherWidth(DigitsSpace):
        @property
        def options(self) -> dict[str, object]:
            return {**super().options, "width": 1.5}

    assert stored_devices(fleet.store, OtherWidth(), fleet.clock.unix()) == []


def test_boards_of_nearly_equal_hardware_share_a_prior(fleet: Simulation) -> None:
    priors = StoredPriors(fleet.store, SPACE, fleet.clock.unix())
    setting = RuntimeSetting(runtime="onnxruntime")

    def board(gemm_gflops: float) -> DeviceProfile:
        benches = MicroBenchmarks(gemm_gflops=gemm_gflops)
        return DeviceProfile(model="new", machine="none", cores=1, micro_benchmarks=benches)

    assert priors.prior(board(10.0), setting) is priors.prior(board(10.1), setting)
    assert priors.prior(board(10.0), setting) is not priors.prior(board(20.0), setting)
