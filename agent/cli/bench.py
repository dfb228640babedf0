"""The command `fleetnas-agent bench`: its options and its output."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fleetnas.agent.cli.options import add_setting_options, chosen_settings, duration, positive
from fleetnas.agent.host.limits import core_list, read_limits, thread_objection
from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.runtimes.input_shapes import InputShapes, parse_input_shape, spell
from fleetnas.agent.runtimes.settings import RUNTIMES
from fleetnas.agent.service.state_folder import default_engine_folder
from fleetnas.device_profiles.plain_text import ascii_json
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting

if TYPE_CHECKING:
    from fleetnas.agent.measuring.messages import LoadedReply, MeasuredReply, PhaseReply, WindowReply
    from fleetnas.agent.measuring.sustained import SustainedRun
    from fleetnas.agent.runtimes.timing import Timing

BENCH_DESCRIPTION = """\
Measure an .onnx or .tflite file: its latency as it ran. With --sustained, run it without a pause for minutes and
show how its latency changes while the device warms up."""

BENCH_EPILOG = """\
why --sustained:
  A device without a fan is slower after minutes of work than at the beginning, and some models lose more than others:
  the faster one of two in the first minute may be the slower one after half an hour. Let the device cool down first.
  Ctrl-C ends the run early and summarises the windows so far.

examples:
  fleetnas-agent bench model.onnx --threads 4
  fleetnas-agent bench model.onnx --input-shape 1x3x224x224
  fleetnas-agent bench model.onnx --profile
  fleetnas-agent bench model.tflite --sustained 30m --csv windows.csv
  fleetnas-agent bench model.tflite --runtime adb --sustained 30m"""

_WINDOW_S = 10.0
#: A beginning, an end, and something between them.
_MIN_WINDOWS = 3
#: What a median needs.
_MIN_RUNS = 3
#: The least demanding `--half-width`.
_WIDEST_PERCENT = 100.0
_STANDARD = MeasurementProtocol()
_ENDS = {
    "precise": "until precise enough",
    "out of reach": "not precise enough, and not to be within --max-time",
    "time over": "not precise enough when --max-time was over",
}


def add_bench_options(bench: argparse.ArgumentParser) -> None:
    """Add all options of `bench`."""
    bench.set_defaults(command=run_bench)
    bench.add_argument("model", type=Path, metavar="MODEL", help="the model file")
    bench.add_argument("--runtime", choices=RUNTIMES, help="(default: by the file's suffix, onnxruntime or litert)")
    add_setting_options(bench)
    bench.add_argument(
        "--input-shape",
        type=parse_input_shape,
        action="append",
        metavar="[NAME=]SHAPE",
        help="shape of an input that leaves more open than its batch, such as 1x3x224x224; repeat it with names where "
        "there are several",
    )
    once = bench.add_argument_group("one measurement")
    once.add_argument("--runs", type=positive, help=f"timed runs, at least (default: {_STANDARD.min_runs})")
    once.add_argument("--time", type=float, metavar="S", help=f"seconds timed, at least (default: {_STANDARD.min_s})")
    once.add_argument(
        "--max-time", type=float, metavar="S", help=f"seconds timed, at most (default: {_STANDARD.max_s})"
    )
    once.add_argument(
        "--half-width",
        type=float,
        metavar="PERCENT",
        help="stop as soon as the 95 %% half-width of the median is this narrow "
        f"(default: {_STANDARD.half_width_percent:g})",
    )
    once.add_argument(
        "--profile", action="store_true", help="time the model's layers too, by the profiler of onnxruntime"
    )
    sustained = bench.add_argument_group("sustained run")
    sustained.add_argument(
        "--sustained", type=duration, metavar="TIME", help="run without a pause for this time: 90s, 30m, 1h, 1h30m"
    )
    sustained.add_argument(
        "--window", type=duration, metavar="TIME", help=f"report one latency per window (default: {_WINDOW_S:g}s)"
    )
    sustained.add_argument("--csv", type=Path, metavar="FILE", help="write the windows to FILE as they end")
    bench.add_argument("--json", action="store_true", help="print one JSON object: raw times, or all windows")


def run_bench(options: argparse.Namespace) -> int:
    """Measure a model file and print the latency; return the exit code."""
    from fleetnas.agent.measuring.bench import PROFILED, runtime_for

    once = ("runs", "time", "max_time", "half_width", "profile")
    wrong = once if options.sustained is not None else ("window", "csv")
    for name in wrong:
        if getattr(options, name) not in (None, False):
            only = "cannot be combined with" if options.sustained is not None else "needs"
            raise UsageError(f"--{name.replace('_', '-')} {only} --sustained")
    if options.runs is not None and options.runs < _MIN_RUNS:
        raise UsageError(f"--runs {options.runs} is too few to tell anything; give at least {_MIN_RUNS}")
    if options.half_width is not None and not 0 < options.half_width <= _WIDEST_PERCENT:
        raise UsageError(f"--half-width {options.half_width:g} is no half-width; give a percentage above 0, such as 1")
    runtime = runtime_for(options.model, options.runtime)
    if options.profile and runtime not in PROFILED:
        raise UsageError(
            f"--profile is not to be had of runtime {runtime}, whose profiler Python does not reach; leave it out, or "
            "give an .onnx file"
        )
    (setting,) = chosen_settings(argparse.Namespace(**{**vars(options), "runtime": runtime}), [])
    named = options.input_shape or []
    shapes = dict(named)
    if len(shapes) < len(named):
        raise UsageError("--input-shape names an input twice; give each input one shape, as NAME=SHAPE")
    if objection := thread_objection(setting, read_limits()):
        sys.stderr.write(f"note: {objection}\n")
    measure = _measure_once if options.sustained is None else _measure_sustained
    return measure(options, setting, shapes)


def _measure_once(options: argparse.Namespace, setting: RuntimeSetting, shapes: InputShapes) -> int:
    from fleetnas.agent.measuring.bench import bench_model

    min_s = _STANDARD.min_s if options.time is None else options.time
    max_s = max(_STANDARD.max_s, min_s) if options.max_time is None else options.max_time
    if max_s < min_s:
        raise UsageError(f"--max-time {max_s:g} is below the {min_s:g} s that are timed at least; raise it, or --time")
    protocol = MeasurementProtocol(
        min_runs=options.runs or _STANDARD.min_runs,
        min_s=min_s,
        max_s=max_s,
        half_width_percent=options.half_width or _STANDARD.half_width_percent,
    )
    engines = default_engine_folder()
    reply = bench_model(
        options.model, setting, protocol, _print_waiting, shapes, engine_folder=engines, profile=options.profile
    )
    if options.json:
        unused = {"kind", "paired", "levels_ms"} | (set() if options.profile else {"layers"})
        sys.stdout.write(ascii_json(reply.model_dump_json(exclude=unused)) + "\n")
        return 0
    timing = reply.timing
    sys.stdout.write(
        f"{options.model.name} on {setting.label} ({reply.provider}); {_ran_as(reply)}\n"
        f"median {timing.median_ms:.4g} ms, 95 % within {timing.half_width_percent:.2g} %"
        f"{' (noisy)' if timing.noisy else ''}\n"
        f"min {timing.min_ms:.4g} ms, p90 {timing.p90_ms:.4g} ms, MAD {timing.mad_ms:.2g} ms, "
        f"{timing.runs} samples of {timing.inner_loops} inferences\n"
        f"{_course(timing)}"
        f"loaded in {reply.load_ms:.0f} ms; SHA-256 {reply.model_sha256}\n"
    )
    if reply.layers:
        from fleetnas.agent.cli.layer_lines import layer_lines

        lines = layer_lines(reply.layers, ascii_only=not _can_print("█"))
        sys.stdout.write("".join(f"{line}\n" for line in ("", *lines)))
    return 0


def _course(timing: Timing) -> str:
    """Describe the warm-up and the end of a measurement; nothing if another program decided about them."""
    if timing.end is None:
        return ""
    return (
        f"warmed up with {timing.warmup_runs} runs in {timing.warmup_s:.2f} s; timed for "
        f"{timing.inference_s - timing.warmup_s:.2f} s in {len(timing.block_medians_ms)} blocks, {_ENDS[timing.end]}\n"
    )


def _measure_sustained(options: argparse.Namespace, setting: RuntimeSetting, shapes: InputShapes) -> int:
    from fleetnas.agent.cli.sustained_report import json_object
    from fleetnas.agent.measuring.sustained import run_sustained

    window_s = _WINDOW_S if options.window is None else options.window
    if options.sustained / window_s < _MIN_WINDOWS - 1e-6:
        raise UsageError(
            f"--sustained {options.sustained:g}s is shorter than {_MIN_WINDOWS} windows of {window_s:g} s; make it "
            "longer, or the windows shorter with --window"
        )
    title = f"{options.model.name} on {setting.label}"
    with contextlib.nullcontext() if options.csv is None else _open_csv(options.csv) as file:
        progress = _Progress(title, file, quiet=options.json)
        run = run_sustained(
            options.model,
            setting,
            options.sustained,
            window_s,
            progress.show,
            shapes,
            engine_folder=default_engine_folder(),
        )
    if options.json:
        about = {"model": options.model.name, "setting": setting.model_dump(), "window_s": window_s}
        sys.stdout.write(json.dumps(json_object(run, **about, asked_s=options.sustained)) + "\n")
    else:
        _print_summary(run)
    if run.failure:
        raise FleetnasError(f"the run ended after {len(run.windows)} windows: {run.failure}")
    return 0


class _Progress:
    """Prints each window as it ends, and writes it to the CSV file, if there is one."""

    def __init__(self, title: str, file: TextIO | None, *, quiet: bool) -> None:
        from fleetnas.agent.cli.sustained_report import WindowTable

        self._title, self._quiet = title, quiet
        self._table = WindowTable(file) if file is not None else None
        self._windows: list[WindowReply] = []

    def show(self, reply: PhaseReply | LoadedReply | WindowReply) -> None:
        """Handle one reply of the child."""
        from fleetnas.agent.cli.sustained_report import LINE_HEADER, window_line

        if reply.kind == "phase":
            _print_waiting(reply)
        elif reply.kind == "loaded":
            self._print(f"{self._title} ({reply.provider}); {_ran_as(reply)}\n{LINE_HEADER}")
        else:
            self._windows.append(reply)
            self._write(reply)
            self._print(window_line(reply, self._windows))

    def _print(self, text: str) -> None:
        if not self._quiet:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def _write(self, window: WindowReply) -> None:
        if self._table is None:
            return
        try:
            self._table.add(window)
        except OSError as error:  # such as a full disk: the run itself goes on
            self._table = None
            sys.stderr.write(f"the CSV file ends at {window.begin_s:.0f} s: {error.strerror}\n")


def _print_summary(run: SustainedRun) -> None:
    from fleetnas.agent.cli.sustained_chart import draw_chart
    from fleetnas.agent.cli.sustained_report import summary_lines
    from fleetnas.agent.measuring.sustained import summarise

    summary = summarise(run.windows)
    ascii_only = not _can_print("█│")
    width = shutil.get_terminal_size().columns
    chart = draw_chart(run.windows, summary.fastest_early_ms, width=width, ascii_only=ascii_only)
    sys.stdout.write("".join(f"{line}\n" for line in ("", *chart, "", *summary_lines(run, summary))))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _open_csv(path: Path) -> TextIO:
    from fleetnas.supernet_export.output_files import check_suffix

    check_suffix("--csv", path, ".csv")
    try:
        return path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another file for --csv") from error


def _ran_as(reply: MeasuredReply | LoadedReply) -> str:
    """Describe what was timed: the inputs' shapes and the cores."""
    shapes = ", ".join(f"{name} {spell(shape)}" for name, shape in reply.input_shapes.items())
    cores = f"; cores {core_list(reply.cores)}" if reply.cores else ""
    return f"input {shapes or 'of a shape that the program chose'}{cores}"


def _print_waiting(reply: PhaseReply) -> None:
    if reply.phase == "waiting":
        sys.stderr.write(f"waiting for another agent of this host, which holds {default_host_lock_path()}\n")
        sys.stderr.flush()
