"""Block latency tables as OFA and ProxylessNAS publish them: YAML files of milliseconds per layer.

Sources of the keys: `ofa/<device>/<resolution>_lookup_table.yaml` and `proxylessnas/mobile_trim.yaml` in the
repository han-cai/files, and the estimators of the `ofa` package that read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetnas.coordinator.search.latency import Floats, SlotTableLatency
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_package
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.mbconv_network import MBConvBlock, reduced

_FILE_NAME = "{resolution}_lookup_table.yaml"


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
        file = path / _FILE_NAME.format(resolution=resolution) if path.is_dir() else path
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


def _missing_file(path: Path, file: Path, space: MBConvSpace) -> str:
    have = table_resolutions(path) if path.is_dir() else []
    if not have:
        return f"{path} holds no latency table: a folder of <resolution>_lookup_table.yaml, or one such file, is needed"
    return (
        f"{file} is missing: {space.name} is searched at {', '.join(map(str, space.resolutions))} pixels and {path} "
        f"has tables for {', '.join(map(str, have))}; restrict the resolutions to those"
    )


class _LayerTable:
    """One YAML file: mean milliseconds by layer key."""

    def __init__(self, file: Path, space: MBConvSpace) -> None:
        self.file, self.space = file, space
        self._layers = _read_yaml(file)

    def slots(self, resolution: int) -> list[Floats]:
        """Milliseconds per slot at a resolution; of a block as (kernels, expand ratios)."""
        net, space = self.space.network, self.space
        side = reduced(resolution, net.stem_stride)
        found = [
            np.array(self._mean("Conv", (resolution, resolution, net.image_channels), (side, side, net.stem_width))),
            np.array(self._first_block(side)),
        ]
        found += [self._block(block, resolution) for block in space.block_list]
        last = space.block_list[-1]
        side = reduced(resolution, last.reduction * last.stride)
        found.append(np.array(self._head(side, last.out_width)))
        return found

    def _first_block(self, side: int) -> float:
        net = self.space.network
        skip = net.first_block_residual and net.stem_width == net.first_block_width
        key = _block_key(
            side, side, net.stem_width, net.first_block_width, "1" if self._by_ratio else str(net.stem_width)
        )
        key += f"-kernel:3-stride:1-idskip:{int(skip)}"
        return self._value(key if self._by_ratio else f"{key}-se:0-hs:{int(net.first_block_activation == 'h_swish')}")

    def _block(self, block: MBConvBlock, resolution: int) -> Floats:
        before = reduced(resolution, block.reduction)
        after = reduced(before, block.stride)
        found = np.full((len(self.space.kernels), len(self.space.expands)), np.nan)
        tail = "" if self._by_ratio else f"-se:{int(block.squeeze)}-hs:{int(block.activation == 'h_swish')}"
        keys = {}
        for i, kernel in enumerate(self.space.kernels):
            for j, expand in enumerate(self.space.expands):
                width = f"{expand:g}" if self._by_ratio else str(round(block.in_width * expand))
                key = _block_key(before, after, block.in_width, block.out_width, width)
                key += f"-kernel:{kernel}-stride:{block.stride}-idskip:{int(block.residual)}{tail}"
                found[i, j] = self._layers.get(key, np.nan)
                keys[i, j] = key
            _interpolate(np.array(self.space.expands, dtype=np.float64), found[i])
        for i, j in np.argwhere(np.isnan(found)):
            self._value(keys[i, j])
        return found

    def _head(self, side: int, width: int) -> float:
        net = self.space.network
        wide, features, classes = net.final_expand_width, net.feature_width, net.classes
        if wide is None:
            mixed = self._mean("Conv_1", (side, side, width), (side, side, features))
            return mixed + self._mean("Logits", (side, side, features), (classes,))
        return (
            self._mean("Conv_1", (side, side, width), (side, side, wide))
            + self._mean("AvgPool2D", (side, side, wide), (1, 1, wide))
            + self._mean("Conv_2", (1, 1, wide), (1, 1, features))
            + self._mean("Logits", (1, 1, features), (classes,))
        )

    @property
    def _by_ratio(self) -> bool:
        """Whether keys are ProxylessNAS's: expand ratios in place of channels, and no squeeze-and-excite."""
        return self.space.network.final_expand_width is None

    def _mean(self, layer: str, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        return self._value(f"{layer}-input:{_shape(before)}-output:{_shape(after)}")

    def _value(self, key: str) -> float:
        try:
            return self._layers[key]
        except KeyError:
            options = ", ".join(f"{name} {value}" for name, value in self.space.options.items())
            raise UsageError(
                f"{self.file} has no layer {key!r}, which {self.space.name} ({options}) needs; choose the width and "
                "resolutions that the table was measured at"
            ) from None


def _block_key(before: int, after: int, in_width: int, out_width: int, expand: str) -> str:
    shapes = f"input:{_shape((before, before, in_width))}-output:{_shape((after, after, out_width))}"
    return f"expanded_conv-{shapes}-expand:{expand}"


def _shape(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


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
        raise UsageError(f"{file} cannot be read: {error}; check the path") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"{file} is not a block latency table: each layer must have a `mean` in milliseconds; download it again"
        ) from None
