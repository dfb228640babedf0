"""Predictor files: what a run learned about the latency of one device setting, for searches without the device.

A predictor is linear in costs per slot, so its mean is a table per slot of the network. Beside that the file has the
typical slow-down of the run, the uncertainty of the weights, and the measured subnets. `docs/latency-export.md`
describes every field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleetnas.coordinator.search.candidate_table import CandidateTable
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import first_fault, one_line
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.supernet_export.output_files import write_atomically
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes, SlotTables
from fleetnas.supernet_export.spaces.registry import make_space

Floats = NDArray[np.float64]

#: Name of the file in a folder of exported latencies, and of the folder of block tables beside it.
PREDICTOR_FILE, TABLE_FOLDER = "predictor.json", "ofa"
_LEAST_MS = 1e-9
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SlotLatencies(_Part):
    """One slot of the network: a block, the stem or the head."""

    slot: str
    variants_ms: tuple[_Number, ...]


class Slowdown(_Part):
    """Typical slow-down s of a subnet of undisturbed latency u: log s = level + slope (log u - centre)."""

    level: _Number = 0.0
    slope: _Number = 0.0
    centre: _Number = 0.0


class MeasuredSubnet(_Part):
    """A subnet that the run measured."""

    architecture: Architecture
    typical_ms: _Number = Field(gt=0)


class PredictorFile(_Part):
    """The whole file. Latencies are milliseconds at batch 1, at undisturbed speed unless their name says `typical`."""

    format: Literal["fleetnas latency predictor"] = "fleetnas latency predictor"
    version: Literal[1] = 1
    run_id: str
    device: str
    setting: str
    supernet: str
    condition: str
    space: str
    space_options: dict[str, Any]
    constant_ms: _Number
    slots: tuple[SlotLatencies, ...]
    slowdown: Slowdown
    held_out_percent: _Number | None = None
    held_out: int = 0
    features: tuple[str, ...]
    weights_ms: tuple[_Number, ...]
    weights_covariance_ms2: tuple[tuple[_Number, ...], ...] = Field(description="lower triangle, row after row")
    discrepancy_percent: _Number = Field(description="of a new subnet's latency from the linear model's, typically")
    measured: tuple[MeasuredSubnet, ...] = ()

    def write(self, path: Path) -> None:
        """Write the file; `OSError` where that fails."""
        write_atomically(path, json.dumps(self.model_dump(mode="json")).encode() + b"\n")


class TypicalLatency:
    """The mean of a predictor at the typical speed of its run; a `TableLatency`."""

    def __init__(self, undisturbed: SlotTableLatency, slowdown: Slowdown) -> None:
        self._undisturbed, self._slowdown = undisturbed, slowdown

    def predict(self, genomes: Genomes) -> Floats:
        """Latency in milliseconds of canonical genomes (n, G), shape (n,)."""
        undisturbed = np.maximum(self._undisturbed.predict(genomes), _LEAST_MS)
        speed = self._slowdown
        found: Floats = undisturbed * np.exp(speed.level + speed.slope * (np.log(undisturbed) - speed.centre))
        return found

    def slot_tables(self) -> SlotTables:
        """The additive model: exact where the slow-down does not depend on the latency, else close."""
        constant_ms, tables = self._undisturbed.slot_tables()
        factor = float(np.exp(self._slowdown.level))
        return factor * constant_ms, tuple(factor * table for table in tables)

    def predict_additive(self, table: CandidateTable) -> NDArray[np.float32]:
        """Predict all subnets of the table by the additive model, ms, (n,)."""
        found: NDArray[np.float32] = self._undisturbed.predict_additive(table) * np.float32(
            np.exp(self._slowdown.level)
        )
        return found

    def predict_rows(self, table: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        """Predict the table's rows (k,), ms, (k,)."""
        return self.predict(table.genomes[rows])


def predictor_file_of(path: Path) -> Path | None:
    """Return the predictor file that a path names, itself or in its folder; None where it is of block tables."""
    if path.is_dir():
        inside = path / PREDICTOR_FILE
        return inside if inside.exists() else None
    return path if path.suffix.lower() == ".json" else None


def read_predictor_file(path: Path) -> PredictorFile:
    """Read a predictor file; `UsageError` with the first fault where it is none."""
    try:
        return PredictorFile.model_validate_json(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {one_line(error)}; check the path") from None
    except ValidationError as error:
        raise UsageError(
            f"{path} is no predictor file of this version ({first_fault(error)}); write it with `fleetnas "
            "export-latency`"
        ) from None


def space_of(found: PredictorFile, path: Path) -> DesignSpace:
    """Make the design space of a predictor file; `UsageError` where this fleetnas does not have it."""
    try:
        return make_space(found.space, found.space_options)
    except FleetnasError as error:
        raise UsageError(f"{path} is of a design space that cannot be made here: {one_line(error)}") from None


def latency_of(found: PredictorFile, space: DesignSpace, path: Path) -> TypicalLatency:
    """Make the latency model of a predictor file for a design space; `UsageError` where it is of another."""
    if (found.space, _plain(found.space_options)) != (space.name, _plain(space.options)):
        raise UsageError(
            f"{path} is of {found.space} with {json.dumps(found.space_options)}, and not of {space.name} with "
            f"{json.dumps(_plain(space.options))}; leave out --space, or export the latencies of a run on that space"
        )
    tables = [np.array(slot.variants_ms, dtype=np.float64) for slot in found.slots]
    return TypicalLatency(SlotTableLatency(space, found.constant_ms, tables), found.slowdown)


def _plain(options: Mapping[str, Any]) -> Any:
    """Return options as JSON has them: lists for tuples."""
    return json.loads(json.dumps(dict(options)))
