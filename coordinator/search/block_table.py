"""Read block latency tables as OFA and ProxylessNAS publish them: YAML files of milliseconds per layer.

Sources of the keys: `ofa/<device>/<resolution>_lookup_table.yaml` and `proxylessnas/mobile_trim.yaml` in the
repository han-cai/files, and the estimators of the `ofa` package that read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetnas.coordinator.search.latency import Floats, SlotTableLatency
from fleetnas.coordinator.search.layer_keys import LayerKeys
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_package
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace

#: Name of one file in a folder of tables.
TABLE_NAME = "{resolution}_lookup_table.yaml"


def read_block_table(path: Path | str, space: MBConvSpace) -> SlotTableLatency:
    """Read the latency table of `space` from a folder of `<resolution>_lookup_table.yaml`, or from one file.

    A network's latency is the sum of its layers' mean milliseconds. ProxylessNAS's file knows expand ratios 3 and 6
    only: a ratio between two that a table has is interpolated linearly.

    Raises:
        UsageError: the path is no table, or lacks layers of the space; says which.
    """
    path = Path(path)
    if space.aspect != (1, 1):
        raise UsageError(
            f"block latency tables are of square images, and {space.name} takes images of {space.aspect[0]}:"
            f"{space.aspect[1]} (height to width); measure on a device instead"
        )
    per_resolution = []
    for resolution in space.resolutions:
        file = path / TABLE_NAME.format(resolution=resolution) if path.is_dir() else path
        if not file.exists():
            raise UsageError(_missing_file(path, file, space))
        per_resolution.append(_LayerTable(file, space).slots(resolution))
    absent = np.zeros(1)
    tables = []
    for slot in range(len(space.slot_names)):
        columns = [np.atleast_1d(table[slot]).ravel() for table in per_resolution]
        is_block = 2 <= slot < 2 + space.block_count
        tables.append(np.concatenate([absent, *columns]) if is_block else np.concatenate(columns))
    return SlotTableLatency(space, 0.0, tables)


def table_resolutions(path: Path | str) -> list[int]:
    """Return the resolutions that a latency table covers, pixels, ascending."""
    path = Path(path)
    if path.is_dir():
        stems = [file.name.partition("_")[0] for file in path.glob("*_lookup_table.yaml")]
        return sorted(int(stem) for stem in stems if stem.isdigit())
    sides = [key.partition(":")[2].partition("x")[0] for key in _read_yaml(path) if key.startswith("Conv-input:")]
    return sorted({int(side) for side in sides if side.isdigit()})


def no_table(path: Path) -> str:
    """Say that a path holds no latency table of any kind, and what does."""
    return (
        f"{path} holds no latency table; give what `fleetnas export-latency` wrote, a folder of "
        "<resolution>_lookup_table.yaml, or one such file"
    )


def _missing_file(path: Path, file: Path, space: MBConvSpace) -> str:
    have = table_resolutions(path) if path.is_dir() else []
    if not have:
        return no_table(path)
    return (
        f"{file} is missing: {space.name} is searched at {', '.join(map(str, space.resolutions))} pixels and {path} "
        f"has tables for {', '.join(map(str, have))}; restrict the resolutions to those"
    )


class _LayerTable:
    """One YAML file: mean milliseconds by layer key."""

    def __init__(self, file: Path, space: MBConvSpace) -> None:
        self.file, self.space = file, space
        self._keys = LayerKeys(space)
        self._layers = _read_yaml(file)

    def slots(self, resolution: int) -> list[Floats]:
        """Milliseconds per slot at a resolution; of a block as (kernels, expand ratios)."""
        keys = self._keys
        found = [np.array(self._value(keys.stem(resolution))), np.array(self._value(keys.first_block(resolution)))]
        found += [self._block(keys.block(block, resolution)) for block in self.space.block_list]
        found.append(np.array(sum(self._value(key) for key in keys.head(resolution))))
        return found

    def _block(self, keys: Mapping[tuple[int, int], str]) -> Floats:
        found = np.full((len(self.space.kernels), len(self.space.expands)), np.nan)
        for place, key in keys.items():
            found[place] = self._layers.get(key, np.nan)
        for row in found:
            _interpolate(np.array(self.space.expands, dtype=np.float64), row)
        for i, j in np.argwhere(np.isnan(found)):
            self._value(keys[i, j])
        return found

    def _value(self, key: str) -> float:
        try:
            return self._layers[key]
        except KeyError:
            options = ", ".join(f"{name} {value}" for name, value in self.space.options.items())
            raise UsageError(
                f"{self.file} has no layer {key!r}, which {self.space.name} ({options}) needs; choose the width and "
                "resolutions that the table was measured at"
            ) from None


def _interpolate(x: Floats, row: Floats) -> None:
    """Interpolate gaps between two known values of `row`, in place."""
    known = np.isfinite(row)
    if known.any():
        inside = ~known & (x > x[known].min()) & (x < x[known].max())
        row[inside] = np.interp(x[inside], x[known], row[known])


def _read_yaml(file: Path) -> Mapping[str, float]:
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            f"reading block latency tables needs PyYAML: {install_package('pyyaml')}"
        ) from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content: Any = yaml.load(read_text(file), Loader=loader)
        return {str(key): float(entry["mean"]) for key, entry in content.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {reason_of(error)}; check the path") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"{file} is not a block latency table: each layer must have a `mean` in milliseconds; download it again"
        ) from None
