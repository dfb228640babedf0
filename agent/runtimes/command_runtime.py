"""Run models with a program of the user's own that takes a model file and prints times, for unknown accelerators.

`FLEETNAS_COMMAND` holds its command line, with `{model}`, `{threads}`, `{runs}`, `{seconds}` and `{provider}` in it. It
warms up by itself, runs the model at least `{runs}` times and at least `{seconds}` s, and prints one line of JSON::

    {"times_ms": [4.11, 4.09, ...], "provider": "what really ran it", "warm_up_s": 0.5}

of which only `times_ms`, in order, must be there. The model is ONNX.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleetnas.agent.host.process_lifetime import tied_to_this_process
from fleetnas.agent.runtimes.base import OnBlock, ProviderFallbackError, Runtime, TimedModel
from fleetnas.agent.runtimes.input_shapes import DeclaredInput
from fleetnas.agent.runtimes.model_file import ModelFile, onnx_inputs
from fleetnas.agent.runtimes.timing import Timing, summarise
from fleetnas.device_profiles.quantities import Milliseconds, Provider, Seconds
from fleetnas.fleet_protocol.child_process import child_environment
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.interpreters.onnxruntime import TELEMETRY_OFF

COMMAND_VARIABLE = "FLEETNAS_COMMAND"
#: Loading the model, and a compiler that an accelerator may need first.
_SLACK_S = 600.0


class CommandReport(BaseModel):
    """The program's last line of JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    times_ms: list[Milliseconds] = Field(min_length=3)
    provider: Provider | None = None
    warm_up_s: Seconds = 0.0


class CommandRuntime(Runtime):
    """Runs models with the user's own program."""

    name: ClassVar[str] = "command"

    def __init__(self, command: str | None = None) -> None:
        self._command = command if command is not None else os.environ.get(COMMAND_VARIABLE, "")

    def version(self) -> str:
        """Return the version of what runs the models; `RuntimeUnavailableError` if it is missing."""
        self._check()
        return shlex.split(self._command)[0]

    def providers(self) -> tuple[str, ...]:
        """Return the providers that are offered here."""
        return ("cpu",)

    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> TimedModel:
        """Make a model ready to run; see `Runtime.load` for the errors."""
        self._check()
        if own is not None:  # as it is, with the weights that may lie beside it
            if own.input_shapes:
                raise UsageError("the program of runtime 'command' chooses its input shapes; leave out --input-shape")
            return _CommandModel(self._command, str(own.path), setting, onnx_inputs(own.content))
        file = tempfile.NamedTemporaryFile(prefix="fleetnas-", suffix=".onnx")  # noqa: SIM115 - closed with the model
        file.write(model)
        file.flush()
        return _CommandModel(self._command, file.name, setting, file=file)

    def _check(self) -> None:
        if "{model}" not in self._command:
            raise RuntimeUnavailableError(
                f"runtime 'command' needs the program's command line in ${COMMAND_VARIABLE}, with {{model}} in it; "
                f"it is {self._command!r} now"
            )


class _CommandModel(TimedModel):
    def __init__(
        self,
        command: str,
        path: str,
        setting: RuntimeSetting,
        inputs: Sequence[DeclaredInput] = (),
        file: tempfile._TemporaryFileWrapper[bytes] | None = None,
    ) -> None:
        self._command, self._path, self._setting = command, path, setting
        self._inputs, self._file = inputs, file
        self.provider = setting.provider

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the model fixes; empty if one is open: the program chooses it and does not report it."""
        fixed = {each.name: tuple(side for side in each.sides if side is not None) for each in self._inputs}
        return fixed if all(None not in each.sides for each in self._inputs) else {}

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        """Run the program once; `RuntimeUnavailableError` if it fails or prints no report."""
        values = {
            "{model}": self._path,
            "{threads}": str(self._setting.threads),
            "{runs}": str(protocol.min_runs),
            "{seconds}": f"{protocol.min_s:g}",
            "{provider}": self._setting.provider,
        }
        words = []
        for word in shlex.split(self._command):
            for place, value in values.items():
                word = word.replace(place, value)
            words.append(word)
        report = self._run(words, protocol.warmup_s + 2 * protocol.max_s + _SLACK_S)
        on_block(1.0)
        if report.provider is not None:
            if self._setting.provider != "cpu" and report.provider.lower() == "cpu":
                raise ProviderFallbackError(
                    f"provider {self._setting.provider!r} was chosen and the program reports that cpu ran the model"
                )
            self.provider = report.provider
        times_ns = [round(1e6 * value) for value in report.times_ms]
        size = math.ceil(len(times_ns) / protocol.blocks)
        blocks = [times_ns[begin : begin + size] for begin in range(0, len(times_ns), size)]
        inference_ns = round(sum(times_ns) + 1e9 * report.warm_up_s)
        return summarise(blocks, 1, protocol.half_width_percent, inference_ns)

    def close(self) -> None:
        """Delete the model's temporary file."""
        if self._file is not None:
            self._file.close()

    def _run(self, words: list[str], timeout_s: float) -> CommandReport:
        name = words[0]
        try:
            done = subprocess.run(
                words,
                # The program may use onnxruntime itself.
                env=child_environment(TELEMETRY_OFF),
                stdin=subprocess.DEVNULL,  # our own standard input carries the agent's orders
                preexec_fn=tied_to_this_process(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except OSError as error:
            raise RuntimeUnavailableError(f"{name} cannot be run: {error}; check ${COMMAND_VARIABLE}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeUnavailableError(f"{name} did not end within {timeout_s:g} s") from error
        if done.returncode != 0:
            output = " ".join((done.stderr or done.stdout).split())[-300:]
            raise RuntimeUnavailableError(f"{name} ended with code {done.returncode}: {output}")
        return parse_report(done.stdout, name)


def parse_report(text: str, name: str) -> CommandReport:
    """Return the report in a program's output: its last line that is a JSON object with `times_ms`.

    Raises `RuntimeUnavailableError` if there is none; `name` is the program's.
    """
    for line in reversed(text.splitlines()):
        if line.lstrip().startswith("{") and "times_ms" in line:
            try:
                return CommandReport.model_validate(json.loads(line))
            except (ValueError, ValidationError) as error:
                reason = reason_of(error)[:200]
                raise RuntimeUnavailableError(f"{name} printed a report that cannot be used: {reason}") from error
    raise RuntimeUnavailableError(f'{name} printed no line such as {{"times_ms": [4.11, 4.09, 4.10]}}')
