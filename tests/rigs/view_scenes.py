"""Campaigns in the middle, for pictures and tests of the live view: each shows what a fleet of its size meets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import (
    BaselineSnapshot,
    DeviceSnapshot,
    DeviceState,
    Snapshot,
    TargetSnapshot,
)
from fleetnas.coordinator.view.event_briefs import brief_line
from fleetnas.coordinator.view.lines import timed_line
from rigs.event_examples import EVENTS
from rigs.outcome_examples import STARTED_S

#: Terminals and numbers of device settings that the view is looked at with.
SIZES = ((80, 24), (120, 40), (200, 50))
SETTINGS = (1, 6, 12)

_PI = BoardPlace("Raspberry Pi 4", 3, 1.0, 0.01, slow=False)
_NAMES = ("kitchen-pi4", "garage-pi4", "attic-pi4", "orin", "pixel8", "nuc")
_LATENCIES = (
    TargetSnapshot(20.0, 19.1, 19.4, 19.2, 0.712, 0.709, met=True),
    TargetSnapshot(35.0, 33.9, 34.2, 36.1, 0.741, met=False, reason="verified at 36.1 ms"),
    TargetSnapshot(50.0, 48.0, 48.8, None, 0.755),
    TargetSnapshot(80.0, 77.1, None, None, 0.768),
)
_KINDS = (
    TargetSnapshot(
        20.0, 19.1, 19.4, 19.2, 0.712, 0.709, met=True, note="constrains nothing: the largest takes 19.3 ms"
    ),
    TargetSnapshot(
        33.0, 29.9, 30.2, 30.4, 0.738, 0.735, met=True, target="p95:33", value=31.7, value_low=31.2, value_high=32.4
    ),
    TargetSnapshot(
        33.3, 31.9, 32.2, 34.1, 0.741, met=False, reason="verified at 29.3 fps", target="fps:30", value=29.3
    ),
    TargetSnapshot(None, 24.0, 24.8, 24.6, 0.731, 0.729, met=True, target="energy:5mJ", value=4.71),
    TargetSnapshot(None, 48.0, 48.8, None, 0.752, target="accuracy:75"),
)
#: State, words behind it, and progress of each device setting in turn.
_DOING: tuple[tuple[DeviceState, str, float | None], ...] = (
    ("measuring", "subnet 3fa2b1c4d5e6 as a candidate", None),
    ("verifying", "subnet 90ab12cd34ef for p95 33 ms", None),
    ("fetching", "the bundle", 0.42),
    ("failed", "every measurement crashed: signal 11", None),
    ("waiting", "battery at 22 %, below 30 %: plug the device in", None),
    ("done", "", None),
    ("measuring", "subnet 77aa88bb99cc to explore the design space", None),
    ("waiting", "for its device, which measures another setting", None),
    ("waiting", "for the search to choose its next subnets", None),
    ("lost", "no heartbeat for 90 s", None),
    ("offline", "not seen since the run was resumed", None),
    ("idle", "nothing to measure now", None),
)


def scene(settings: int) -> Snapshot:
    """Return a campaign of some device settings, with its latest lines."""
    devices = tuple(_device(index) for index in range(settings))
    return Snapshot(
        run_id="20261121-090000-ab12",
        supernet="mobilenet.supernet",
        started_s=STARTED_S,
        now_s=STARTED_S + 754.0,
        phase="searching",
        devices=devices,
        log=tuple(_log(devices)),
        progress=RunProgress(0.35, 1390.0, 1130.0, 1790.0),
    )


def ended(settings: int) -> Snapshot:
    """Return the same campaign after its end."""
    running = scene(settings)
    devices = tuple(
        device if device.ended else replace(device, state="done", state_detail="", progress=None)
        for device in running.devices
    )
    (end,) = (event for event in EVENTS if event.event == "campaign_finished")
    verdict = brief_line(end)
    assert verdict is not None
    log = (*running.log, timed_line(running.now_s, verdict))
    return replace(running, phase="partial", progress=None, devices=devices, log=log)


def _log(devices: Sequence[DeviceSnapshot]) -> Iterator[str]:
    """Every kind of event that there is during a campaign, on each device in turn."""
    kinds = [event for event in EVENTS if event.event not in ("campaign_started", "campaign_finished")]
    for number in range(60):
        event, device = kinds[number % len(kinds)], devices[number % len(devices)]
        fields = {"device": device.device, "setting": device.setting_label}
        text = brief_line(event.model_copy(update={key: fields[key] for key in fields if hasattr(event, key)}))
        if text is not None:
            yield timed_line(STARTED_S + 9.0 * number, text)


def _device(index: int) -> DeviceSnapshot:
    state, detail, progress = _DOING[index]
    name = _NAMES[index % len(_NAMES)]
    pooled = name.endswith("-pi4")
    slow = name == "attic-pi4"
    board = replace(_PI, speed=1.41, slow=True) if slow else _PI
    return DeviceSnapshot(
        device=name,
        setting_label=f"onnxruntime_cpu_{1 + 3 * (index // len(_NAMES))}t_fp32",
        state=state,
        state_detail=detail,
        temperature_c=None if index % 4 == 3 else 52.0 + index,
        throttled=index == 6,
        measurements=23 + index,
        budget=60,
        failures=3 if state == "failed" else index % 2,
        progress=progress,
        predictor_error=None if state == "fetching" else PredictorError(4.2 + index / 10, 0.97, 12),
        targets=_KINDS if index % 3 == 0 else _LATENCIES,
        targets_asked=5 if index % 3 == 0 else 4,
        targets_note="one of 3 boards of class Raspberry Pi 4" if pooled else "",
        tags=("rack-2", "room:kitchen") if index % 5 == 0 else (),
        quality=DataQuality(ok=20 + index, noisy=2, slowed=1 + 12 * (index == 6), largest_slowdown=1.31, regimes=1),
        board=board if pooled else None,
        baselines=(BaselineSnapshot("largest", 81.2), BaselineSnapshot("mine", None, "it needs an operator"))
        if index == 5
        else (),
    )
