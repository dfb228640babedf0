"""What the measuring child does with an order: open the bundle, build the model, load it, time it.

It keeps what is dear to make again (the open bundle, the sentinel's session) from one order to the next.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from agent.child_messages import (
    BenchOrder,
    LoadedReply,
    MeasuredReply,
    MeasureOrder,
    Order,
    ProbedReply,
    ProbeOrder,
    Reply,
    SentinelOrder,
    SentinelReading,
    SlowReply,
    SustainedOrder,
    SustainedReply,
    UnreadyReply,
    WindowReply,
)
from agent.model_building import build_model
from agent.power import BlockPower, IdlePower
from agent.runtimes.base import Runtime, TimedModel
from agent.runtimes.registry import make_runtime
from agent.sensors import Sensors
from agent.sustained_windows import measure_windows
from fleet_protocol.errors import CorruptBundleError, HashMismatchError, UsageError
from fleet_protocol.messages import Phase, RuntimeSetting
from supernet_export.bundle import SupernetBundle

Say = Callable[[Phase, float], None]
#: A phase's progress is told at most this often: each telling wakes the agent and its network.
_PROGRESS_EVERY_S = 2.0


class Workbench:
    """Carries out orders, one after the other."""

    def __init__(
        self,
        sensors: Sensors | None = None,
        engine_folder: Path | None = None,
        report: Callable[[LoadedReply | WindowReply], None] = lambda reply: None,
    ) -> None:
        self._sensors = sensors or Sensors()
        self._idle_power = IdlePower(self._sensors.power_meter)
        self._engine_folder = engine_folder
        self._report = report
        self._all_cores = _affinity()
        self._runtimes: dict[str, Runtime] = {}
        self._bundle: tuple[str, SupernetBundle] | None = None
        self._sentinel: tuple[tuple[str, RuntimeSetting], TimedModel] | None = None

    def carry_out(self, order: Order, say: Say) -> Reply:
        """The reply to one order; raises what keeps it from being carried out."""
        # A phone's cores are not this host's: its own runtime pins to them.
        self._pin(() if order.setting.runtime == "adb" else order.setting.affinity)
        if isinstance(order, MeasureOrder):
            return self._measure_subnet(order, say)
        if isinstance(order, BenchOrder):
            return self._measure_file(order, say)
        if isinstance(order, SustainedOrder):
            return self._sustain(order, say)
        return self._probe(order)

    def _measure_subnet(self, order: MeasureOrder, say: Say) -> Reply:
        begin = time.perf_counter()
        runtime = self._runtime(order.setting)
        if order.battery is not None:
            objection = order.battery.objection(runtime.conditions() or self._sensors.read())
            if objection:
                return UnreadyReply(reason=objection)
        bundle = self._open_bundle(order)
        readings: list[SentinelReading] = []
        sentinel_s = 0.0
        if order.sentinel is not None and order.sentinel.before:
            reading, spent_s = self._read_sentinel(bundle, order, order.sentinel)
            if order.sentinel.slow_at_ms is not None and reading.at_least_ms > order.sentinel.slow_at_ms:
                return SlowReply(sentinel=reading)
            readings.append(reading)
            sentinel_s += spent_s
        build_begin = time.perf_counter()
        calibration = _read_verified(order.calibration_path, order.calibration_sha256)
        model = build_model(bundle, order.architecture, calibration, order.setting)
        build_ms = 1000 * (time.perf_counter() - build_begin)
        reply = self._time_model(runtime, model, order, build_ms, say)
        after = None
        if order.sentinel is not None:
            after, spent_s = self._read_sentinel(bundle, order, order.sentinel)
            sentinel_s += spent_s
        return reply.model_copy(
            update={
                "sentinel_before": readings[0] if readings else None,
                "sentinel_after": after,
                "busy_s": time.perf_counter() - begin,
                "inference_s": reply.inference_s + sentinel_s,
            }
        )

    def _measure_file(self, order: BenchOrder, say: Say) -> Reply:
        return self._time_model(self._runtime(order.setting), _read_model(order.model_path), order, 0.0, say)

    def _time_model(
        self, runtime: Runtime, model: bytes, order: MeasureOrder | BenchOrder, build_ms: float, say: Say
    ) -> MeasuredReply:
        begin = time.perf_counter()
        loaded = runtime.load(model, order.setting)
        load_ms = 1000 * (time.perf_counter() - begin)
        driven = runtime.conditions()  # of a device that this host only drives, and whose power it does not know
        power = BlockPower(self._sensors.power_meter if driven is None else None)
        before = driven or self._sensors.read().model_copy(update={"power_mw": self._idle_power.mw()})
        told = time.perf_counter()
        say("measuring", 0.0)

        def on_block(fraction: float) -> None:
            nonlocal told
            power.end_block(fraction)
            if time.perf_counter() - told >= _PROGRESS_EVERY_S:
                told = time.perf_counter()
                say("measuring", fraction)
            power.begin_block()

        try:
            timing = loaded.time(order.protocol, on_block)
        finally:
            loaded.close()
        return MeasuredReply(
            model_sha256=hashlib.sha256(model).hexdigest(),
            model_bytes=len(model),
            timing=timing,
            provider=loaded.provider,
            build_ms=build_ms,
            load_ms=load_ms,
            before=before,
            after=runtime.conditions() or self._sensors.read().model_copy(update={"power_mw": power.mean_mw}),
            energy_mj=power.mean_mw * timing.median_ms / 1000 if power.mean_mw is not None else None,
            busy_s=time.perf_counter() - begin,
            inference_s=timing.inference_s,
        )

    def _read_sentinel(
        self, bundle: SupernetBundle, order: MeasureOrder, sentinel: SentinelOrder
    ) -> tuple[SentinelReading, float]:
        key = (order.bundle_sha256, order.setting)
        if self._sentinel is None or self._sentinel[0] != key:
            self._drop_sentinel()  # before the next is made: both need not fit
            smallest = bundle.space.decode(bundle.space.smallest())[0]
            model = build_model(bundle, smallest, None, order.setting)
            self._sentinel = (key, self._runtime(order.setting).load(model, order.setting))
        timing = self._sentinel[1].time(sentinel.protocol, min_sample_ms=sentinel.min_sample_ms)
        reading = SentinelReading(
            median_ms=timing.median_ms, half_width_percent=timing.half_width_percent, min_ms=timing.min_ms
        )
        return reading, timing.inference_s

    def _drop_sentinel(self) -> None:
        if self._sentinel is not None:
            self._sentinel[1].close()
            self._sentinel = None

    def _probe(self, order: ProbeOrder) -> ProbedReply:
        from agent.micro_benchmarks import run_micro_benchmarks

        runtime = self._runtime(order.setting)
        found, provider = run_micro_benchmarks(runtime, order.setting, full=order.micro_benchmarks)
        return ProbedReply(
            version=runtime.version(),
            providers=runtime.providers(),
            active_provider=provider,
            micro_benchmarks=found,
            device=runtime.device(),
        )

    def _runtime(self, setting: RuntimeSetting) -> Runtime:
        if setting.runtime not in self._runtimes:
            self._runtimes[setting.runtime] = make_runtime(setting.runtime, self._engine_folder)
        return self._runtimes[setting.runtime]

    def _open_bundle(self, order: MeasureOrder) -> SupernetBundle:
        if self._bundle is None or self._bundle[0] != order.bundle_sha256:
            self._drop_sentinel()
            self._bundle = None
            opened = SupernetBundle.open(Path(order.bundle_path), expected_sha256=order.bundle_sha256)
            self._bundle = (order.bundle_sha256, opened)
        return self._bundle[1]

    def _pin(self, cores: tuple[int, ...]) -> None:
        if self._all_cores is None:
            if cores:
                raise UsageError("this system cannot pin a process to cores; leave `affinity` out of the setting")
            return
        try:
            os.sched_setaffinity(0, cores or self._all_cores)
        except OSError as error:
            raise UsageError(
                f"the measurement cannot be pinned to cores {', '.join(map(str, cores))} ({error}); this device has "
                f"{', '.join(map(str, sorted(self._all_cores)))}"
            ) from error

    def _sustain(self, order: SustainedOrder, say: Say) -> SustainedReply:
        """Run the model until the order's time is over; each window is reported as it ends."""
        runtime = self._runtime(order.setting)
        model = _read_model(order.model_path)
        begin = time.perf_counter()
        loaded = runtime.load(model, order.setting)
        try:
            self._report(
                LoadedReply(
                    model_sha256=hashlib.sha256(model).hexdigest(),
                    model_bytes=len(model),
                    provider=loaded.provider,
                    load_ms=1000 * (time.perf_counter() - begin),
                )
            )
            say("measuring", 0.0)
            windows = 0
            for window in measure_windows(loaded, runtime, self._sensors, order.total_s, order.window_s):
                self._report(window)
                windows += 1
        finally:
            loaded.close()
        return SustainedReply(windows=windows)


def _read_model(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the model cannot be read: {error}; check its path") from error


def _read_verified(path: str | None, sha256: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise CorruptBundleError(f"the calibration cannot be read ({error}); it is fetched again") from error
    found = hashlib.sha256(blob).hexdigest()
    if found != sha256:
        raise HashMismatchError(
            f"the calibration {path} was announced with SHA-256 {sha256} and has {found}; it is fetched again"
        )
    return blob


def _affinity() -> set[int] | None:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return None
