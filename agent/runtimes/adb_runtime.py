"""An Android phone on a USB cable: models run there, in Google's `benchmark_model`, driven from this host.

The tool prints a summary per invocation and no raw times, so a measurement is one invocation per block.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import ClassVar

from fleetnas.agent.host.battery import BatteryState
from fleetnas.agent.host.limits import core_list, core_numbers
from fleetnas.agent.host.process_lifetime import is_alive, tied_to_this_process
from fleetnas.agent.host.units import battery_celsius, percent
from fleetnas.agent.runtimes.base import OnBlock, ProviderFallbackError, Runtime, TimedModel
from fleetnas.agent.runtimes.input_shapes import Shape, choose_shapes
from fleetnas.agent.runtimes.model_file import ModelFile, tflite_inputs
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.device_profiles.plain_text import plain
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol.child_process import child_environment
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import Conditions, MeasurementProtocol, RuntimeSetting

#: Which phone, as `adb devices` calls it, and where `benchmark_model` lies on it. One agent drives one phone.
SERIAL_VARIABLE = "FLEETNAS_ADB_SERIAL"
TOOL_VARIABLE = "FLEETNAS_ADB_TOOL"
DEFAULT_TOOL = "/data/local/tmp/benchmark_model"
_MARK = "--- fleetnas "
_FOLDER = "/data/local/tmp/fleetnas"
#: The files that describe a phone, as its shell finds them, and the only names that it may answer with: each is the
#: name of a file that is written here.
_DESCRIBING_FILES = "/proc/cpuinfo /proc/meminfo /sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
_DESCRIBING_FILE = re.compile(
    r"/proc/(?:cpuinfo|meminfo)|/sys/devices/system/cpu/cpu[0-9]{1,3}/cpufreq/cpuinfo_max_freq", re.ASCII
)
#: More than any of them has.
_MAX_FILE_CHARACTERS = 1 << 18
#: A model on the phone: its hash, the process that put it there, and a number.
_REMOTE_FILE = re.compile(r"[0-9a-f]{16}-([1-9][0-9]{0,8})-[0-9]{1,10}\.tflite", re.ASCII)

#: Our names of delegates and the tool's flags.
PROVIDERS = {
    "cpu": (),
    "xnnpack": ("--use_xnnpack=true",),
    "builtin": ("--use_xnnpack=false",),
    "gpu": ("--use_gpu=true",),
    "nnapi": ("--use_nnapi=true",),
}
#: Android's `BatteryManager`: charging, discharging, not charging, full.
_BATTERY_STATES: dict[int, BatteryState] = {2: "charging", 3: "discharging", 4: "idle", 5: "idle"}
_BATTERY_FIELD = re.compile(r"^\s*(level|scale|status|temperature): (-?[0-9]{1,6})\s*$", re.MULTILINE)
_NO_BATTERY = re.compile(r"^\s*present: false\s*$", re.MULTILINE)
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*([0-9,-]+)\s*$", re.MULTILINE)
_COMMAND_TIMEOUT_S = 60.0
_STATISTICS = re.compile(r"\bcount=(\d+)\b(.*)")
_FIELD = re.compile(r"(\w+)=([0-9.eE+-]+)")
_INIT_MS = re.compile(r"Initialized session in ([0-9.]+) ?ms")
_APPLIED = re.compile(r"Explicitly applied (\w+) delegate")
#: Efficiency of the median on normal samples: its standard error is this times the mean's (pi / 2, square root).
_MEDIAN_ERROR = math.sqrt(math.pi / 2)
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """What `benchmark_model` says about its timed runs, in microseconds."""

    count: int
    first_us: float
    min_us: float
    max_us: float
    mean_us: float
    deviation_us: float
    #: Recent versions only.
    median_us: float | None
    warm_up_us: float


def parse_output(text: str) -> ToolStatistics:
    """The statistics in the tool's output; `RuntimeUnavailableError` with its last line where there are none.

    The first `count=` line is the warm-up's, the last the timed runs'; with one run the tool leaves fields out.
    """
    found = [(int(count), dict(_FIELD.findall(rest))) for count, rest in _STATISTICS.findall(text)]
    if not found:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raise RuntimeUnavailableError(
            f"benchmark_model gave no timings; it ended with: {lines[-1][:200] if lines else 'nothing'}"
        )
    count, fields = found[-1]
    try:
        values = {name: float(value) for name, value in fields.items()}
        latest = values.get("curr", values.get("first", 0.0))
        warm_count, warm_fields = found[0]
        warm_mean = float(warm_fields.get("avg") or warm_fields.get("curr") or 0.0)
        statistics = ToolStatistics(
            count=count,
            first_us=values.get("first", latest),
            min_us=values.get("min", latest),
            max_us=values.get("max", latest),
            mean_us=values.get("avg", latest),
            deviation_us=values.get("std", 0.0),
            median_us=values.get("median"),
            warm_up_us=warm_count * warm_mean if len(found) > 1 else 0.0,
        )
    except ValueError as error:
        raise RuntimeUnavailableError(f"benchmark_model printed a number that is none: {error}") from error
    if statistics.count < 1 or statistics.min_us <= 0 or statistics.mean_us <= 0:
        raise RuntimeUnavailableError(f"benchmark_model printed impossible timings: count={count} {fields}")
    return statistics


class Adb:
    """The `adb` program and one phone."""

    def __init__(self, serial: str | None = None) -> None:
        chosen = serial if serial is not None else os.environ.get(SERIAL_VARIABLE, "")
        self._prefix = ["adb", *(("-s", chosen) if chosen else ())]

    def run(self, *words: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """What an adb command printed; `RuntimeUnavailableError` with its errors and what to do where it fails.

        What it says on standard error beside that, such as that its server was started, is no part of the answer.
        """
        try:
            done = subprocess.run(
                [*self._prefix, *words],
                env=child_environment(),
                stdin=subprocess.DEVNULL,  # ours brings the agent's orders
                preexec_fn=tied_to_this_process(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as error:
            raise RuntimeUnavailableError(
                "adb is not installed; run: sudo apt install adb, or install Android's platform tools"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeUnavailableError(
                f"the phone did not answer `adb {words[0]}` within {timeout_s:g} s; check its cable and screen"
            ) from error
        if done.returncode != 0:
            said = " ".join(f"{done.stdout}\n{done.stderr}".split())[-300:]
            raise RuntimeUnavailableError(f"`adb {' '.join(words)[:100]}` failed: {said}{_advice(said)}")
        return done.stdout

    def shell(self, *words: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """What a command on the phone printed."""
        return self.run("shell", shlex.join(words), timeout_s=timeout_s)

    def property(self, name: str) -> str:
        """A system property of the phone, in one line."""
        return plain(" ".join(self.shell("getprop", name).split()))


class AdbRuntime(Runtime):
    """`benchmark_model` on a phone."""

    name: ClassVar[str] = "adb"

    def __init__(self, adb: Adb | None = None) -> None:
        self._adb = adb or Adb()
        self._tool = os.environ.get(TOOL_VARIABLE, DEFAULT_TOOL)
        self._numbers = itertools.count()

    def version(self) -> str:
        model = self._adb.property("ro.product.model")
        release = self._adb.property("ro.build.version.release")
        listed = self._adb.run("shell", f"ls {shlex.quote(self._tool)} || true")
        if self._tool not in (line.strip() for line in listed.splitlines()):
            raise RuntimeUnavailableError(
                f"there is no {self._tool} on the phone; download Google's benchmark_model for android_aarch64, then: "
                f"adb push benchmark_model {self._tool} && adb shell chmod +x {self._tool}"
            )
        return f"benchmark_model on {model}, Android {release}"

    def providers(self) -> tuple[str, ...]:
        return tuple(PROVIDERS)

    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> TimedModel:
        if setting.provider not in PROVIDERS:
            raise ProviderFallbackError(
                f"provider {setting.provider!r} is not one of benchmark_model's: {', '.join(PROVIDERS)}"
            )
        shapes = _own_shapes(own) if own is not None else {}
        self._check_cores(setting.affinity)
        number = next(self._numbers)
        if number == 0:
            self._remove_abandoned()
        # Numbered, because a reference subnet may be measured itself: each is removed without the other.
        remote = f"{_FOLDER}/{hashlib.sha256(model).hexdigest()[:16]}-{os.getpid()}-{number}.tflite"
        with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
            file.write(model)
            file.flush()
            self._adb.shell("mkdir", "-p", _FOLDER)
            self._adb.run("push", file.name, remote)
        phone_model = _PhoneModel(self._adb, self._tool, remote, setting, shapes)
        phone_model.check()
        return phone_model

    def _check_cores(self, cores: tuple[int, ...]) -> None:
        """`UsageError` where the phone would run on other cores: its kernel leaves out what it does not have."""
        if not cores:
            return
        status = self._adb.run("shell", f"taskset {_mask(cores)} cat /proc/self/status || true")
        found = _ALLOWED.search(status)
        active = core_numbers(found[1]) if found else set()
        if active != set(cores):
            raise UsageError(
                f"the measurement cannot be pinned to cores {core_list(cores)} of the phone, which would run it on "
                f"{core_list(active) or 'cores that it does not name'}; change `affinity` in the setting"
            )

    def device(self) -> DeviceProfile:
        """The phone, from its own files: the same ones that describe a board."""
        from fleetnas.agent.host.device import describe_device

        text = self._adb.run("shell", f'for f in {_DESCRIBING_FILES}; do echo "{_MARK}$f"; cat $f || true; done')
        with tempfile.TemporaryDirectory() as folder:
            for name, content in _told_files(text).items():
                file = Path(folder, *Path(name).parts[1:])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
            return describe_device(
                Path(folder),
                model=self._adb.property("ro.product.model") or "Android device",
                machine=plain(" ".join(self._adb.shell("uname", "-m").split())) or "aarch64",
                operating_system=f"Android {self._adb.property('ro.build.version.release')}",
            )

    def conditions(self) -> Conditions:
        """Battery level and temperature, from the phone's battery service."""
        text = self._adb.run("shell", "dumpsys battery || true")
        if _NO_BATTERY.search(text):
            return Conditions()
        found = {name: int(value) for name, value in _BATTERY_FIELD.findall(text)}
        heat_c = battery_celsius(found["temperature"]) if "temperature" in found else None
        return of_readings(
            Conditions,
            temperature_c=heat_c,
            battery_percent=percent(100 * found["level"] / (found.get("scale") or 100)) if "level" in found else None,
            battery_state=_BATTERY_STATES.get(found.get("status", 0)),
            battery_temperature_c=heat_c,
        )

    def _remove_abandoned(self) -> None:
        """Remove the models that killed children of this host left on the phone."""
        listed = self._adb.run("shell", f"ls {_FOLDER} 2> /dev/null || true").splitlines()
        for found in filter(None, (_REMOTE_FILE.fullmatch(line.strip()) for line in listed)):
            if not is_alive(int(found[1])):
                self._adb.run("shell", f"rm -f {_FOLDER}/{found[0]}")


class _PhoneModel(TimedModel):
    def __init__(self, adb: Adb, tool: str, remote: str, setting: RuntimeSetting, shapes: Mapping[str, Shape]) -> None:
        self._adb, self._tool, self._remote, self._setting = adb, tool, remote, setting
        self._shapes = dict(shapes)
        self.provider = setting.provider

    @property
    def input_shapes(self) -> dict[str, Shape]:
        return self._shapes

    def check(self) -> None:
        """One run, to learn whether the delegate that was asked for takes the model."""
        text = self._invoke(runs=1, seconds=0.0, warm_up_runs=1, warm_up_s=0.0, limit_s=60.0)
        if self._setting.provider in ("gpu", "nnapi") and not _APPLIED.search(text):
            raise ProviderFallbackError(
                f"provider {self._setting.provider!r} was asked for and the phone would run the model on its "
                "processor; ask for provider 'cpu', or for one that this phone has"
            )

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        blocks = []
        for number in range(protocol.blocks):
            on_block(number / protocol.blocks)
            first = number == 0
            text = self._invoke(
                runs=math.ceil(protocol.min_runs / protocol.blocks),
                seconds=protocol.min_s / protocol.blocks,
                warm_up_runs=protocol.warmup_runs if first else 1,
                # The tool ends between blocks, and a clock that fell meanwhile has to rise again.
                warm_up_s=protocol.warmup_s if first else protocol.warmup_s / 4,
                limit_s=protocol.max_s / protocol.blocks,
            )
            blocks.append(parse_output(text))
        on_block(1.0)
        return summarise_blocks(blocks, protocol.half_width_percent)

    def close(self) -> None:
        self._adb.run("shell", f"rm -f {shlex.quote(self._remote)}")

    def _invoke(self, *, runs: int, seconds: float, warm_up_runs: int, warm_up_s: float, limit_s: float) -> str:
        flags = [
            f"--graph={self._remote}",
            f"--num_threads={self._setting.threads}",
            f"--num_runs={runs}",
            f"--min_secs={seconds:g}",
            f"--max_secs={limit_s:g}",
            f"--warmup_runs={warm_up_runs}",
            f"--warmup_min_secs={warm_up_s:g}",
            *PROVIDERS[self._setting.provider],
        ]
        if self._shapes:
            flags.append(f"--input_layer={','.join(self._shapes)}")
            flags.append(f"--input_layer_shape={':'.join(','.join(map(str, each)) for each in self._shapes.values())}")
        pinned = ["taskset", _mask(self._setting.affinity)] if self._setting.affinity else []
        # The tool writes its log, and with it the timings, to the phone's standard error.
        command = f"{shlex.join([*pinned, self._tool, *flags])} 2>&1"
        return self._adb.run("shell", command, timeout_s=2 * limit_s + warm_up_s + _COMMAND_TIMEOUT_S)


def _own_shapes(own: ModelFile) -> dict[str, Shape]:
    """The shapes of a user's model; empty where nothing was asked for and this host cannot read the model."""
    declared = tflite_inputs(own.content)
    if declared is not None:
        return choose_shapes(declared, own.input_shapes)
    if "" in own.input_shapes:
        raise UsageError(
            "the names of the model's inputs cannot be read here; give --input-shape NAME=SHAPE, or run: pip install "
            "'fleetnas[litert]'"
        )
    return dict(own.input_shapes)


def _mask(cores: tuple[int, ...]) -> str:
    """As `taskset` takes it."""
    return f"{sum(1 << core for core in cores):x}"


def summarise_blocks(blocks: Sequence[ToolStatistics], half_width_percent: float) -> Timing:
    """A timing from the tool's summaries, one per block.

    The tool gives moments instead of samples: where it prints no median, its mean stands for it, and the half-width is
    the larger of what the deviation implies for normal samples and of half the blocks' range.
    """
    centres = sorted((block.median_us if block.median_us is not None else block.mean_us) / 1000 for block in blocks)
    centre = centres[len(centres) // 2] if len(centres) % 2 else sum(centres[len(centres) // 2 - 1 :][:2]) / 2
    count = sum(block.count for block in blocks)
    deviation_ms = math.sqrt(sum(block.count * block.deviation_us**2 for block in blocks) / count) / 1000
    half_width_ms = max(_Z95 * _MEDIAN_ERROR * deviation_ms / math.sqrt(count), (centres[-1] - centres[0]) / 2)
    half_width = 100 * half_width_ms / centre
    in_order = [block.median_us if block.median_us is not None else block.mean_us for block in blocks]
    return Timing(
        median_ms=centre,
        # For normal samples the median absolute deviation is 0.6745 standard deviations, the 90th percentile 1.2816.
        mad_ms=0.6745 * deviation_ms,
        p90_ms=min(centre + 1.2816 * deviation_ms, max(block.max_us for block in blocks) / 1000),
        min_ms=min(block.min_us for block in blocks) / 1000,
        runs=count,
        inner_loops=1,
        half_width_percent=half_width,
        noisy=half_width > half_width_percent,
        times_us=tuple(in_order),
        block_medians_ms=tuple(value / 1000 for value in in_order),
        inference_s=sum(block.count * block.mean_us + block.warm_up_us for block in blocks) / 1e6,
    )


def _told_files(text: str) -> dict[str, str]:
    """The contents that the phone told, by path; what was not asked for is left out, and so is a second content."""
    told: dict[str, str] = {}
    for part in text.split(_MARK)[1:]:
        name, _, content = part.partition("\n")
        if _DESCRIBING_FILE.fullmatch(name.rstrip("\r")):
            told.setdefault(name.rstrip("\r"), content[:_MAX_FILE_CHARACTERS])
    return told


def _advice(said: str) -> str:
    if "unauthorized" in said:
        return "; unlock the phone and allow USB debugging for this computer"
    if "more than one device" in said:
        return f"; several phones are attached: set {SERIAL_VARIABLE} to one of `adb devices`, one agent each"
    if "no devices" in said or "not found" in said:
        return "; attach the phone, switch on USB debugging, and check `adb devices`"
    return ""
