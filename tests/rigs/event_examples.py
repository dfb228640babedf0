"""One event of every kind."""

from __future__ import annotations

import numpy as np

from fleetnas.coordinator.records.events import Event, event_from_fields
from rigs.outcome_examples import STARTED_S, architecture

SUBNET = architecture(np.random.default_rng(0))
SETTING = {"at_s": STARTED_S, "run_id": "run-0001", "device": "board-0", "setting": "onnxruntime_cpu_1t_fp32"}
CHOSEN = {**SETTING, "target_ms": 2.0, "architecture": SUBNET, "fingerprint": SUBNET.fingerprint}
DEVICE = {"at_s": STARTED_S, "run_id": "run-0001", "device": "board-0"}
RUN = {"at_s": STARTED_S, "run_id": "run-0001"}
TAKEN = {
    "task_id": "t1",
    "architecture": SUBNET,
    "fingerprint": SUBNET.fingerprint,
    "purpose": "candidate",
    "predicted_ms": 1.95,
    "measured_ms": 1.93,
    "half_width_percent": 0.7,
    "quality": "ok",
    "measurements": 12,
    "budget": 40,
}

EVENTS: tuple[Event, ...] = tuple(
    event_from_fields(fields)
    for fields in (
        {
            "event": "campaign_started",
            **RUN,
            "supernet": "digits.supernet",
            "supernet_sha256": "ab" * 32,
            "strategy": "bottom-up",
            "targets": "auto:4",
            "devices": ["board-0/onnxruntime_cpu_1t_fp32"],
            "budget": 40,
        },
        {"event": "device_joined", **DEVICE, "model": "Some board\nwith two lines", "settings": ["a"]},
        {"event": "device_lost", **DEVICE, "reason": "no heartbeat for 90 s"},
        {"event": "measurement", **SETTING, **TAKEN},
        {
            "event": "failure",
            **SETTING,
            "task_id": "t2",
            "architecture": SUBNET,
            "fingerprint": SUBNET.fingerprint,
            "reason": "crashed",
            "detail": "signal 11 \x1b[2J",
            "failures": 1,
        },
        {"event": "regime_changed", **SETTING, "since_s": STARTED_S - 60, "slowdown": 1.45},
        {"event": "measurements_slowed", **SETTING, "slowed": 3, "measured": 9, "largest_slowdown": 4.17},
        {
            "event": "predictor_updated",
            **SETTING,
            "mape_percent": 4.2,
            "spearman": None,
            "held_out": 3,
            "transfer_weight": 0.05,
            "measurements": 9,
        },
        {"event": "target_resolved", **CHOSEN, "predicted_ms": 1.9, "measured_ms": 1.95, "accuracy": 0.95},
        {
            "event": "winner_verified",
            **CHOSEN,
            "predicted_ms": 1.9,
            "measured_ms": 1.95,
            "verified_ms": 1.86,
            "typical_ms": 1.96,
            "accuracy": 0.944,
            "sha256": "cd" * 32,
            "note": "constrains nothing: the largest subnet takes 1.97 ms",
        },
        {
            "event": "target_missed",
            **SETTING,
            "target_ms": 2.0,
            "verified_ms": 2.1,
            "final": False,
            "reason": "2.10 ms",
        },
        {"event": "target_infeasible", **SETTING, "target_ms": 0.1, "fastest_ms": 0.9, "reason": "the fastest: 0.9 ms"},
        {"event": "progress", **RUN, "done": 0.31, "left_s": 250.0, "least_left_s": 180.0, "most_left_s": 390.0},
        {
            "event": "baseline_measured",
            **SETTING,
            "baseline": "largest",
            "measured_ms": 4.0,
            "half_width_percent": 0.7,
            "quality": "slowed",
            "reason": "",
        },
        {
            "event": "campaign_finished",
            **RUN,
            "status": "partial",
            "targets_met": 3,
            "targets": 4,
            "devices_lost": ["board-1"],
            "devices_failed": ["board-2"],
            "devices_slowed": ["board-0/onnxruntime_cpu_1t_fp32"],
            "elapsed_s": 130.0,
            "results": "out/results.json",
        },
    )
)
