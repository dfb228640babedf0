"""The folder of artifacts: results, raw measurements, and each winner's model file with its card."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, TargetOutcome
from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.targets import target_name
from fleetnas.coordinator.report.conversion import results_of
from fleetnas.coordinator.report.inference_program import write_inference_program
from fleetnas.coordinator.report.results import ClassReport, DeviceResult, Results, SupernetResult, TargetResult
from fleetnas.coordinator.store.measurement_table import measurements_csv
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import HashMismatchError, StoreError
from fleetnas.fleet_protocol.messages import Condition, RuntimeSetting
from fleetnas.supernet_export.evaluation.classifier import is_tflite
from fleetnas.supernet_export.output_files import write_atomically

RESULTS_FILE = "results.json"
MEASUREMENTS_FILE = "measurements.csv"
REPORT_FILE = "report.html"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MODEL_SUFFIXES = (".onnx", ".tflite")


class ReplacedModel(BaseModel):
    """The model that a rewritten card described before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    sha256: str | None
    verified_ms: float | None = Field(description="re-measurement as it ran")
    accuracy: float | None = Field(description="top-1 in [0, 1] on held-out images")


class WinnerCard(TargetResult):
    """The `.json` beside a model file: its target as in results.json, `model` relative to it, and its device."""

    schema_version: Literal[1] = 1
    run_id: str
    device: str
    runtime: str = Field(description="label of the runtime setting")
    setting: RuntimeSetting
    condition: Condition = Field(description="condition under which it was measured")
    profile: DeviceProfile | None
    supernet: SupernetResult
    class_report: ClassReport | None = Field(
        default=None, description="answers of the file to images, class by class; null where it was not evaluated"
    )
    versions: dict[str, str] = Field(description="of the agent and its runtimes")
    replaces: ReplacedModel | None = Field(
        default=None, description="the model that this one took the place of, where `fleetnas measure --card` wrote it"
    )


class ArtifactFolder:
    """Writes `directory`, again and again if need be: each file is replaced at once, never half written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add_winner(self, device: DeviceOutcome, target: TargetOutcome, model: bytes) -> Path:
        """Keep the model file of a verified target; returns its path.

        `HashMismatchError` where the bytes are not those that the device measured, `ValueError` where the target
        was not met by a re-measurement.
        """
        if not target.met or target.sha256 is None:
            raise ValueError(
                f"only a verified winner has a model file: {_name(target)} of {device.device} is verified "
                f"at {target.verified_ms} ms with hash {target.sha256}; verify it first"
            )
        found = hashlib.sha256(model).hexdigest()
        if found != target.sha256:
            raise HashMismatchError(
                f"the model that ships must be the one that {device.device} measured for {_name(target)}: "
                f"that has SHA-256 {target.sha256}, these bytes have {found}; build the model again from the same "
                "bundle and calibration"
            )
        path = _suffixed(self._stem(device, target), MODEL_SUFFIXES[is_tflite(model)])
        write_atomically(path, model)
        return path

    def has_winner(self, device: DeviceOutcome, target: TargetOutcome) -> bool:
        """Tell whether the model file of a target is there already, with the bytes that the device measured."""
        return self._model(device, target) is not None

    def write(self, outcome: CampaignOutcome) -> Results:
        """Write results.json, measurements.csv, and card and `infer.py` beside each model file; returns the results.

        A model file is named only when its bytes have the hash that the device measured.
        """
        results = results_of(outcome, self._model)
        folders = set()
        for device in results.fleet:
            for target in device.targets:
                if target.model is not None:
                    self._write_card(results, device, target, self.directory / target.model)
                    folders.add((self.directory / target.model).parent)
        for folder in sorted(folders):
            write_inference_program(folder, results.supernet.class_names)
        write_atomically(self.directory / MEASUREMENTS_FILE, measurements_csv(outcome.devices).encode())
        write_atomically(self.directory / RESULTS_FILE, results.model_dump_json(indent=2).encode() + b"\n")
        return results

    def _stem(self, device: DeviceOutcome, target: TargetOutcome) -> Path:
        """`<device>/<setting>/<target>ms`, of a given subnet its fingerprint, to which a suffix is appended."""
        for name in (device.device, device.setting.label):
            if not _SAFE_NAME.fullmatch(name):
                raise ValueError(f"a folder is named after {name!r}: use letters, digits, `_`, `.` and `-` only")
        folder = folder_name(device.device)
        return self.directory / folder / device.setting.label / _file_stem(target)

    def _model(self, device: DeviceOutcome, target: TargetOutcome) -> tuple[str, int] | None:
        if not target.met or target.sha256 is None:
            return None
        for suffix in MODEL_SUFFIXES:
            path = _suffixed(self._stem(device, target), suffix)
            if path.is_file():
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == target.sha256:
                    return path.relative_to(self.directory).as_posix(), len(content)
        return None

    def _write_card(self, results: Results, device: DeviceResult, target: TargetResult, model: Path) -> None:
        card = WinnerCard(
            **dict(target.model_copy(update={"model": model.name})),
            run_id=results.run_id,
            device=device.device,
            runtime=device.runtime,
            setting=device.setting,
            condition=device.condition,
            profile=device.profile,
            supernet=results.supernet,
            class_report=results.class_reports.get(target.sha256 or ""),
            versions=device.versions,
        )
        write_atomically(model.with_suffix(".json"), card.model_dump_json(indent=2).encode() + b"\n")


def _file_stem(target: TargetOutcome) -> str:
    """Name a target's files: `20ms`, `p95-33ms`, `fps-30`, `energy-5mJ`, or the fingerprint of a given subnet."""
    if target.target:
        unit = "ms" if Target.parse(target.target).kind is TargetKind.PERCENTILE else ""
        return target.target.replace(":", "-") + unit
    return target.subnet or f"{target.target_ms:.10g}ms"


def folder_name(device: str) -> str:
    """Return the name of a device's folder: its own, unless a file of the artifacts has that name."""
    # No agent's name has a `~`, so no two devices share a folder.
    return f"{device}~" if device.lower() in (RESULTS_FILE, MEASUREMENTS_FILE, REPORT_FILE) else device


def read_results(directory: Path) -> Results:
    """Read the results of an artifact folder; `StoreError` where there are none, or where the file was altered."""
    path = directory / RESULTS_FILE
    try:
        return Results.model_validate_json(read_text(path))
    except FileNotFoundError:
        raise StoreError(f"{directory} has no {RESULTS_FILE}: name the folder that --out was given") from None
    except ValueError as error:
        raise StoreError(f"{path} is not a results file of this version: {error}") from error


def _name(target: TargetOutcome) -> str:
    return target_name(target.target_ms, target.subnet, target.target)


def _suffixed(stem: Path, suffix: str) -> Path:
    """`with_suffix` would cut the fraction off `3.5ms`."""
    return stem.parent / (stem.name + suffix)
