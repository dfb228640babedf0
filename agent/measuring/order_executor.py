"""Execute orders in the measuring child: open the bundle, build the model, time fresh sessions of it.

The open bundle and the references' sessions take long to make: they are kept from one order to the next.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from fleetnas.agent.host.limits import core_list
from fleetnas.agent.host.power import BlockPower, IdlePower, energy_mj, with_power
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import (
    BenchOrder,
    LoadedReply,
    MeasuredReply,
    MeasureOrder,
    ModelOrder,
    Order,
    PairedTiming,
    ProbedReply,
    ProbeOrder,
    ReferenceOrder,
    Reply,
    SlowReply,
    SustainedOrder,
    SustainedReply,
    UnreadyReply,
    WindowReply,
)
from fleetnas.agent.measuring.paired import TurnHooks
from fleetnas.agent.measuring.pairing import Pairing
from fleetnas.agent.measuring.references import References
from fleetnas.agent.measuring.sent_model import open_sent_model, try_model
from fleetnas.agent.measuring.session_averages import (
    mean_paired,
    mean_timing,
    run_sessions,
    typical_load_ms,
)
from fleetnas.agent.measuring.session_share import session_share
from fleetnas.agent.measuring.sustained_windows import measure_windows
from fleetnas.agent.runtimes.base import OnBlock, Runtime, TimedModel
from fleetnas.agent.runtimes.model_file import ModelFile, open_model
from fleetnas.agent.runtimes.registry import make_runtime
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.errors import CorruptBundleError, HashMismatchError, UsageError
from fleetnas.fleet_protocol.layer_times import LayerTime
from fleetnas.fleet_protocol.messages import Phase, RuntimeSetting
from fleetnas.fleet_protocol.percentiles import percentile_times
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model

ReportPhase: TypeAlias = Callable[[Phase, float], None]
#: A phase's progress is reported at most this often: each report wakes the agent and its network.
_PROGRESS_EVERY_S = 2.0


class OrderExecutor:
    """Executes orders, one after the other."""

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
        self._references = References()

    def execute(self, order: Order, report_phase: ReportPhase) -> Reply:
        """Execute one order and return its reply.

        Raises `FleetnasError` or a library's error if it cannot be executed; `child.failure_reason` classifies them.
        """
        # A phone's cores are not this host's: its own runtime pins to them.
        self._pin(() if order.setting.runtime == "adb" else order.setting.affinity)
        if isinstance(order, MeasureOrder | ModelOrder):
            return self._measure_for_fleet(order, report_phase)
        if isinstance(order, BenchOrder):
            return self._measure_file(order, report_phase)
        if isinstance(order, SustainedOrder):
            return self._sustain(order, report_phase)
        return self._probe(order)

    def _measure_for_fleet(self, order: MeasureOrder | ModelOrder, report_phase: ReportPhase) -> Reply:
        """Measure a subnet, or a model file that was sent."""
        begin = time.perf_counter()
        runtime = self._runtime(order.setting)
        if order.battery is not None:
            objection = order.battery.objection(runtime.conditions() or self._sensors.read())
            if objection:
                return UnreadyReply(reason=objection)
        if order.references is not None:
            warm = self._too_warm(runtime, order.references)
            if warm is not None:
                return warm
        own = open_sent_model(order) if isinstance(order, ModelOrder) else None
        trial = try_model(runtime, own, order.setting) if own is not None else None
        bundle = self._open_bundle(order)
        pairing = None
        if order.references is not None:
            pairing = self._pairing(bundle, order, order.references, runtime, report_phase)
            if trial is not None:
                pairing.match(trial.median_ms)
            slow_above = order.references.slow_above
            slowdown = pairing.slowdown() if slow_above is not None else None
            if slowdown is not None and slow_above is not None and slowdown > slow_above:
                return SlowReply(slowdown=slowdown, levels_ms=pairing.levels_ms)
        build_begin = time.perf_counter()
        if isinstance(order, ModelOrder):
            assert own is not None
            model = own.content
        else:
            calibration = _read_verified(order.calibration_path, order.calibration_sha256)
            model = build_model(bundle, order.architecture, calibration, order.setting)
        build_ms = 1000 * (time.perf_counter() - build_begin)
        reply = self._time_model(runtime, model, order, build_ms, report_phase, pairing, own)
        return reply.model_copy(
            update={
                "levels_ms": pairing.levels_ms if pairing is not None else {},
                "memory_bytes": trial.memory_bytes if trial is not None else None,
                "busy_s": time.perf_counter() - begin,
                "inference_s": reply.inference_s + (pairing.spent_s if pairing is not None else 0.0),
            }
        )

    def _pairing(
        self,
        bundle: SupernetBundle,
        order: MeasureOrder | ModelOrder,
        references: ReferenceOrder,
        runtime: Runtime,
        report_phase: ReportPhase,
    ) -> Pairing:
        """Load the references of an order, warm up if it requires that, and learn their levels."""
        subject = bundle.space.smallest()  # of a model file `Pairing.match` decides
        if isinstance(order, MeasureOrder):
            subject = bundle.space.encode([order.architecture])
        macs = float(bundle.space.macs(subject)[0])
        loaded = self._references.get(bundle, order.setting, runtime, references.at_most)
        pairing = Pairing(loaded, references, session_share(order.protocol), macs)
        if references.warm_up:
            pairing.warm_up(lambda fraction: report_phase("waiting", fraction))
            report_phase("building", 0.0)
        pairing.calibrate()
        return pairing

    def _too_warm(self, runtime: Runtime, references: ReferenceOrder) -> SlowReply | None:
        if references.warm_above_c is None:
            return None
        now_c = (runtime.conditions() or self._sensors.read()).temperature_c
        return SlowReply(temperature_c=now_c) if now_c is not None and now_c > references.warm_above_c else None

    def _measure_file(self, order: BenchOrder, report_phase: ReportPhase) -> Reply:
        own = open_model(Path(order.model_path), order.input_shapes)
        return self._time_model(self._runtime(order.setting), own.content, order, 0.0, report_phase, own=own)

    def _time_model(
        self,
        runtime: Runtime,
        model: bytes,
        order: MeasureOrder | ModelOrder | BenchOrder,
        build_ms: float,
        report_phase: ReportPhase,
        pairing: Pairing | None = None,
        own: ModelFile | None = None,
    ) -> MeasuredReply:
        begin = time.perf_counter()
        driven = runtime.conditions()  # of a device that this host only drives, whose power it does not know
        power = BlockPower(self._sensors.power_meter if driven is None else None)
        before = driven or with_power(self._sensors.read(), self._idle_power.mw())
        reported = -math.inf

        def on_block(session_fraction: float, fraction: float) -> None:
            nonlocal reported
            power.end_block(session_fraction)
            if time.perf_counter() - reported >= _PROGRESS_EVERY_S:
                reported = time.perf_counter()
                report_phase("measuring", fraction)

        def time_session(loaded: TimedModel, end_block: OnBlock) -> tuple[Timing, PairedTiming | None]:
            end_block(0.0)
            if pairing is not None:
                paired = pairing.time(loaded, TurnHooks(power.begin_block, end_block))
                return paired.timing, paired

            def next_block(fraction: float) -> None:
                end_block(fraction)
                power.begin_block()

            return loaded.time(session_share(order.protocol), next_block), None

        runs, loaded = run_sessions(
            order.protocol.sessions, lambda: runtime.load(model, order.setting, own), time_session, on_block
        )
        timing = mean_timing([run.timing for run in runs], order.protocol.half_width_percent)
        after = runtime.conditions() or with_power(self._sensors.read(), power.mean_mw)
        paired = [run.paired for run in runs if run.paired is not None]
        return MeasuredReply(
            model_sha256=own.sha256 if own is not None else hashlib.sha256(model).hexdigest(),
            model_bytes=own.size if own is not None else len(model),
            timing=timing,
            session_medians_ms=tuple(run.timing.median_ms for run in runs),
            provider=loaded.provider,
            build_ms=build_ms,
            load_ms=typical_load_ms(runs),
            input_shapes=loaded.input_shapes,
            cores=_active_cores(order.setting),
            before=before,
            after=after,
            energy_mj=energy_mj(power.mean_mw, timing.median_ms),
            percentiles=percentile_times(timing.samples_ms, order.protocol.percentiles),
            layers=_layers(runtime, model, order, own) if order.profile else (),
            paired=mean_paired(paired, order.protocol.half_width_percent) if paired else None,
            busy_s=time.perf_counter() - begin,
            inference_s=timing.inference_s,
        )

    def _probe(self, order: ProbeOrder) -> ProbedReply:
        from fleetnas.agent.measuring.micro_benchmarks import run_micro_benchmarks, try_setting

        runtime = self._runtime(order.setting)
        found, provider = run_micro_benchmarks(runtime, order.setting, full=order.micro_benchmarks)
        # Micro-benchmarks run on one thread and in fp32; the agent offers the setting as it is.
        try_setting(runtime, order.setting)
        return ProbedReply(
            version=runtime.version(),
            providers=runtime.providers(),
            active_provider=provider,
            micro_benchmarks=found,
            device=runtime.device(),
            cores=_active_cores(order.setting),
        )

    def _runtime(self, setting: RuntimeSetting) -> Runtime:
        if setting.runtime not in self._runtimes:
            self._runtimes[setting.runtime] = make_runtime(setting.runtime, self._engine_folder)
        return self._runtimes[setting.runtime]

    def _open_bundle(self, order: MeasureOrder | ModelOrder) -> SupernetBundle:
        if self._bundle is None or self._bundle[0] != order.bundle_sha256:
            self._references.close()  # before the next is opened: both need not fit
            self._bundle = None
            opened = SupernetBundle.open(Path(order.bundle_path), expected_sha256=order.bundle_sha256)
            self._bundle = (order.bundle_sha256, opened)
        return self._bundle[1]

    def _pin(self, cores: tuple[int, ...]) -> None:
        if self._all_cores is None:
            if cores:
                raise UsageError("this system cannot pin a process to cores; leave `affinity` out of the setting")
            return
        # The kernel accepts any set with one usable core, and ignores the others silently.
        missing = [core for core in cores if core not in self._all_cores]
        fault = f"{core_list(missing)} are offline, not there, or not allowed here" if missing else ""
        try:
            if not missing:
                os.sched_setaffinity(0, cores or self._all_cores)
        except (OSError, ValueError, OverflowError) as error:
            fault = str(error)
        if not fault and cores and (active := _affinity()) != set(cores):
            fault = f"{core_list(active or ())} are active instead"
        if fault:
            raise UsageError(
                f"the measurement cannot be pinned to cores {core_list(cores)}: {fault}; this process may use "
                f"{core_list(self._all_cores)}, so change `affinity` in the setting"
            )

    def _sustain(self, order: SustainedOrder, report_phase: ReportPhase) -> SustainedReply:
        """Run the model until the order's time is over; report each window as it ends."""
        runtime = self._runtime(order.setting)
        own = open_model(Path(order.model_path), order.input_shapes)
        begin = time.perf_counter()
        loaded = runtime.load(own.content, order.setting, own)
        try:
            self._report(
                LoadedReply(
                    model_sha256=own.sha256,
                    model_bytes=own.size,
                    provider=loaded.provider,
                    load_ms=1000 * (time.perf_counter() - begin),
                    input_shapes=loaded.input_shapes,
                    cores=_active_cores(order.setting),
                )
            )
            report_phase("measuring", 0.0)
            windows = 0
            for window in measure_windows(loaded, runtime, self._sensors, order.total_s, order.window_s):
                self._report(window)
                windows += 1
        finally:
            loaded.close()
        return SustainedReply(windows=windows)


def _layers(
    runtime: Runtime, model: bytes, order: MeasureOrder | BenchOrder, own: ModelFile | None
) -> tuple[LayerTime, ...]:
    """Return the times of a model's layers; a subnet's measurement is not lost where they cannot be had."""
    try:
        return runtime.profile(model, order.setting, own)
    except Exception:
        if isinstance(order, BenchOrder):
            raise
        return ()


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


def _active_cores(setting: RuntimeSetting) -> tuple[int, ...]:
    """Return the cores that the model runs on; for a phone, those it was pinned to, which its runtime has checked."""
    return setting.affinity if setting.runtime == "adb" else tuple(sorted(_affinity() or ()))


def _affinity() -> set[int] | None:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return None
