"""`bench --sustained`: statistics, chart and duration on made-up windows; the real program on small models."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs import waiting
from rigs.runtime_stand_ins import attach_phone, provide_command
from rigs.supernets import random_bundle

from fleetnas.agent.cli.options import duration
from fleetnas.agent.cli.sustained_chart import draw_chart, format_time
from fleetnas.agent.cli.sustained_report import json_object, summary_lines, window_line
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.host_lock import hold_host_lock
from fleetnas.agent.measuring.messages import WindowReply
from fleetnas.agent.measuring.sustained import SustainedRun, slowdown, summarise
from fleetnas.agent.measuring.sustained_windows import measure_windows
from fleetnas.agent.runtimes.adb_runtime import AdbRuntime
from fleetnas.agent.runtimes.base import OnBlock, Runtime, TimedModel
from fleetnas.agent.runtimes.command_runtime import CommandRuntime
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.messages import Conditions, MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")


def windows_of(
    latencies_ms: list[float], window_s: float = 10.0, conditions: Callable[[int], Conditions] = lambda n: Conditions()
) -> list[WindowReply]:
    return [
        WindowReply(
            begin_s=number * window_s,
            end_s=(number + 1) * window_s,
            median_ms=latency_ms,
            p90_ms=latency_ms,
            min_ms=latency_ms,
            samples=100,
            conditions=conditions(number),
        )
        for number, latency_ms in enumerate(latencies_ms)
    ]


#: 30 minutes: 10 ms, from minute 5 to 15 a rise to 16 ms, then steady.
HEATING = windows_of([10.0 + 6.0 * min(max((number - 30) / 60, 0.0), 1.0) for number in range(180)])


# -- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("1h30m", 5400), ("1.5h", 5400), ("0.2s", 0.2)]
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-5m", "0s", "m30", "1d", "30m1h", "nan", "infs", "1e3s", "9" * 400 + "h"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="90s, 30m, 1h"):
        duration(text)


def test_time_is_written_with_hours_only_where_there_are_some() -> None:
    assert [format_time(seconds) for seconds in (0, 59.6, 750, 3600, 5400.4)] == [
        "0:00",
        "1:00",
        "12:30",
        "1:00:00",
        "1:30:00",
    ]


# -- statistics ------------------------------------------------------------------------------------------------------


def test_the_first_minute_is_compared_with_the_last_five() -> None:
    summary = summarise(HEATING)
    assert (summary.beginning_s, summary.end_s) == (60, 300)
    assert (summary.beginning_ms, summary.end_ms, summary.end_slowdown) == (10.0, 16.0, 1.6)
    assert (summary.fastest_early_ms, summary.slowest_ms, summary.slowest_slowdown) == (10.0, 16.0, 1.6)


def test_a_short_run_is_compared_in_thirds() -> None:
    summary = summarise(windows_of([10, 10, 10, 12, 12, 12, 15, 15, 15]))
    assert (summary.beginning_s, summary.end_s) == (30, 30)
    assert (summary.beginning_ms, summary.end_ms) == (10, 15)
    assert summarise(windows_of([7.0])).end_slowdown == 1.0


def test_steady_from_where_on_no_window_leaves_the_end_s_level() -> None:
    # 16 ms less 5 % is 15.2 ms; the first window above it is the 54th of the rise.
    assert summarise(HEATING).steady_from_s == 830.0
    assert summarise(windows_of([10.0] * 60)).steady_from_s == 0.0


def test_a_run_that_still_becomes_slower_at_its_end_is_not_steady() -> None:
    assert summarise(windows_of([10.0 + 0.2 * number for number in range(180)])).steady_from_s is None
    assert summarise(windows_of([10.0] * 80 + [20.0] * 12)).steady_from_s is None


def test_single_disturbed_windows_leave_a_run_steady_and_lasting_changes_do_not() -> None:
    disturbed = [30.0 if number % 7 == 3 else 10.0 for number in range(60)]
    assert summarise(windows_of(disturbed)).steady_from_s == 0.0
    assert summarise(windows_of([10.0] * 20 + [13.0] * 8 + [10.0] * 32)).steady_from_s == 280.0


def test_few_windows_do_not_tell_whether_a_run_became_steady() -> None:
    run = SustainedRun(windows=windows_of([10.0] * 5))
    assert summarise(run.windows).steady_from_s is None
    assert "5 windows are too few" in "\n".join(summary_lines(run, summarise(run.windows)))


def test_slow_down_refers_to_the_fastest_window_of_the_beginning_alone() -> None:
    windows = windows_of([12.0, 10.0, 11.0, *[20.0] * 30, 8.0])
    assert slowdown(windows[0], windows) == 1.2
    assert slowdown(windows[10], windows) == 2.0
    assert slowdown(windows[-1], windows) == 0.8
    assert slowdown(windows[0], windows[:1]) == 1.0


def test_throttling_is_counted_where_the_device_tells() -> None:
    told = windows_of([10.0] * 4, conditions=lambda n: Conditions(throttled=None if n == 0 else n > 1))
    assert summarise(told).throttled_windows == 2
    assert summarise(HEATING).throttled_windows is None


# -- what is printed -------------------------------------------------------------------------------------------------


def hot(number: int) -> Conditions:
    return Conditions(temperature_c=40.0 + number, clock_mhz=1800.0 - 10 * number, throttled=number > 20)


def test_a_live_line_has_what_was_measured_and_dashes_for_what_was_not() -> None:
    (window,) = windows_of([12.3456], window_s=750.0, conditions=lambda n: hot(31))
    assert window_line(window, [window]).split() == ["12:30", "12.35", "1.00x", "71.0", "1490", "yes"]
    (bare,) = windows_of([12.3456])
    assert window_line(bare, [bare]).split() == ["0:10", "12.35", "1.00x", "-", "-", "-"]


def test_the_summary_says_how_much_slower_and_since_when_it_is_steady() -> None:
    run = SustainedRun(windows=windows_of([window.median_ms for window in HEATING], conditions=hot))
    assert summary_lines(run, summarise(run.windows)) == [
        "first 1:00: 10 ms; last 5:00: 16 ms, 60 % slower",
        "fastest early window 10 ms, slowest 16 ms (1.60x)",
        "steady from 13:50 on (within 5 % of the end)",
        "temperature 40 C at first, 219 C at last, 219 at most",
        "clock 1800 MHz at first, 10 MHz at last, 1800 at most",
        "the device reported throttling in 159 of 180 windows",
    ]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [10, 40, 57, 80, 200])
def test_a_chart_fits_its_width_and_rises_with_the_latency(width: int, ascii_only: bool) -> None:
    windows = windows_of([window.median_ms for window in HEATING], conditions=hot)
    lines = draw_chart(windows, 10.0, width=width, ascii_only=ascii_only)
    limit = min(max(width, 40), 80)
    assert limit - 2 <= max(map(len, lines)) <= limit
    assert all(line == line.rstrip() for line in lines)
    assert all(line.isascii() for line in lines) == ascii_only
    titles = [number for number, line in enumerate(lines) if "," in line and "|" not in line and "│" not in line]
    latency, temperature, clock = (lines[begin + 1 : begin + 9] for begin in titles)
    assert (latency[0].split()[0], latency[0].split()[-1]) == ("16", "1.60x")
    assert (latency[-1].split()[0], latency[-1].split()[-1]) == ("10", "1.00x")
    full = "#" if ascii_only else "█"
    heights = [sum(row[column] == full for row in latency) for column in range(9, limit - 8)]
    assert heights == sorted(heights)
    assert (heights[0], heights[-1]) == (0, 8)
    assert [sum(row[column : column + 1] == full for row in temperature[:4]) for column in (9, limit - 9)] == [0, 4]
    assert [sum(row[column : column + 1] == full for row in clock[:4]) for column in (9, limit - 9)] == [4, 0]
    assert lines[-1].split() == ["0:00", "15:00", "30:00"]


def test_small_differences_do_not_fill_a_chart_and_constant_sensors_take_one_line() -> None:
    windows = windows_of([10.0, 10.1, 10.0, 10.1], conditions=lambda n: Conditions(clock_mhz=1800.0))
    lines = draw_chart(windows, 10.0)
    assert lines[1].split()[0] == "11"
    assert "█" not in "".join(lines[1:8])
    assert "clock, MHz: 1800 throughout" in lines
    assert "temperature, C: no sensor" in lines


@pytest.mark.parametrize(
    ("latency_ms", "label"), [(0.07964, "0.07964"), (0.0079641, "0.00796"), (12345.6, "1.2e+04"), (99.0, "99")]
)
def test_labels_keep_what_there_is_room_for(latency_ms: float, label: str) -> None:
    assert draw_chart(windows_of([latency_ms]), latency_ms)[8].split()[0] == label


def test_a_stretch_without_windows_is_blank() -> None:
    first, *_, last = windows_of([10.0] * 10)
    bottom = draw_chart([first, last], 10.0)[8]
    bars = bottom.partition("│")[2].rpartition(" ")[0]
    assert bars.strip("▁ ") == ""
    assert 0 < bars.count("▁") < len(bars)


@given(
    st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=20),
    st.lists(st.one_of(st.none(), st.floats(0.0, 1000.0)), min_size=20, max_size=20),
    st.integers(1, 300),
    st.booleans(),
)
def test_any_windows_can_be_summarised_and_drawn(
    latencies_ms: list[float], sensor: list[float | None], width: int, ascii_only: bool
) -> None:
    windows = windows_of(latencies_ms, conditions=lambda n: Conditions(temperature_c=sensor[n], clock_mhz=sensor[n]))
    run = SustainedRun(windows=windows)
    summary = summarise(windows)
    assert min(latencies_ms) <= summary.fastest_early_ms <= summary.beginning_ms
    assert summary.end_ms <= summary.slowest_ms == max(latencies_ms)
    assert summary.steady_from_s in (None, *(window.begin_s for window in windows))
    assert max(map(len, summary_lines(run, summary))) <= 100
    lines = draw_chart(windows, summary.fastest_early_ms, width=width, ascii_only=ascii_only)
    assert max(map(len, lines)) <= min(max(width, 40), 80)
    assert len(json_object(run)["windows"]) == len(windows)  # type: ignore[arg-type]


# -- windows of a model ----------------------------------------------------------------------------------------------


class SteppingModel(TimedModel):
    """Takes as long as it is asked to, on a clock of its own, and 0.5 s between two windows."""

    provider = "none"

    def __init__(self) -> None:
        self.now = 100.0
        self.protocols: list[MeasurementProtocol] = []

    def time(
        self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None, *, min_sample_ms: float = 1.0
    ) -> Timing:
        self.protocols.append(protocol)
        on_block(0.0)
        self.now += protocol.min_s
        on_block(1.0)
        return Timing(
            median_ms=float(len(self.protocols)),
            mad_ms=0,
            p90_ms=9,
            min_ms=1,
            runs=3,
            inner_loops=1,
            half_width_percent=50,
            noisy=True,
            times_us=(1000,),
            block_medians_ms=(1,),
            inference_s=1,
        )

    def clock(self) -> float:
        self.now += 0.25
        return self.now


class HostRuntime(Runtime):
    """A runtime of this host: the state is read from its own sensors."""

    name = "onnxruntime"

    def version(self) -> str:
        return "0"

    def providers(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, model: bytes, setting: RuntimeSetting) -> TimedModel:
        raise NotImplementedError


def test_windows_follow_each_other_until_the_time_is_over(tmp_path: Path) -> None:
    model = SteppingModel()
    windows = list(measure_windows(model, HostRuntime(), Sensors(tmp_path), 30.0, 8.0, model.clock))
    assert [window.median_ms for window in windows] == [1.0, 2.0, 3.0, 4.0]
    assert [protocol.min_s for protocol in model.protocols] == [8.0, 8.0, 8.0, 4.5]
    assert all(protocol.max_s == protocol.min_s and protocol.blocks == 1 for protocol in model.protocols)
    assert sum(protocol.warmup_s for protocol in model.protocols) < 0.1, "the device does not warm up unseen"
    assert all(before.end_s < after.begin_s for before, after in pairwise(windows))
    assert windows[0].conditions.temperature_c is None


def test_a_rest_that_is_shorter_than_half_a_window_is_left_out(tmp_path: Path) -> None:
    model = SteppingModel()
    windows = list(measure_windows(model, HostRuntime(), Sensors(tmp_path), 20.0, 8.0, model.clock))
    assert len(windows) == 2


def test_a_phone_that_answers_late_has_its_first_window_all_the_same(tmp_path: Path) -> None:
    model = SteppingModel()

    class LatePhone(HostRuntime):
        def conditions(self) -> Conditions:
            model.now += 60.0
            return Conditions(temperature_c=31.0)

    (window,) = measure_windows(model, LatePhone(), Sensors(tmp_path), 0.3, 0.2, model.clock)
    assert (window.begin_s, window.conditions.temperature_c) == (0.0, 31.0)
    assert model.protocols[0].min_s == 0.2


def model_bytes(tmp_path: Path, setting: RuntimeSetting) -> bytes:
    bundle = random_bundle(tmp_path / "digits.supernet", SPACE)
    return build_model(bundle, SPACE.decode(SPACE.smallest())[0], None, setting)


def test_a_phone_is_measured_window_by_window_and_its_own_temperature_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = attach_phone(tmp_path, monkeypatch)
    setting = RuntimeSetting(runtime="adb")
    runtime = AdbRuntime()
    windows = measure_windows(
        runtime.load(model_bytes(tmp_path, setting), setting), runtime, Sensors(), total_s=3600.0, window_s=0.05
    )
    found = [next(windows) for _ in range(3)]
    assert [window.conditions.temperature_c for window in found] == [31.2] * 3
    assert all(0 < window.min_ms <= window.median_ms for window in found)
    runs = [line for line in (phone / "log").read_text().splitlines() if "--min_secs=0.05 --max_secs=0.05" in line]
    assert len(runs) == 3


def test_a_user_s_own_program_is_run_once_per_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_command(tmp_path, monkeypatch)
    setting = RuntimeSetting(runtime="command")
    runtime = CommandRuntime()
    model = runtime.load(model_bytes(tmp_path, setting), setting)
    windows = measure_windows(model, runtime, Sensors(tmp_path), total_s=3600.0, window_s=0.05)
    assert [next(windows).samples for _ in range(2)] == [3, 3]
    model.close()


# -- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sustained")
    file = folder / "model.onnx"
    file.write_bytes(model_bytes(folder, RuntimeSetting()))
    return file


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def bench(model: Path, lock: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `fleetnas-agent bench MODEL` with the given options."""
    started: list[subprocess.Popen[str]] = []
    environment = {"FLEETNAS_HOST_LOCK": str(lock), "XDG_STATE_HOME": str(tmp_path / "state")}

    def start(*options: object, file: Path = model) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fleetnas.agent", "bench", str(file), *map(str, options)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def after_three_windows(process: subprocess.Popen[str]) -> None:
    """Read the title, the header and three windows."""
    lines = [waiting.line(process) for _ in range(5)]
    assert lines[0].startswith("model.onnx on onnxruntime_cpu_1t_fp32 (CPUExecutionProvider)"), lines
    assert [line.split()[2].endswith("x") for line in lines[2:]] == [True] * 3


class BusyError(Exception):
    pass


def busy() -> None:
    raise BusyError


def test_a_whole_run_as_json_and_csv(bench: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    table = tmp_path / "windows.csv"
    process = bench("--sustained", "0.7s", "--window", "0.1s", "--json", "--csv", table)
    output, errors = waiting.outputs(process)
    assert (process.returncode, errors) == (0, "")
    report = json.loads(output)
    windows = report["windows"]
    assert windows
    assert all(before["end_s"] <= after["begin_s"] for before, after in pairwise(windows))
    assert all(0 < window["min_ms"] <= window["median_ms"] <= window["p90_ms"] for window in windows)
    assert report["summary"]["slowest_ms"] == max(window["median_ms"] for window in windows)
    assert min(window["slowdown"] for window in windows) <= 1.0
    assert (report["interrupted"], report["failure"], report["asked_s"]) == (False, None, 0.7)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["median_ms"]) for row in rows] == pytest.approx([w["median_ms"] for w in windows], rel=1e-6)


def test_a_phone_on_a_cable_is_run_by_the_program(
    bench: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_phone(tmp_path, monkeypatch)
    file = tmp_path / "model.tflite"
    file.write_bytes(model_bytes(tmp_path, RuntimeSetting(runtime="adb")))
    process = bench(
        "--runtime", "adb", "--threads", "2", "--sustained", "0.3s", "--window", "0.1s", "--json", file=file
    )
    output, errors = waiting.outputs(process)
    assert (process.returncode, errors) == (0, "")
    report = json.loads(output)
    assert (report["setting"]["runtime"], report["setting"]["threads"]) == ("adb", 2)
    assert report["windows"][0]["conditions"]["battery_percent"] == 83


def test_the_host_lock_is_held_throughout_and_ctrl_c_summarises_what_there_is(
    bench: Callable[..., subprocess.Popen[str]], lock: Path
) -> None:
    process = bench("--sustained", "1h", "--window", "0.05s")
    after_three_windows(process)
    with pytest.raises(BusyError), hold_host_lock(lock, busy):
        pytest.fail("another agent could measure between two windows")
    process.send_signal(signal.SIGINT)
    output, errors = waiting.outputs(process)
    assert (process.returncode, errors) == (0, "")
    assert "latency as it ran, ms; right: slow-down" in output
    assert "fastest early window" in output
    assert "│" in output or "|" in output, "the chart; there may be more than three windows by now"
    with hold_host_lock(lock, busy):
        pass


def test_ctrl_c_before_the_first_window_just_ends(bench: Callable[..., subprocess.Popen[str]], lock: Path) -> None:
    with hold_host_lock(lock, busy):
        process = bench("--sustained", "1h")
        assert process.stderr is not None
        with waiting.watching(process):
            said = process.stderr.readline()
        assert said == f"waiting for another agent of this host, which holds {lock}\n"
        process.send_signal(signal.SIGINT)
        output, errors = waiting.outputs(process)
    assert (process.returncode, output, errors) == (130, "", "")


def test_a_run_whose_child_dies_summarises_its_windows_and_fails(
    bench: Callable[..., subprocess.Popen[str]],
) -> None:
    process = bench("--sustained", "1h", "--window", "0.05s")
    after_three_windows(process)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    output, errors = waiting.outputs(process)
    assert process.returncode == 1
    assert "fastest early window" in output
    assert "crashed: the measuring child was ended by signal SIGKILL" in errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--csv", "windows.csv"), "--csv needs --sustained"),
        (("--window", "5s"), "--window needs --sustained"),
        (("--sustained", "30m", "--max-time", "5"), "--max-time cannot be combined with --sustained"),
        (("--sustained", "20s"), "shorter than 3 windows of 10 s"),
        (("--sustained", "1m", "--csv", "/no/such/folder/windows.csv"), "--csv"),
        (("--sustained", "1m", "--runtime", "adb"), "onnxruntime or command"),
    ],
)
def test_options_that_do_not_fit_are_one_line_that_says_what_to_do(
    bench: Callable[..., subprocess.Popen[str]], options: tuple[str, ...], says: str
) -> None:
    process = bench(*options)
    output, errors = waiting.outputs(process)
    assert (process.returncode, output, errors.count("\n")) == (2, "", 1)
    assert says in errors
