"""How long learning a prior takes, and how much memory: from public measurements, and from a store of many devices.

The public part learns from the 13 FBNet settings under `FLEETNAS_DATA`, 4,000 samples of 199 features each. The store
holds `--devices` invented devices of 20 kinds, each with 50 measured `ofa-mbv3` subnets: its kind's initial design, and
subnets of its own or, with `--sets`, of one of that many sets. Timed is everything between opening the store and the
first device's prior: reading, fitting, the check of similarity, learning, hardware. The exit status is 1 if a bar is
missed.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from figures import Figures, parser

from fleetnas.coordinator.predictors.evaluation.dataset import read_latency_data
from fleetnas.coordinator.predictors.evaluation.studies import split
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.learned_prior import learn_prior
from fleetnas.coordinator.predictors.prior import hierarchical_prior
from fleetnas.coordinator.records.stored import Arrival, DeviceRecord, RunRecord, TaskRecord
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.store.stored_devices import StoredPriors
from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.fleet_protocol.messages import AgentInfo, Measurement, RuntimeSetting, TaskKey
from fleetnas.supernet_export.spaces.registry import make_space

DATA = Path(os.environ.get("FLEETNAS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
SPACE = make_space("ofa-mbv3", {"resolutions": [160, 176, 192, 208, 224]})
SETTING = RuntimeSetting()
KINDS, SUBNETS = 20, 50
LATER_S = 10.0

Made = TypeVar("Made")


def timed(make: Callable[[], Made]) -> tuple[Made, float, float]:
    """The result, and the wall and the processor time it took, in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    found = make()
    return found, time.perf_counter() - wall, time.process_time() - processor


def profile(kind: int, rng: np.random.Generator) -> DeviceProfile:
    """A board of one kind; its micro-benchmarks scatter."""
    speed = float(1.2**kind * np.exp(rng.normal(0, 0.05)))
    benches = MicroBenchmarks(gemm_gflops=10 * speed, depthwise_gflops=2 * speed, copy_gb_per_s=4 * speed**0.5)
    return DeviceProfile(model=f"kind{kind}", machine="aarch64", cores=4, micro_benchmarks=benches)


def fill_store(url: str, devices: int, sets: int) -> None:
    """Store one run of invented devices."""
    store, features = MeasurementStore.open(url), FeatureMap(SPACE)
    settings = {"design_space": SPACE.name, "space_options": dict(SPACE.options)}
    store.create_run(RunRecord("run-1", "test", "ofa.supernet", "b" * 64, settings, 1.0))
    rng = np.random.default_rng(0)
    typical = features.features(SPACE.sample(300, rng))
    mean = hierarchical_prior(typical, features.groups).hypotheses[0].mean
    kinds = [mean * rng.uniform(0.5, 2.0, len(mean)) for _ in range(KINDS)]
    genomes = [SPACE.sample(SUBNETS, rng) for _ in range(sets or devices)]
    info = {"versions": {}, "settings": (SETTING,), "session": 1}
    for number in range(devices):
        name, kind = f"device{number:05d}", number % KINDS
        agent = AgentInfo(agent=name, profile=profile(kind, rng), **info)
        store.put_devices([DeviceRecord("run-1", name, SETTING, agent)])
        chosen = genomes[number % len(genomes)]
        own = kinds[kind] * rng.uniform(0.9, 1.1, len(mean))
        latency = 20.0 * (features.features(chosen) @ own) * rng.normal(1.0, 0.01, SUBNETS)
        tasks = [
            TaskRecord(f"{name}.{i}", "run-1", name, SETTING.label, "initial-design", subnet, attempt=1)
            for i, subnet in enumerate(SPACE.decode(chosen))
        ]
        store.put_tasks(tasks)
        store.add_outcomes(
            [
                Arrival(TaskKey(task_id=task.task_id, attempt=1), measurement(ms), 2.0)
                for task, ms in zip(tasks, latency.tolist(), strict=True)
            ]
        )


def measurement(median_ms: float) -> Measurement:
    """A measurement without disturbance."""
    return Measurement(
        model_sha256="c" * 64,
        model_bytes=1000,
        median_ms=median_ms,
        mad_ms=0.01 * median_ms,
        p90_ms=1.02 * median_ms,
        min_ms=0.98 * median_ms,
        runs=50,
        half_width_percent=0.8,
        quality="ok",
        undisturbed_ms=median_ms,
        undisturbed_half_width_percent=0.8,
        times_us=(1000.0 * median_ms,) * 3,
        provider="CPUExecutionProvider",
        build_ms=5.0,
        load_ms=5.0,
        finished_unix_s=1.0,
    )


def peak_mb() -> float:
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def add_store(figures: Figures, devices: int, sets: int) -> None:
    """A store of many devices."""
    with tempfile.TemporaryDirectory() as temporary:
        url = f"sqlite:///{Path(temporary) / 'runs.sqlite'}"
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            other.submit(fill_store, url, devices, sets).result()
        before_mb, lines = peak_mb(), []
        store = MeasurementStore.open(url)
        priors, wall_s, processor_s = timed(lambda: StoredPriors(store, SPACE, LATER_S, note=lines.append))
        board = profile(3, np.random.default_rng(1))
        found, first_s, first_processor_s = timed(lambda: priors.prior(board, SETTING, "new"))
        _, next_s, _ = timed(lambda: priors.prior(profile(7, np.random.default_rng(1)), SETTING, "other"))
        assert found is not None
        assert not lines, lines
        figures.add("devices", devices)
        figures.add(f"learn_{devices}_devices_s", wall_s + first_s, "<= 60" if devices <= 1000 else "")
        figures.add(f"learn_{devices}_devices_processor_s", processor_s + first_processor_s)
        figures.add(f"read_fit_compare_{devices}_devices_s", wall_s)
        figures.add("next_device_of_other_hardware_s", next_s)
        figures.add(f"learn_{devices}_devices_more_memory_mb", peak_mb() - before_mb, "<= 1000")


def add_public(figures: Figures) -> None:
    """The 13 FBNet settings."""
    data = read_latency_data(DATA / "fbnet" / "measured_latency_ms.npz")
    parts = split(len(data.features), 1000, np.random.default_rng(0))
    known = data.devices(parts.pool)
    _, wall_s, processor_s = timed(lambda: learn_prior(known, data.groups))
    figures.add(f"learn_{len(known)}_settings_s", wall_s, "<= 10")
    figures.add(f"learn_{len(known)}_settings_processor_s", processor_s)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--devices", type=int, default=1000)
    arguments.add_argument("--sets", type=int, default=20, help="distinct sets of subnets; 0: every device has its own")
    options = arguments.parse_args()
    figures = Figures()
    with single_threaded_blas():
        add_store(figures, options.devices, options.sets)
        add_public(figures)
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
