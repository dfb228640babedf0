"""Names of device settings where there is little room."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len

from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.coordinator.view.wording import printable

#: Parts that most labels have, and what stands for them.
_COMMON_PARTS = (("onnxruntime", "ort"), ("_cpu", ""), ("_fp32", ""), ("opt-", ""))
#: Cells that a column of names has at least, and the share of a line that it has at most.
_LEAST_CELLS, _MOST_OF_LINE = 12, 3


def short_setting(label: str) -> str:
    """Return the label of a runtime setting without its usual parts: `ort_1t` for `onnxruntime_cpu_1t_fp32`."""
    for common, short in _COMMON_PARTS:
        label = label.replace(common, short)
    return printable(label)


def short_label(device: str, setting: str) -> str:
    """Return device and setting in few characters, such as `board-0/ort_1t`."""
    return f"{printable(device)}/{short_setting(setting)}"


def fitted_label(device: DeviceSnapshot, cells: int) -> tuple[str, str]:
    """Return a device's name and its setting in at most `cells` cells with a blank between them.

    Where they do not fit, the label is abbreviated, then only its end is shown.
    """
    name, label = printable(device.device), printable(device.setting_label)
    room = cells - cell_len(name) - 1
    if cell_len(label) > room:
        label = short_setting(label)
    if cell_len(label) > room:
        label = f"…{label[1 - room :]}" if room > 1 else ""
    return name, label


def name_cells(devices: Iterable[DeviceSnapshot], width: int) -> int:
    """Return the cells of a column for the names of these devices, in lines of `width` cells."""
    most = max(_LEAST_CELLS, width // _MOST_OF_LINE)
    longest = shortest = _LEAST_CELLS
    for device in devices:
        name = cell_len(device.device) + 1
        longest = max(longest, name + cell_len(device.setting_label))
        shortest = max(shortest, name + cell_len(short_setting(device.setting_label)))
    return longest if longest <= most else min(shortest, most)
