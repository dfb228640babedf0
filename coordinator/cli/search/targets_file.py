"""Reads `--targets-file`: targets and bounds of single devices, patterns or tags, in TOML or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fleetnas.coordinator.cli.bounds import BoundOptions
from fleetnas.coordinator.cli.option_groups import names
from fleetnas.coordinator.records.device_targets import DeviceTargets
from fleetnas.coordinator.records.target_kinds import accuracy_floor
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

_EXAMPLE = '["pi4-*"] with targets = "20,p95:33" below it'
_FLOOR, _MINIMISE = "accuracy_floor", "minimise"
_KEYS = ("targets", _FLOOR, _MINIMISE, *names(BoundOptions))


def read_targets_file(path: Path) -> tuple[DeviceTargets, ...]:
    """Read the file; `UsageError` names the device and the value that cannot be used.

    It is one table per device name, pattern such as `pi4-*`, or `tag:NAME`, each with `targets` or `accuracy_floor`,
    and bounds by the names of their options, as in `max_macs = "300M"`.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--targets-file {path} cannot be read: {error}") from None
    document = _json(path, text) if path.suffix.lower() == ".json" else _toml(path, text)
    if not document:
        raise UsageError(f"--targets-file {path} names no device; give a table such as {_EXAMPLE}")
    return tuple(_entry(path, device, fields) for device, fields in document.items())


def _entry(path: Path, device: str, fields: object) -> DeviceTargets:
    place = f"--targets-file {path}: {device!r}"
    if not device.strip() or len(device) > 200:
        raise UsageError(f"{place} is no device; give a name, a pattern such as pi4-*, or tag:NAME")
    if isinstance(fields, (str, int, float, list)):
        fields = {"targets": fields}
    if not isinstance(fields, dict):
        raise UsageError(f"{place} has no table of fields; give one such as {_EXAMPLE}")
    unknown = sorted(set(fields) - set(_KEYS))
    if unknown and isinstance(fields[unknown[0]], dict):
        raise UsageError(
            f'{place} has a table {unknown[0]!r} within it; a name with a dot takes quotes: ["{device}.{unknown[0]}"]'
        )
    if unknown:
        near = did_you_mean(unknown[0], _KEYS)
        raise UsageError(f"{place} has the unknown field {unknown[0]!r}{near} it takes {', '.join(_KEYS)}")
    try:
        request = TargetRequest.parse(_text(fields["targets"])) if "targets" in fields else TargetRequest()
        if _FLOOR in fields:
            request = request.with_target(
                accuracy_floor(_number(fields[_FLOOR]), str(fields.get(_MINIMISE, "latency")))
            )
        elif _MINIMISE in fields:
            raise UsageError(f"{_MINIMISE} says what a subnet has the least of that keeps an {_FLOOR}; add that")
        if not request.count:
            raise UsageError(f'it asks for nothing; give targets = "20,30" or {_FLOOR} = 75')
        bounds = {name: str(fields[name]) for name in names(BoundOptions) if name in fields}
        return DeviceTargets(device=device, targets=request, bounds=BoundOptions(**bounds).bounds())
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def _number(value: object) -> float:
    """Read an accuracy floor, a number or its text."""
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise UsageError(f"{_FLOOR} {value!r} is no number; give a percentage such as 75")


def _text(targets: object) -> str:
    """Return targets, one or a list, as the text of `--targets`."""
    return ",".join(map(str, targets)) if isinstance(targets, list) else str(targets)


def _json(path: Path, text: str) -> Mapping[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
            raise UsageError(f"--targets-file {path} has {twice!r} twice; leave out one of them")
        return found

    try:
        found = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--targets-file {path} is not JSON: {error}; correct it") from None
    if not isinstance(found, dict):
        raise UsageError(f'--targets-file {path} is no JSON object of devices; give {{"pi4": {{"targets": "20"}}}}')
    return found


def _toml(path: Path, text: str) -> Mapping[str, Any]:
    reader = next((name for name in ("tomllib", "tomli") if find_spec(name) is not None), None)
    if reader is None:  # Python 3.10 without tomli
        raise UsageError(f"--targets-file {path}: TOML takes Python 3.11 or `pip install tomli`; or give JSON")
    try:
        found: dict[str, Any] = import_module(reader).loads(text)
    except (ValueError, RecursionError) as error:
        twice = "cannot declare" in str(error).lower() or "overwrite" in str(error).lower()
        reason = (
            f"a device or a field is there twice ({error}); leave out one of them" if twice else f"{error}; correct it"
        )
        raise UsageError(f"--targets-file {path} is not TOML that can be used: {reason}") from None
    return found
