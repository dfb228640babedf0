"""Data to evaluate predictors on: architectures measured on several device settings, and hardware parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from fleetnas.coordinator.predictors.device_fit import MeasuredDevice
from fleetnas.coordinator.predictors.exported_data import read_exported
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.hardware_transfer import Parameters
from fleetnas.coordinator.predictors.prior import Floats
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes
from fleetnas.supernet_export.spaces.registry import make_space

_LATENCY_PREFIX = "latency_"
_HARDWARE = TypeAdapter(dict[str, dict[str, FiniteFloat | str | None]])
_BATCH_SUFFIX = re.compile(r"(?<!ph)_(1|32|64)$")


@dataclass(frozen=True)
class LatencyData:
    """`n` architectures on `S` device settings."""

    features: Floats  #: (n, F)
    groups: NDArray[np.intp]  #: which columns are of one cost, (F,)
    latency_ms: Mapping[str, Floats]  #: per setting, (n,)
    families: Mapping[str, str]  #: per setting, the device it is a setting of
    macs: Floats | None = None  #: (n,), where the space is known
    space: DesignSpace | None = None
    genomes: Genomes | None = None

    def devices(self, rows: NDArray[np.intp], *, without: str = "") -> list[MeasuredDevice]:
        """Return the devices to learn a prior from: settings outside the family `without`, on the given rows."""
        features = self.features[rows]
        return [
            MeasuredDevice(name, self.families[name], features, latency[rows])
            for name, latency in self.latency_ms.items()
            if self.families[name] != without
        ]


def read_latency_data(path: Path | str) -> LatencyData:
    """Read a file of architectures and their latencies.

    `.npz`: arrays `latency_<setting>` (n,) in ms, beside either `ks`, `e`, `d`, `r` (architectures of `ofa-mbv3`) or
    `ops` (n, blocks), the operation that each block of any other space takes. `.json`: an object with `space`,
    `options`, `architectures` (OFA's keys), `latency_ms` (setting to n numbers) and, optionally, `families`. In both,
    settings of one device (names that differ in a trailing batch size) are one family. `.csv`: a file of
    `fleetnas export-data`; a device is a family.

    Raises:
        UsageError: the file is missing, of another form, or its arrays disagree in length.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give an .npz, .json or .csv of architectures and latencies")
    if path.suffix == ".json":
        return _from_json(path)
    if path.suffix == ".csv":
        found = read_exported(path)
        return _of_space(path, found.space, found.architectures, found.latency_ms, found.families)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError) as error:  # numpy's own words may suggest to load it unsafely
        raise UsageError(f"{path} is not an .npz archive of arrays; give an .npz, .json or .csv file") from error
    latency = {
        name.removeprefix(_LATENCY_PREFIX): np.asarray(values, dtype=np.float64)
        for name, values in arrays.items()
        if name.startswith(_LATENCY_PREFIX)
    }
    if {"ks", "e", "d", "r"} <= arrays.keys():
        space = make_space("ofa-mbv3", {"resolutions": sorted({int(r) for r in arrays["r"]})})
        columns = (arrays[key].tolist() for key in ("ks", "e", "d", "r"))
        architectures = [
            Architecture(ks=tuple(ks), e=tuple(e), d=tuple(d), r=r) for ks, e, d, r in zip(*columns, strict=True)
        ]
        return _of_space(path, space, architectures, latency, {})
    if "ops" in arrays:
        features, groups = operation_features(arrays["ops"])
        return _checked(path, LatencyData(features, groups, latency, _families(latency, {})))
    raise UsageError(f"{path} has neither ks, e, d and r nor ops; found {', '.join(sorted(arrays))}")


def read_hardware(path: Path) -> dict[str, Parameters]:
    """Read a JSON object of hardware parameters: per setting, names with numbers, words or null.

    Raises:
        UsageError: the file is missing or of another form.
    """
    try:
        return dict(_HARDWARE.validate_json(read_text(path)))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UsageError(
            f"{path} holds no hardware parameters ({reason_of(error)}); give JSON such as "
            '{"pi4/onnxruntime": {"threads": 0.0, "clock": 7.3, "runtime": "onnxruntime"}}'
        ) from None


def operation_features(operations: NDArray[Any]) -> tuple[Floats, NDArray[np.intp]]:
    """Encode operations (n, blocks) of a space without a cost model: features (n, F), a group per operation."""
    columns, groups = [np.ones(len(operations))], [0]
    for block in operations.T:
        for operation in np.unique(block):
            columns.append((block == operation).astype(np.float64))
            groups.append(1 + int(operation))
    return np.column_stack(columns), np.array(groups, dtype=np.intp)


def _from_json(path: Path) -> LatencyData:
    try:
        content = json.loads(read_text(path))
        space = make_space(content["space"], content.get("options"))
        architectures = [Architecture.model_validate(item) for item in content["architectures"]]
        latency = {name: np.asarray(values, dtype=np.float64) for name, values in content["latency_ms"].items()}
        families = {str(name): str(family) for name, family in content.get("families", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} needs space, architectures and latency_ms (one list a setting); it fails at {error!r}"
        ) from error
    return _of_space(path, space, architectures, latency, families)


def _of_space(
    path: Path,
    space: DesignSpace,
    architectures: list[Architecture],
    latency: Mapping[str, Floats],
    families: Mapping[str, str],
) -> LatencyData:
    genomes = space.encode(architectures)
    mapping = FeatureMap(space)
    data = LatencyData(
        mapping.features(genomes),
        mapping.groups,
        latency,
        _families(latency, families),
        space.macs(genomes),
        space,
        genomes,
    )
    return _checked(path, data)


def _families(latency: Mapping[str, Floats], told: Mapping[str, str]) -> dict[str, str]:
    return {name: told.get(name, _BATCH_SUFFIX.sub("", name)) for name in latency}


def _checked(path: Path, data: LatencyData) -> LatencyData:
    if not data.latency_ms:
        raise UsageError(f"{path} holds no latencies; name them latency_<setting>")
    for name, values in data.latency_ms.items():
        if values.shape != (len(data.features),):
            raise UsageError(f"{path} has {len(data.features)} architectures, but {name} has shape {values.shape}")
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UsageError(f"{path}: latencies must be finite and above 0 ms; {name} has others")
    return data
