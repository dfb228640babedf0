"""The live view: the same snapshot gives the same text, whatever the terminal, and says what it must."""

from __future__ import annotations

import dataclasses
import io
import itertools

import pytest
from rich.cells import cell_len
from rich.console import Console
from rigs.outcome_examples import STARTED_S, campaign_outcome, device_outcome, snapshot

from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.events import DeviceJoined
from fleetnas.coordinator.records.snapshot import (
    DeviceSnapshot,
    PredictorError,
    Snapshot,
    TargetSnapshot,
)
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.view.live import LiveView, frame_strips, render
from fleetnas.coordinator.view.summary import summary

SIZES = [(20, 6), (30, 10), (44, 20), (60, 24), (80, 24), (100, 30), (120, 40), (160, 50), (240, 70)]

JOINED = DeviceJoined(
    at_s=STARTED_S, run_id="run-0001", device="board-0", model="Raspberry Pi 4", settings=("onnxruntime_cpu_1t_fp32",)
)


def text_of(view: Snapshot, width: int, height: int = 24, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=False)
    console.print(render(view))
    file.seek(0)
    return file.read()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("devices", [0, 1, 3, 12, 60, 500])
def test_the_frame_fits_the_terminal(width: int, height: int, devices: int) -> None:
    lines = text_of(snapshot(devices), width, height).splitlines()
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [20, 80, 160])
def test_render_is_a_pure_function_of_the_snapshot(width: int) -> None:
    assert text_of(snapshot(12), width) == text_of(snapshot(12), width)
    later = dataclasses.replace(snapshot(12), now_s=STARTED_S + 3600.0)
    assert text_of(later, width) != text_of(snapshot(12), width)
    assert "1:00:00" in text_of(later, width)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (160, 50)])
def test_each_device_shows_what_matters(width: int, height: int) -> None:
    text = text_of(snapshot(2), width, height)
    for fact in ("run-0001", "digits.supernet", "searching", "1:23", "board-0", "1t", "measuring"):
        assert fact in text, fact
    for fact in ("55", "23/40", "4.2", "12", "0.970", "0.980", "0.985", "92.8 %", "~96.0 %", "✓ met"):
        assert fact in text, fact
    assert " 50 %" in text, "the bundle is half fetched"


def test_a_prediction_is_never_shown_as_a_result() -> None:
    target = TargetSnapshot(4.0, predicted_ms=3.21, accuracy=0.876)
    device = DeviceSnapshot("board", "onnxruntime_cpu_1t_fp32", "measuring", budget=40, targets=(target,))
    for width in (44, 80, 160):
        text = text_of(dataclasses.replace(snapshot(0), devices=(device,)), width)
        assert "0 of 1 target met" in text
        assert "✓" not in text
        assert "~3.21" in text or "predicted" in text
        assert "87.6" not in text.replace("~87.6", "")


def test_automatic_targets_are_counted_as_asked_for_before_they_are_chosen() -> None:
    waiting = DeviceSnapshot("board-0", "onnxruntime_cpu_1t_fp32", "measuring", targets_asked=4)
    lost = dataclasses.replace(waiting, device="board-1", state="lost")
    chosen = dataclasses.replace(snapshot(1).devices[0], targets_asked=4)
    for width, height in ((80, 24), (120, 40), (160, 50)):
        text = text_of(dataclasses.replace(snapshot(0), devices=(waiting, lost)), width, height)
        assert "0 of 8 targets met, none chosen yet" in text
        assert "4 targets asked for, not chosen yet" in text
        assert "4 targets asked for, none chosen" in text.replace("none chosen yet", "")
        text = text_of(dataclasses.replace(snapshot(0), devices=(waiting, chosen)), width, height)
        assert "1 of 8 targets met" in text
        assert "none chosen" not in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (160, 50)])
def test_a_failed_device_differs_from_a_done_one_and_from_failed_measurements(width: int, height: int) -> None:
    failed = dataclasses.replace(snapshot(1).devices[0], state="failed", failures=0, device="board-9")
    view = dataclasses.replace(snapshot(0), devices=(failed, snapshot(6).devices[5]))
    text = text_of(view, width, height)
    assert text.count("✗ failed") == text.count("✓ done") == 1
    assert "1 failed, 1 done" in text
    styles = {
        segment.text.strip(): segment.style
        for strip in frame_strips(view, width, height)
        for segment in strip
        if segment.text.strip() in ("✗ failed", "✓ done")
    }
    assert styles["✗ failed"] != styles["✓ done"]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_header_warns_of_slowed_measurements(width: int, height: int) -> None:
    quiet, slowed = snapshot(2).devices
    slowed = dataclasses.replace(slowed, quality=DataQuality(ok=2, slowed=10, largest_slowdown=5.213, regimes=2))
    quiet = dataclasses.replace(quiet, quality=DataQuality(ok=30, slowed=10, largest_slowdown=1.5, regimes=1))
    text = text_of(dataclasses.replace(snapshot(0), devices=(quiet, slowed)), width, height)
    assert text.splitlines()[2].startswith("WARNING: 10 of 12")
    assert "WARNING" not in text_of(dataclasses.replace(snapshot(0), devices=(quiet, quiet)), width, height)
    if width == 160:
        assert "2 ok, 0 noisy, 10 slowed; largest slow-down 5.21x" in text
        assert "slowed down on board-1/onnxruntime_cpu_2t_fp32, up to 5.21x" in text
    if width == 80:
        assert "10 slowed" in text.split("board-1", 2)[2]


def test_a_predictor_error_over_few_measurements_is_not_shown() -> None:
    device = dataclasses.replace(snapshot(1).devices[0], predictor_error=PredictorError(59.03, 0.1, 2))
    for width, height in ((80, 10), (80, 24), (120, 40), (160, 50)):
        text = text_of(dataclasses.replace(snapshot(0), devices=(device,)), width, height)
        assert "59.0" not in text
        assert "too few" in text


def test_what_is_said_of_targets_stands_beside_them() -> None:
    target = TargetSnapshot(
        4.0, 3.2, 3.3, 3.4, met=True, typical_ms=3.7, note="constrains nothing: the largest subnet takes 3.7 ms"
    )
    device = DeviceSnapshot(
        "board", "ort", "done", targets=(target,), targets_asked=1, targets_note="1 target instead of 4: a narrow range"
    )
    text = text_of(dataclasses.replace(snapshot(0), devices=(device,)), 160, 50)
    assert "✓ met; typical 3.70 ms; constrains nothing: the largest subnet takes 3.7 ms" in text
    assert "1 target instead of 4: a narrow range" in text
    missed = dataclasses.replace(target, met=False, target_ms=3.5, reason="within it in a lucky moment only", note="")
    text = text_of(dataclasses.replace(snapshot(0), devices=(dataclasses.replace(device, targets=(missed,)),)), 160, 50)
    assert "✗ within it in a lucky moment only; typical 3.70 ms" in text


@pytest.mark.parametrize("state", ["lost", "failed", "idle"])
def test_why_a_device_does_nothing_is_shown(state: str) -> None:
    device = next(device for device in snapshot(9).devices if device.state == state)
    for height in (12, 24):
        text = text_of(dataclasses.replace(snapshot(0), devices=(device,)), 120, height)
        assert device.state_detail in text


def test_devices_that_do_not_fit_are_counted() -> None:
    text = text_of(snapshot(40, log=0), 100, 16)
    shown = sum(f"board-{index} " in text for index in range(40))
    rest = next(line for line in text.splitlines() if line.startswith("and "))
    assert rest.startswith(f"and {40 - shown} more: ")
    counted = [int(part.split()[0]) for part in rest.split(": ")[1].split(", ")]
    assert sum(counted) == 40 - shown
    assert text.count("✗ lost") == 5


def test_more_room_shows_more_detail() -> None:
    assert "╭" in text_of(snapshot(3), 160, 50)
    sections = text_of(snapshot(3), 80, 24)
    assert "╭" not in sections
    assert sections.count("target ms") == 3
    assert "target ms" not in text_of(snapshot(12), 80, 24)


def test_settings_of_one_device_can_be_told_apart_when_narrow() -> None:
    devices = tuple(
        dataclasses.replace(snapshot(1).devices[0], setting_label=f"onnxruntime_cpu_{threads}t_fp32_opt-basic")
        for threads in (1, 2)
    )
    lines = text_of(dataclasses.replace(snapshot(0, log=0), devices=devices), 60, 8).splitlines()
    first, second = (line for line in lines if "board-0" in line)
    assert first != second


def test_text_from_a_device_cannot_steer_the_terminal() -> None:
    hostile = "x\x1b[2Jy\nz\x9b1m[bold red]"
    device = DeviceSnapshot(hostile, hostile, "lost", hostile, targets=(TargetSnapshot(1.0, reason=hostile),))
    view = dataclasses.replace(snapshot(0), supernet=hostile, devices=(device,), log=(hostile,))
    for width, height in SIZES:
        text = text_of(view, width, height)
        assert not {"\x1b", "\x9b"} & set(text)
        assert len(text.splitlines()) <= height
    assert "[bold red]" in text_of(view, 160, 50)


def test_a_terminal_without_utf8_gets_ascii() -> None:
    text = text_of(snapshot(9), 160, 50, encoding="ascii")
    assert text.isascii()
    assert "?" not in text.replace("? not yet verified", "")
    assert "+ met" in text


def test_wide_characters_keep_their_columns() -> None:
    device = dataclasses.replace(snapshot(1).devices[0], state_detail="測定中" * 30)
    for width in (41, 80, 81):
        strips = frame_strips(dataclasses.replace(snapshot(0), devices=(device,)), width, 24)
        assert {sum(cell_len(segment.text) for segment in strip) for strip in strips} == {width}


def frames_of(view: LiveView, console: Console) -> int:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().count("run-0001")


def test_it_draws_at_most_as_often_as_asked() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    now_s = itertools.count(0.0, 0.1)
    view = LiveView(console, refresh_per_s=4.0, clock=lambda: next(now_s))
    for second in range(30):
        view.update(dataclasses.replace(snapshot(3), now_s=STARTED_S + second))
    assert frames_of(view, console) == 10
    view.close()


def test_an_unchanged_snapshot_is_not_drawn_again() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    now_s = itertools.count()
    view = LiveView(console, clock=lambda: float(next(now_s)))
    for _ in range(5):
        view.update(snapshot(3))
    assert frames_of(view, console) == 1
    view.close()


def test_events_and_notes_stand_below_the_devices_in_the_order_they_came() -> None:
    console = Console(file=io.StringIO(), width=160, height=50, force_terminal=True)
    now_s = itertools.count()
    view = LiveView(console, clock=lambda: float(next(now_s)))
    noted = dataclasses.replace(snapshot(1, log=0), log=("board-9: it has no free disk",))
    view.update(noted)
    view.event(JOINED)
    view.update(dataclasses.replace(noted, log=(*noted.log, "board-9: it has no free disk")))
    view.close()
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().split("\x1b[?1049l")[1].splitlines()[-3:]
    assert [line.strip() for line in last] == [
        "22:14:43 board-9: it has no free disk",
        "22:13:20 board-0 joined: Raspberry Pi 4, onnxruntime_cpu_1t_fp32",
        "22:14:43 board-9: it has no free disk",
    ]


def test_the_last_snapshot_stays_on_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    view = LiveView(console, clock=lambda: 0.0)
    view.update(snapshot(3))
    view.update(dataclasses.replace(snapshot(3), phase="finished"))
    view.close()
    view.close()
    assert isinstance(console.file, io.StringIO)
    screen, rest = console.file.getvalue().split("\x1b[?1049l")
    assert "finished" not in screen
    assert rest.count("finished") == 1
    assert "\x1b[?25h" in console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_summary_tells_each_target_and_each_device(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    finished = device_outcome("board-a")
    lost = dataclasses.replace(
        device_outcome("board-b", threads=2, status=SettingStatus.LOST), predictor=PredictorError(9.1, None, 4)
    )
    console.print(summary(campaign_outcome(finished, lost)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("✓ met") == 7
    flat = " ".join(text.split())
    assert "board-b/onnxruntime_cpu_2t_fp32: lost (no heartbeat for 90 s)" in flat
    assert "4.2 % on 12 held out" in flat
    assert "predictor error too few to tell (4 held out)" in flat
    assert "9.1 %" not in flat
    assert "2 device settings: 1 finished, 1 lost" in flat
    assert "7 of 8 targets met by a fresh re-measurement" in flat
    assert max(cell_len(line) for line in text.splitlines()) <= width
