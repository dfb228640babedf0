"""Transfer: priors learned from devices already measured, and from hardware parameters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import MeasuredDevice, fit_devices
from fleetnas.coordinator.predictors.evaluation.dataset import LatencyData, operation_features, read_latency_data
from fleetnas.coordinator.predictors.evaluation.fine_tuned import FineTunedNetwork
from fleetnas.coordinator.predictors.evaluation.studies import leave_family_out, split, table_lines
from fleetnas.coordinator.predictors.hardware_transfer import HardwareTransfer, profile_parameters
from fleetnas.coordinator.predictors.learned_prior import learn_prior
from fleetnas.coordinator.predictors.metrics import spearman
from fleetnas.coordinator.predictors.prior import hierarchical_prior
from fleetnas.device_profiles.profile import CpuCluster, DeviceProfile, MicroBenchmarks
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.spaces.registry import make_space

RUNTIMES_AND_THREADS: tuple[tuple[str, Literal["onnxruntime", "litert"], int], ...] = (
    ("new", "onnxruntime", 1),
    ("onnxruntime_2", "onnxruntime", 2),
    ("litert_1", "litert", 1),
    ("litert_2", "litert", 2),
)


def fleet(rng: np.random.Generator, count: int = 6, subnets: int = 300) -> tuple[LatencyData, np.ndarray]:
    """Devices whose weights differ along one hidden parameter (returned), as compute- and memory-bound ones do."""
    features, groups = operation_features(rng.integers(0, 4, (subnets, 8)))
    compute, memory = rng.gamma(4.0, 1.0, (2, features.shape[1]))
    hidden = np.linspace(0.0, 1.0, count)
    latency = {
        f"device{i}": (2.0 + i) * (features @ ((1 - h) * compute + h * memory)) * rng.normal(1.0, 0.003, subnets)
        for i, h in enumerate(hidden)
    }
    return LatencyData(features, groups, latency, {name: name for name in latency}), hidden


def test_a_learned_prior_needs_fewer_measurements_than_none() -> None:
    data, _ = fleet(np.random.default_rng(0))
    rows = np.arange(200)
    learned = learn_prior(data.devices(rows, without="device2"), data.groups)
    ignorant = hierarchical_prior(data.features[rows], data.groups)
    errors = []
    for prior in (learned, ignorant):
        predictor = BayesianPredictor(prior)
        predictor.update(data.features[:6], data.latency_ms["device2"][:6])
        mean = predictor.predict(data.features[200:])[0]
        errors.append(np.mean(np.abs(mean / data.latency_ms["device2"][200:] - 1.0)))
    assert errors[0] < 0.5 * errors[1]


def test_a_learned_prior_does_not_depend_on_the_devices_speed() -> None:
    data, _ = fleet(np.random.default_rng(0))
    devices = data.devices(np.arange(200))
    faster = [replace(device, latency_ms=device.latency_ms / 100.0) for device in devices]
    one, other = learn_prior(devices, data.groups), learn_prior(faster, data.groups)
    for first, second in zip(one.hypotheses, other.hypotheses, strict=True):
        np.testing.assert_allclose(first.mean, second.mean, rtol=1e-6)
        np.testing.assert_allclose(first.covariance, second.covariance, atol=1e-9)
    assert one.scale_ms == pytest.approx(100.0 * other.scale_ms)


def test_a_prior_is_learned_from_one_device_and_not_from_none() -> None:
    data, _ = fleet(np.random.default_rng(0))
    device = data.devices(np.arange(40))[0]
    mean = data.features[200:] @ learn_prior([device], data.groups).hypotheses[0].mean
    rank = spearman(mean, data.latency_ms["device0"][200:])
    assert rank is not None
    assert rank > 0.9
    with pytest.raises(UsageError, match="at least one measured device"):
        learn_prior([], data.groups)


def test_hardware_parameters_foretell_before_the_first_measurement() -> None:
    data, hidden = fleet(np.random.default_rng(0))
    parameters = {name: {"ratio": float(h)} for name, h in zip(data.latency_ms, hidden, strict=True)}
    known = data.devices(np.arange(200), without="device0")
    truth = data.latency_ms["device0"][200:]
    average = spearman(data.features[200:] @ learn_prior(known, data.groups).hypotheses[0].mean, truth)
    informed = HardwareTransfer(fit_devices(known, data.groups), parameters).prior(parameters["device0"])
    found = spearman(data.features[200:] @ informed.hypotheses[0].mean, truth)
    assert average is not None
    assert found is not None
    assert found > average + 0.02


def test_a_setting_is_foretold_from_those_of_its_own_runtime() -> None:
    # Two runtimes with one and two threads; one device setting is known of the runtime of the one that is not.
    data, _ = fleet(np.random.default_rng(0), count=2)
    rng = np.random.default_rng(1)
    settings = {name: RuntimeSetting(runtime=r, threads=t) for name, r, t in RUNTIMES_AND_THREADS}
    latency = {
        name: data.latency_ms["device0" if setting.runtime == "litert" else "device1"] * rng.normal(1.0, 0.003, 300)
        for name, setting in settings.items()
    }
    board = DeviceProfile(model="board", machine="aarch64", cores=4)
    parameters = {name: profile_parameters(board, setting) for name, setting in settings.items()}
    rows = np.arange(200)
    known = [MeasuredDevice(name, name, data.features[rows], latency[name][rows]) for name in latency if name != "new"]
    informed = HardwareTransfer(fit_devices(known, data.groups), parameters).prior(parameters["new"])
    ranks = [
        spearman(data.features[200:] @ prior.hypotheses[0].mean, latency["new"][200:]) or 0.0
        for prior in (learn_prior(known, data.groups), informed)
    ]
    assert ranks[0] < 0.9
    assert ranks[1] > 0.97


def test_unknown_parameters_are_no_error_but_missing_devices_are() -> None:
    data, hidden = fleet(np.random.default_rng(0))
    known = data.devices(np.arange(200), without="device0")
    parameters = {name: {"ratio": float(h), "clock": None} for name, h in zip(data.latency_ms, hidden, strict=True)}
    prior = HardwareTransfer(fit_devices(known, data.groups), parameters).prior({"ratio": None})
    assert np.isfinite(prior.hypotheses[0].mean).all()
    del parameters["device3"]
    with pytest.raises(UsageError, match="device3"):
        HardwareTransfer(fit_devices(known, data.groups), parameters)


def test_profile_parameters_leave_unknown_facts_open() -> None:
    profile = DeviceProfile(
        model="board",
        machine="aarch64",
        cores=4,
        clusters=(CpuCluster(name="Cortex-A72", cores=4, max_clock_mhz=1500.0),),
        micro_benchmarks=MicroBenchmarks(gemm_gflops=np.e),
    )
    found = profile_parameters(profile, RuntimeSetting(threads=1))
    assert found["threads"] == 0.0
    assert found["gemm"] == pytest.approx(1.0)
    assert found["copy"] is None


def test_fine_tuning_moves_a_network_towards_the_new_device() -> None:
    data, _ = fleet(np.random.default_rng(0))
    rng = np.random.default_rng(0)
    network = FineTunedNetwork(data.features[:200], data.latency_ms["device1"][:200], rng)
    truth = data.latency_ms["device2"][200:]
    before = np.mean(np.abs(network.predict(data.features[200:]) / truth - 1.0))
    network.fine_tune(data.features[:20], data.latency_ms["device2"][:20], rng)
    assert np.mean(np.abs(network.predict(data.features[200:]) / truth - 1.0)) < 0.5 * before


@pytest.mark.parametrize(("file", "setting"), [("ofa_mbv3", "v100_64"), ("fbnet", "titanx_64")])
def test_on_real_devices_a_learned_prior_beats_none(public_data: Path, file: str, setting: str) -> None:
    data = read_latency_data(public_data / file / "measured_latency_ms.npz")
    parts = split(len(data.features), 1000, np.random.default_rng(0))
    pool = parts.pool[:800]
    latency = data.latency_ms[setting]
    learned = learn_prior(data.devices(pool, without=data.families[setting]), data.groups)
    errors: dict[str, list[float]] = {"learned": [], "none": []}
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows = rng.choice(pool, 10, replace=False)
        for name, prior in (("learned", learned), ("none", hierarchical_prior(data.features[pool], data.groups))):
            predictor = BayesianPredictor(prior)
            predictor.update(data.features[rows], latency[rows])
            mean = predictor.predict(data.features[parts.held_out])[0]
            errors[name].append(float(np.mean(np.abs(mean / latency[parts.held_out] - 1.0))))
    assert np.median(errors["learned"]) < 0.8 * np.median(errors["none"])


def test_evaluation_reports_every_setting_and_its_floor() -> None:
    data, _ = fleet(np.random.default_rng(0))
    rows = leave_family_out(data, samples=(5, 10), draws=3, held_out=100)
    assert len(rows) == 6 * 2 * 2
    assert all(row.floor.mape_percent < 1.0 for row in rows)
    assert np.mean([row.score.spearman for row in rows if row.samples == 10]) > 0.95
    assert len(table_lines(rows)) == len(rows) + 1


def test_evaluation_needs_two_families() -> None:
    data, _ = fleet(np.random.default_rng(0))
    with pytest.raises(UsageError, match="two devices"):
        leave_family_out(replace(data, families=dict.fromkeys(data.families, "one")))


def test_evaluation_data_as_json(tmp_path: Path) -> None:
    space = make_space("digits")
    architectures = space.decode(space.sample(4, np.random.default_rng(0)))
    content = {
        "space": "digits",
        "architectures": [a.model_dump(mode="json") for a in architectures],
        "latency_ms": {"pi_1": [1.0, 2.0, 3.0, 4.0], "pi_32": [1.0, 2.0, 3.0, 4.0]},
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content))
    data = read_latency_data(path)
    assert data.families == {"pi_1": "pi", "pi_32": "pi"}
    assert len(data.features) == 4
    content["latency_ms"] = {"pi_1": [1.0]}
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="4 architectures"):
        read_latency_data(path)


@pytest.mark.parametrize("name", ["absent.npz", "text.npz", "text.json", "other.npz"])
def test_files_that_are_no_data_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("no data")
    elif name.startswith("other"):
        np.savez(path, values=np.ones(3))
    with pytest.raises(UsageError, match=name):
        read_latency_data(path)


def test_devices_leave_a_family_out_with_all_its_settings() -> None:
    data, _ = fleet(np.random.default_rng(0), count=3)
    grouped = replace(data, families={"device0": "a", "device1": "a", "device2": "b"})
    assert [device.name for device in grouped.devices(np.arange(5), without="a")] == ["device2"]
    assert isinstance(grouped.devices(np.arange(5))[0], MeasuredDevice)


def test_parameters_that_tell_devices_apart_nowhere_change_nothing() -> None:
    data, _ = fleet(np.random.default_rng(0))
    known = data.devices(np.arange(60))
    equal: dict[str, dict[str, float | None]] = {name: {"threads": 0.0, "gemm": None} for name in data.latency_ms}
    learned = learn_prior(known, data.groups)
    prior = HardwareTransfer(fit_devices(known, data.groups), equal).prior({"threads": 0.0, "gemm": None})
    for found, expected in zip(prior.hypotheses, learned.hypotheses, strict=True):
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9)
        np.testing.assert_allclose(found.covariance, expected.covariance)
