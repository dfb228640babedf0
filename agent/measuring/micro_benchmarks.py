"""Run small measurements that characterise a device before its first subnet; they take about a second in all."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fleetnas.agent.runtimes.base import LoadedModel, Runtime, random_tensors
from fleetnas.agent.runtimes.settings import IN_PROCESS
from fleetnas.device_profiles.profile import MicroBenchmarks
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.graph import INPUT, OUTPUT, Conv, GlobalAveragePool, Graph, Layer, Linear
from fleetnas.supernet_export.model_file import emit
from fleetnas.supernet_export.quantisation import nominal_ranges

_PROTOCOL = MeasurementProtocol(warmup_runs=2, warmup_s=0.03, min_runs=5, min_s=0.12, max_s=2.0, blocks=3)
#: 14 x 14 pixels and 128 channels are in the middle of a mobile network; with 8 layers the session's own cost is small.
_PIXELS, _CHANNELS, _LAYERS, _KERNEL = 14, 128, 8, 5
_COPY_BYTES = 16 * 1024 * 1024


def run_micro_benchmarks(
    runtime: Runtime, setting: RuntimeSetting, *, full: bool = True
) -> tuple[MicroBenchmarks, str]:
    """Return the results of `setting` on one thread, and the active provider.

    Without `full` only the session's own cost is measured. Raises the errors of `Runtime.load`.
    """
    single = setting.model_copy(update={"threads": 1})

    provider = ""

    def seconds(graph: Graph) -> float:
        nonlocal provider
        loaded = runtime.load(emit(graph, setting.runtime), single)
        provider = loaded.provider
        try:
            return loaded.time(_PROTOCOL).median_ms / 1000
        finally:
            loaded.close()

    overhead_s = seconds(_graph(layers=0, depthwise=False))
    if not full:
        return of_readings(MicroBenchmarks, session_overhead_us=1e6 * overhead_s), provider
    gemm_flops = 2 * _LAYERS * _PIXELS**2 * _CHANNELS**2
    depthwise_flops = 2 * _LAYERS * _PIXELS**2 * _CHANNELS * _KERNEL**2
    return (
        of_readings(
            MicroBenchmarks,
            gemm_gflops=gemm_flops / seconds(_graph(_LAYERS, depthwise=False)) / 1e9,
            depthwise_gflops=depthwise_flops / seconds(_graph(_LAYERS, depthwise=True)) / 1e9,
            # The host's memory says nothing about a device that this host only drives.
            copy_gb_per_s=2 * _COPY_BYTES / _copy_seconds() / 1e9 if setting.runtime in IN_PROCESS else None,
            session_overhead_us=1e6 * overhead_s,
        ),
        provider,
    )


def try_setting(runtime: Runtime, setting: RuntimeSetting) -> None:
    """Load and run a small model with exactly this setting; raises the errors of `Runtime.load`."""
    graph = _graph(layers=1, depthwise=False)
    model = emit(graph, setting.runtime, nominal_ranges(graph) if setting.precision == "int8" else None)
    loaded = runtime.load(model, setting)
    try:
        if isinstance(loaded, LoadedModel):
            loaded.bind(random_tensors(loaded.inputs))()
    finally:
        loaded.close()


def _graph(layers: int, *, depthwise: bool) -> Graph:
    """`layers` convolutions of one kind, between an input and the smallest possible end."""
    rng = np.random.default_rng(1)
    kernel = _KERNEL if depthwise else 1
    source = INPUT
    body: list[Layer] = []
    for number in range(layers):
        shape = (_CHANNELS, 1 if depthwise else _CHANNELS, kernel, kernel)
        # Unit gain per layer keeps values away from denormals and infinities.
        scale = 1 / np.sqrt(shape[1] * kernel * kernel)
        body.append(
            Conv(
                name=f"conv{number}",
                source=source,
                weight=(scale * rng.standard_normal(shape)).astype(np.float32),
                bias=np.zeros(_CHANNELS, np.float32),
                norm=None,
                stride=1,
                padding=kernel // 2,
                groups=_CHANNELS if depthwise else 1,
                activation="none",
            )
        )
        source = f"conv{number}"
    body.append(GlobalAveragePool(name="pool", source=source))
    weight = rng.standard_normal((1, _CHANNELS)).astype(np.float32)
    body.append(Linear(name=OUTPUT, source="pool", weight=weight, bias=np.zeros(1, np.float32)))
    side = _PIXELS if layers else 1
    return Graph(layers=tuple(body), input_shape=(_CHANNELS, side, side), classes=1)


def _copy_seconds(clock: Callable[[], float] = time.perf_counter) -> float:
    source = np.ones(_COPY_BYTES // 4, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(7):
        begin = clock()
        np.copyto(target, source)
        times.append(clock() - begin)
    return sorted(times)[len(times) // 2]
