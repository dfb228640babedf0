"""Read and write files of evaluated subnets: JSON lines, a header and one line per subnet, continued after a stop."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import InterpreterName, Precision
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, SupernetBundle
from fleetnas.supernet_export.evaluation.image_source import CALIBRATION_LIMIT
from fleetnas.supernet_export.evaluation.sampling import DrawnSubnet, Sampling


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EvaluatedImages(_Frozen):
    """A set of images by its content."""

    digest: str
    count: int = Field(ge=1)


class EvaluationHeader(_Frozen):
    """First line of a file: all that its figures depend on."""

    fleetnas_evaluation: Literal[1] = 1
    bundle_sha256: str
    supernet_digest: str = Field(description="of the weights; stays when an accuracy predictor is put into the bundle")
    space: str
    options: dict[str, Any]
    images: EvaluatedImages
    calibration_images: EvaluatedImages
    calibration_count: int = Field(default=CALIBRATION_LIMIT, ge=1, description="most images that calibrate a subnet")
    runtime: InterpreterName = "onnxruntime"
    precision: Precision = "fp32"
    subnets: int = Field(ge=1, description="asked for when the file was begun; more may have been added since")
    sampling: Sampling = "both"
    seed: int = 0
    shard: tuple[int, int] = (0, 1)

    def differences(self, other: EvaluationHeader, *, of_shards: bool = False) -> list[str]:
        """Describe what differs from `other`; `of_shards` looks only at what files of one fit must share."""
        names = ["supernet_digest", "space", "options", "images", "calibration_images"]
        names += ["calibration_count", "runtime", "precision"]
        if not of_shards:
            names += ["sampling", "seed", "shard"]
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return [f"{_LABELS.get(name, name)} ({_short(a)} there, {_short(b)} here)" for name, a, b in pairs if a != b]


_LABELS = {
    "supernet_digest": "the supernet's weights",
    "space": "the design space",
    "options": "the design space's options",
    "images": "the images",
    "calibration_images": "the calibration images",
    "calibration_count": "--calibration-count",
    "seed": "--seed",
    "sampling": "--sampling",
    "shard": "--shard",
    "runtime": "--runtime",
    "precision": "--precision",
}


def _short(value: Any) -> str:
    if isinstance(value, EvaluatedImages):
        return f"{value.count:,} images, {value.digest[:8]}"
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return str(value)[:8] if isinstance(value, str) and len(value) == 64 else str(value)[:60]


class EvaluatedLine(_Frozen):
    """Every other line: an evaluated subnet, or one that failed."""

    index: int = Field(ge=0, description="place in the seeded list of all shards")
    architecture: Architecture
    drawn: str
    macs: int
    accuracy: float | None = Field(default=None, ge=0, le=1, description="top-1, a fraction")
    cross_entropy: float | None = Field(default=None, description="mean over the images, nats")
    images: int | None = None
    accuracy_even: float | None = Field(default=None, ge=0, le=1, description="top-1 on images 0, 2, 4, ...")
    accuracy_odd: float | None = Field(default=None, ge=0, le=1, description="top-1 on images 1, 3, 5, ...")
    seconds: float | None = Field(default=None, description="of the worker, decoding images included")
    failed: str | None = Field(default=None, description="why there is no accuracy")


def supernet_digest(bundle: SupernetBundle) -> str:
    """Return a SHA-256 over the bundle's weights, space and preprocessing, without its accuracy predictor."""
    manifest = bundle.manifest
    preprocessing = manifest.preprocessing.model_dump(mode="json")
    described = [manifest.space, manifest.options, manifest.classes, manifest.class_names, preprocessing]
    whole = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in bundle.names:
        if not name.startswith(ACCURACY_PREFIX):
            whole.update(name.encode())
            whole.update(bundle.tensor(name).data)
    return whole.hexdigest()


class EvaluationFile:
    """An evaluation's file, open to add lines; only one process at a time has it open."""

    def __init__(self, path: Path, header: EvaluationHeader) -> None:
        """Open `path`, new or to be continued; drop a last line that was cut off.

        `UsageError` names what differs where it was begun with another header, a line that cannot be read, or that
        another process writes it.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(
                f"{path} is being written by another process; wait for it, or give another file (-o)"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            self.lines = self._continued(header)
        except BaseException:
            self._file.close()
            raise

    def _continued(self, header: EvaluationHeader) -> dict[int, EvaluatedLine]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            if content and not _begin_of_header(content):
                raise UsageError(f"{self._path} holds something else than evaluated subnets; give another file (-o)")
            self._file.truncate(0)
            self._write(header)
            return {}
        text = whole.decode(errors="replace").splitlines()
        found = parse_header(text[0])
        if found is None:
            raise UsageError(
                f"{self._path} does not begin like a file of `fleetnas accuracy evaluate`; give another file (-o)"
            )
        different = found.differences(header)
        if different:
            raise UsageError(
                f"{self._path} was begun with other inputs: {'; '.join(different)}; give the same ones to continue it, "
                "or another file (-o)"
            )
        lines = [_parsed(line, self._path, number) for number, line in enumerate(text[1:], start=2)]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        return {line.index: line for line in lines}

    def add(self, line: EvaluatedLine) -> None:
        """Append one line; it survives the end of this process from now on."""
        self._write(line)
        self.lines[line.index] = line

    def _write(self, content: _Frozen) -> None:
        self._file.write(content.model_dump_json(exclude_none=True).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Write everything to the disk and close the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> EvaluationFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_header(line: str) -> EvaluationHeader | None:
    """Return the header in a file's first line; None if it is none."""
    try:
        return EvaluationHeader.model_validate_json(line)
    except ValidationError:
        return None


def _begin_of_header(content: bytes) -> bool:
    mark = b'{"fleetnas_evaluation"'
    return content.startswith(mark[: len(content)])


def _parsed(line: str, path: Path, number: int) -> EvaluatedLine:
    try:
        return EvaluatedLine.model_validate_json(line)
    except ValidationError as error:
        raise UsageError(
            f"{path}, line {number} is no evaluated subnet ({first_fault(error)}); remove the line, and its subnet is "
            "evaluated again"
        ) from None


def line_of(subnet: DrawnSubnet, outcome: dict[str, Any] | str) -> EvaluatedLine:
    """Return the line of a subnet from a worker's figures, or from the reason why there are none."""
    figures: dict[str, Any] = {"failed": outcome} if isinstance(outcome, str) else outcome
    return EvaluatedLine(
        index=subnet.index, architecture=subnet.architecture, drawn=subnet.drawn, macs=subnet.macs, **figures
    )
