"""Make the `Result` of a task from the measuring child's reply."""

from __future__ import annotations

from pydantic import ValidationError

from fleetnas.agent.measuring.messages import MeasuredReply, PairedTiming
from fleetnas.agent.service.speed_tracker import Verdict
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.messages import Failed, Measurement, Result
from fleetnas.fleet_protocol.orders import MeasurementTask


def make_result(
    task: MeasurementTask,
    reply: MeasuredReply,
    paired: PairedTiming,
    verdict: Verdict,
    *,
    levels_ms: tuple[float, ...],
    finished_unix_s: float,
) -> Result | Failed:
    """Return the result of a measurement; `Failed` (`bad_output`) if a value is out of its bounds."""
    timing = reply.timing
    try:
        measurement = Measurement(
            model_sha256=reply.model_sha256,
            model_bytes=reply.model_bytes,
            median_ms=timing.median_ms,
            mad_ms=timing.mad_ms,
            p90_ms=timing.p90_ms,
            min_ms=timing.min_ms,
            runs=timing.runs,
            inner_loops=timing.inner_loops,
            half_width_percent=timing.half_width_percent,
            quality=verdict.quality,
            undisturbed_ms=paired.undisturbed_ms,
            undisturbed_half_width_percent=paired.undisturbed_half_width_percent,
            reference=paired.reference,
            reference_ms=paired.reference_ms,
            levels_ms=levels_ms,
            condition=task.condition,
            regime_unix_s=verdict.regime_unix_s,
            times_us=timing.times_us,
            block_medians_ms=timing.block_medians_ms,
            mean_ms=timing.mean_ms,
            percentiles=reply.percentiles,
            sessions=max(1, len(reply.session_medians_ms)),
            session_medians_ms=reply.session_medians_ms,
            provider=reply.provider,
            build_ms=reply.build_ms,
            load_ms=reply.load_ms,
            before=reply.before,
            after=reply.after,
            energy_mj=reply.energy_mj,
            layers=reply.layers,
            finished_unix_s=finished_unix_s,
        )
    except ValidationError as error:
        return Failed(task=task.task, reason="bad_output", detail=first_fault(error)[:500])
    return Result(task=task.task, measurement=measurement, memory_bytes=reply.memory_bytes)
