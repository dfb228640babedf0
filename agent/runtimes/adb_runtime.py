"""Run models on an Android phone on a USB cable, with Google's `benchmark_model`, driven from this host.

The tool prints a summary per invocation and no raw times, so a measurement is one invocation per block.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from typing import ClassVar

from fleetnas.agent.host.limits import core_list, core_numbers
from fleetnas.agent.host.process_lifetime import is_alive
from fleetnas.agent.runtimes.adb import COMMAND_TIMEOUT_S, Adb
from fleetnas.agent.runtimes.base import OnBlock, ProviderFallbackError, Runtime, TimedModel
from fleetnas.agent.runtimes.benchmark_model import parse_output, summarise_blocks
from fleetnas.agent.runtimes.input_shapes import Shape, choose_shapes
from fleetnas.agent.runtimes.model_file import ModelFile, tflite_inputs
from fleetnas.agent.runtimes.phone import describe_phone, read_phone_conditions
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.fleet_protocol.messages import Conditions, MeasurementProtocol, RuntimeSetting

#: Path of `benchmark_model` on the phone.
TOOL_VARIABLE = "FLEETNAS_ADB_TOOL"
DEFAULT_TOOL = "/data/local/tmp/benchmark_model"
_FOLDER = "/data/local/tmp/fleetnas"
#: A model's file on the phone: its hash, the process that pushed it, and a number.
_REMOTE_FILE = re.compile(r"[0-9a-f]{16}-([1-9][0-9]{0,8})-[0-9]{1,10}\.tflite", re.ASCII)

#: Our names of delegates and the tool's flags.
PROVIDERS = {
    "cpu": (),
    "xnnpack": ("--use_xnnpack=true",),
    "builtin": ("--use_xnnpack=false",),
    "gpu": ("--use_gpu=true",),
    "nnapi": ("--use_nnapi=true",),
}
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s*([0-9,-]+)\s*$", re.MULTILINE)
_APPLIED = re.compile(r"Explicitly applied (\w+) delegate")


class AdbRuntime(Runtime):
    """Runs models with `benchmark_model` on a phone."""

    name: ClassVar[str] = "adb"

    def __init__(self, adb: Adb | None = None) -> None:
        self._adb = adb or Adb()
        self._tool = os.environ.get(TOOL_VARIABLE, DEFAULT_TOOL)
        self._numbers = itertools.count()

    def version(self) -> str:
        """Return the version of what runs the models; `RuntimeUnavailableError` if it is missing."""
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
        """Return the providers that are offered here."""
        return tuple(PROVIDERS)

    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> TimedModel:
        """Make a model ready to run; see `Runtime.load` for the errors."""
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
        """Raise `UsageError` if the phone would run on other cores: its kernel ignores cores that it does not have."""
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
        """Return the phone's profile."""
        return describe_phone(self._adb)

    def conditions(self) -> Conditions:
        """Return level, state and temperature of the phone's battery."""
        return read_phone_conditions(self._adb)

    def _remove_abandoned(self) -> None:
        """Remove models on the phone whose process on this host does not live any more."""
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
        """The chosen shapes, by name; empty if this host cannot read the model."""
        return self._shapes

    def check(self) -> None:
        """Run the model once; `ProviderFallbackError` if the chosen delegate does not take it."""
        text = self._invoke(runs=1, seconds=0.0, warm_up_runs=1, warm_up_s=0.0, limit_s=60.0)
        if self._setting.provider in ("gpu", "nnapi") and not _APPLIED.search(text):
            raise ProviderFallbackError(
                f"provider {self._setting.provider!r} was chosen and the phone would run the model on its "
                "processor; choose provider 'cpu', or one that this phone has"
            )

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        """Run the tool once per block; `RuntimeUnavailableError` if it fails."""
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
        """Remove the model from the phone."""
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
        return self._adb.run("shell", command, timeout_s=2 * limit_s + warm_up_s + COMMAND_TIMEOUT_S)


def _own_shapes(own: ModelFile) -> dict[str, Shape]:
    """Return the input shapes of a user's model; empty if none was chosen and this host cannot read the model."""
    declared = tflite_inputs(own.content)
    if declared is not None:
        return choose_shapes(declared, own.input_shapes)
    if "" in own.input_shapes:
        raise UsageError(
            "the names of the model's inputs cannot be read here; give --input-shape NAME=SHAPE, or run: "
            + install_extra("litert")
        )
    return dict(own.input_shapes)


def _mask(cores: tuple[int, ...]) -> str:
    """Return the core mask that `taskset` takes."""
    return f"{sum(1 << core for core in cores):x}"
