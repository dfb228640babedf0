"""Invented campaigns, for tests of what shows and stores them; every figure comes from a seeded generator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.outcome import (
    CampaignOutcome,
    DeviceOutcome,
    FailedMeasurement,
    SupernetProvenance,
    TakenMeasurement,
    TargetOutcome,
)
from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.snapshot import (
    DeviceSnapshot,
    DeviceState,
    Snapshot,
    TargetSnapshot,
)
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.report.artifacts import ArtifactFolder
from fleetnas.coordinator.report.results import Results
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Conditions, Measurement, RuntimeSetting

STARTED_S = 1_700_000_000.0


def architecture(generator: np.random.Generator) -> Architecture:
    """Some architecture; whether a design space has it does not matter here."""
    return Architecture(
        ks=tuple(int(k) for k in generator.choice([3, 5, 7], 12)),
        e=tuple(float(e) for e in generator.choice([3, 4, 6], 12)),
        d=tuple(int(d) for d in generator.choice([2, 3, 4], 3)),
        r=int(generator.choice([16, 24, 32, 40])),
    )


def measurement_row(generator: np.random.Generator, index: int, purpose: Purpose = "candidate") -> TakenMeasurement:
    """One measurement with raw times, temperature and slow-down."""
    median_ms = float(np.exp(generator.uniform(np.log(0.8), np.log(6.0))))
    times_us = tuple(float(t) for t in np.round(median_ms * 1e3 * generator.normal(1.0, 0.01, 50), 3))
    median_ms = float(np.median(times_us)) / 1e3
    warm = Conditions(temperature_c=45.0 + 0.4 * index, throttled=False, governor="performance", clock_mhz=1500.0)
    return TakenMeasurement(
        task_id=f"task-{index}",
        attempt=1,
        purpose=purpose,
        architecture=architecture(generator),
        predicted_ms=None if index < 3 else median_ms * float(generator.normal(1.0, 0.04)),
        predicted_std_ms=None if index < 3 else 0.05 * median_ms,
        predicted_accuracy=0.9 + 0.04 * float(np.log(median_ms / 0.8)) + float(generator.normal(0.0, 0.004)),
        measurement=Measurement(
            model_sha256=hashlib.sha256(f"model-{index}".encode()).hexdigest(),
            model_bytes=1_000_000 + index,
            median_ms=median_ms,
            mad_ms=0.01 * median_ms,
            p90_ms=1.02 * median_ms,
            min_ms=0.97 * median_ms,
            runs=50,
            half_width_percent=0.6,
            quality="noisy" if index % 11 == 5 else "ok",
            undisturbed_ms=median_ms / (1.0 + 0.002 * index),
            times_us=times_us,
            provider="CPUExecutionProvider",
            build_ms=20.0,
            load_ms=8.0,
            before=warm,
            after=warm,
            finished_unix_s=STARTED_S + 2.0 * index,
        ),
    )


def model_of(device: str, target_ms: float) -> bytes:
    """Stands for an exported model."""
    return f"model of {device} at {target_ms}".encode() * 50


def device_outcome(
    device: str,
    threads: int = 1,
    targets_ms: Sequence[float] = (1.0, 2.0, 3.5, 5.0),
    status: SettingStatus = SettingStatus.FINISHED,
    measurements: int = 30,
    seed: int = 0,
) -> DeviceOutcome:
    """A device setting; the last target of one that was lost is not resolved."""
    generator = np.random.default_rng(seed)
    rows = [
        measurement_row(generator, index, "initial-design" if index < 10 else "candidate")
        for index in range(measurements)
    ]
    targets = []
    for index, target_ms in enumerate(targets_ms):
        if status is not SettingStatus.FINISHED and index == len(targets_ms) - 1:
            targets.append(TargetOutcome(target_ms, reason="the device was lost before it was measured"))
            continue
        targets.append(
            TargetOutcome(
                target_ms=target_ms,
                architecture=architecture(generator),
                predicted_ms=0.97 * target_ms,
                measured_ms=0.98 * target_ms,
                verified_ms=0.985 * target_ms,
                predicted_accuracy=0.93 + 0.01 * index,
                accuracy=0.928 + 0.011 * index,
                accuracy_images=540,
                parameters=450_000,
                macs=3_500_000,
                peak_activation_bytes=98_304,
                sha256=hashlib.sha256(model_of(device, target_ms)).hexdigest(),
            )
        )
    return DeviceOutcome(
        device=device,
        setting=RuntimeSetting(threads=threads),
        status=status,
        reason="" if status is SettingStatus.FINISHED else "no heartbeat for 90 s",
        versions={"fleetnas": "0.1.0", "onnxruntime": "1.20.0"},
        rows=tuple(rows),
        failures=(
            FailedMeasurement(
                "task-99", 1, "verification", architecture(generator), "crashed", "signal 11", targets_ms[0]
            ),
        ),
        predictor=PredictorError(4.2, 0.97, 12),
        predictor_history=tuple(
            PredictorPoint(count, PredictorError(40.0 / count + 3.0, 0.9, min(count, 12))) for count in range(4, 31, 2)
        ),
        targets=tuple(targets),
    )


def campaign_outcome(*devices: DeviceOutcome) -> CampaignOutcome:
    """A campaign that is over."""
    return CampaignOutcome(
        run_id="run-0001",
        supernet=SupernetProvenance("digits.supernet", "ab" * 32, "digits", "trained by fleetnas", None),
        strategy="bottom-up",
        budget=40,
        bounds=Bounds(macs=4e6),
        started_s=STARTED_S,
        finished_s=STARTED_S + 130.0,
        versions={"fleetnas": "0.1.0"},
        devices=devices,
    )


_STATES: tuple[DeviceState, ...] = (
    "measuring", "fetching", "verifying", "lost", "idle", "done", "waiting", "offline", "failed",
)  # fmt: skip


def snapshot(devices: int = 3, targets: int = 4, log: int = 6) -> Snapshot:
    """A campaign in the middle, its devices in every state by turns."""
    return Snapshot(
        run_id="run-0001",
        supernet="digits.supernet",
        started_s=STARTED_S,
        now_s=STARTED_S + 83.4,
        phase="searching",
        devices=tuple(_device(index, targets) for index in range(devices)),
        log=tuple(f"10:00:{second:02} board-0 measured a subnet" for second in range(log)),
    )


def _device(index: int, targets: int) -> DeviceSnapshot:
    state = _STATES[index % len(_STATES)]
    stages = (
        TargetSnapshot(1.0, 0.97, 0.98, 0.985, 0.93, 0.928, met=True),
        TargetSnapshot(2.0, 1.95, 1.93, 2.07, 0.95, met=False, reason="verified at 2.07 ms"),
        TargetSnapshot(3.5, 3.41, 3.44, None, 0.96),
        TargetSnapshot(5.0, 4.9, None, None, 0.97),
    )
    return DeviceSnapshot(
        device=f"board-{index}",
        setting_label=f"onnxruntime_cpu_{index % 4 + 1}t_fp32",
        state=state,
        state_detail={
            "lost": "no heartbeat for 90 s",
            "failed": "every measurement crashed",
            "idle": "another agent of this host measures",
        }.get(state, ""),
        temperature_c=None if index % 3 == 2 else 55.0 + index,
        throttled=index % 5 == 1,
        measurements=23,
        budget=40,
        failures=index % 2,
        progress=0.5 if state == "fetching" else None,
        predictor_error=None if state == "fetching" else PredictorError(4.2, 0.97, 12),
        targets=tuple(stages[number % len(stages)] for number in range(targets)),
    )


def artifacts(directory: Path, outcome: CampaignOutcome) -> Results:
    writer = ArtifactFolder(directory)
    for device in outcome.devices:
        for target in device.targets:
            if target.met:
                writer.add_winner(device, target, model_of(device.device, target.target_ms))
    return writer.write(outcome)
