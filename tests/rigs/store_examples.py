"""Records for tests of the store."""

from __future__ import annotations

from fleetnas.coordinator.records.stored import RunRecord, TaskRecord
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.layer_times import LayerTime
from fleetnas.fleet_protocol.messages import AgentInfo, Conditions, Measurement, PercentileTime, RuntimeSetting

SETTING = RuntimeSetting(threads=2)
INFO = AgentInfo(
    agent="pi4",
    session=3,
    profile=DeviceProfile(model="Pi", machine="aarch64", cores=4),
    settings=(SETTING,),
    versions={},
)
ARCHITECTURE = Architecture(ks=(3, 5, 0), e=(3, 6, 0), d=(2,), r=32)
MEASUREMENT = Measurement(
    model_sha256="a" * 64,
    model_bytes=1234,
    median_ms=1.25,
    mad_ms=0.01,
    p90_ms=1.3,
    min_ms=1.2,
    runs=3,
    inner_loops=2,
    half_width_percent=0.5,
    quality="noisy",
    undisturbed_ms=1.2,
    undisturbed_half_width_percent=0.7,
    reference="0123456789ab",
    reference_ms=0.8,
    levels_ms=(0.8, 1.9),
    condition="sustained",
    regime_unix_s=9e8,
    times_us=(1250.125, 1249.5, 1300.0),
    block_medians_ms=(1.25, 1.26),
    mean_ms=1.27,
    percentiles=(PercentileTime(percentile=95.0, value_ms=1.3, low_ms=1.28, high_ms=1.41, runs=285),),
    sessions=2,
    session_medians_ms=(1.24, 1.26),
    provider="CPUExecutionProvider",
    build_ms=4,
    load_ms=2,
    before=Conditions(temperature_c=41.5, governor="performance"),
    energy_mj=0.5,
    layers=(LayerTime(name="stem", op="Conv", mean_us=12.5),),
    finished_unix_s=1e9,
)


def run_record(run_id: str = "run-1", created_unix_s: float = 10.0) -> RunRecord:
    return RunRecord(run_id, "default", "digits.supernet", "b" * 64, {"budget": 24}, created_unix_s)


def task_record(task_id: str, run_id: str = "run-1") -> TaskRecord:
    return TaskRecord(
        task_id, run_id, "pi4", SETTING.label, "initial-design", ARCHITECTURE, predicted_ms=1.1, calibration=b"\0x"
    )
