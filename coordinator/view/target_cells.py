"""Targets of one device setting on the screen: a table, or one line."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from fleetnas.coordinator.records.snapshot import DeviceSnapshot, TargetSnapshot
from fleetnas.coordinator.records.target_kinds import TargetKind
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.strip import BAD, DIM, GOOD, PLAIN, Strip, left, padded, right, strip_width

#: From the first number of cells on, a table of targets shows the share of each target that is used; from the second
#: on it has roomy columns; below the third, only the best latency.
_WITH_SHARES, _ROOMY, _THREE_LATENCIES = 92, 66, 60
_ROOMY_CELLS = 10
_BAR_CELLS = 10
#: Cells of a share of a target: a bar, its percentage, and two blanks.
_SHARE_CELLS = _BAR_CELLS + 8
#: Digits of a given subnet's fingerprint where there is no room for all.
_SHORT_SUBNET = 6


def table_height(device: DeviceSnapshot) -> int:
    """Return the lines of the table of a device's targets, its headings included."""
    return 1 + len(device.targets) + bool(targets_remark(device))


def table_width(device: DeviceSnapshot) -> int:
    """Return the cells of a roomy table of a device's targets that loses no word."""
    return 5 * _ROOMY_CELLS + max(_status_cells(device), cell_len(targets_remark(device)))


def _status_cells(device: DeviceSnapshot) -> int:
    return max((cell_len(_status(target)) for target in device.targets), default=0)


def targets_remark(device: DeviceSnapshot) -> str:
    """Return the remark on all targets of a device setting."""
    return wording.targets_remark(len(device.targets), device.targets_asked, device.targets_note, device.ended)


def inline_targets(device: DeviceSnapshot, width: int) -> Strip:
    """Lay out all targets in one line, with their accuracies where there is room."""
    if not device.targets:
        return [Segment(f"  {targets_remark(device)}", DIM)]
    strip = _inline(device, accuracies=True)
    return strip if strip_width(strip) <= width else _inline(device, accuracies=False)


def _inline(device: DeviceSnapshot, *, accuracies: bool) -> Strip:
    strip = [Segment("  " if any(target.target for target in device.targets) else "  ms ", DIM)]
    for target in device.targets:
        accuracy = f" {wording.target_accuracy(target)} " if accuracies else ""
        strip += [
            Segment(f" {target.subnet[:_SHORT_SUBNET] or wording.target(target.target_ms, target.target)}:", DIM),
            Segment(f"{_best(target)}{wording.target_mark(target)}{accuracy} ", _style(target)),
        ]
    return strip


def target_table(device: DeviceSnapshot, width: int, remark: str = "", style: Style = PLAIN) -> list[Strip]:
    """Lay out headings, with `remark` in its `style` behind them, and a line per target, each `width` cells wide."""
    statuses = [_status(target) for target in device.targets]
    # Words come before bars: these are left out where statuses fit without them alone.
    spare = width - 5 * _ROOMY_CELLS - max(map(cell_len, statuses), default=0)
    used = [_share(target) for target in device.targets]
    shares = width >= _WITH_SHARES and not 0 <= spare < _SHARE_CELLS and any(share is not None for share in used)
    roomy, three = width >= _ROOMY, width >= _THREE_LATENCIES
    name = "target" if any(target.target for target in device.targets) else "target ms"
    heads = [name, "predicted", "measured", "verified", "accuracy"] if three else [name, "best", "acc."]
    cells = (_ROOMY_CELLS,) * 5 if roomy else (9, 10, 9, 9, 9) if three else (9, 8, 8)
    rest = max(0, width - sum(cells) - (_SHARE_CELLS if shares else 0))
    head = "".join(right(text, size) for text, size in zip(heads, cells, strict=True))
    head += left("  of target", _SHARE_CELLS) if shares else ""
    table: list[Strip] = [[Segment(head, DIM), Segment(left(f"  {remark}", rest), style)]]
    for target, status, share in zip(device.targets, statuses, used, strict=True):
        latencies = _latencies(target) if three else [_best(target)]
        texts = [wording.target(target.target_ms, target.target), *latencies, wording.target_accuracy(target)]
        # Few segments: what a frame costs is their number.
        row = "".join(right(text, size) for text, size in zip(texts, cells, strict=True))
        last = (_share_text(share) if shares else "") + left(status, rest)
        table.append([Segment(row), Segment(last, _style(target))])
    note = targets_remark(device)
    if note:
        table.append(padded([Segment(f"  {note}", DIM)], width))
    return [padded(strip, width) for strip in table]


def _status(target: TargetSnapshot) -> str:
    return f"  {wording.target_mark(target)} {wording.target_status(target)}"


def _latencies(target: TargetSnapshot) -> list[str]:
    return [
        wording.latency(target.predicted_ms),
        wording.latency(target.measured_ms),
        wording.latency(target.verified_ms),
    ]


def _best(target: TargetSnapshot) -> str:
    """Return the most reliable value; `~` marks one that is only predicted, `?` one not yet verified.

    It is a latency in ms, or of another kind of target the value in its unit once that is known.
    """
    kind = wording.other_kind(target.target)
    if kind is not None and kind.kind is not TargetKind.ACCURACY:
        if target.value is not None:
            return wording.latency(target.value)
        latency = _best_latency(target)
        return latency if latency == "–" else f"{latency}ms"
    return _best_latency(target)


def _best_latency(target: TargetSnapshot) -> str:
    if target.verified_ms is not None:
        return wording.latency(target.verified_ms)
    if target.measured_ms is not None:
        return f"?{wording.latency(target.measured_ms)}"
    return "–" if target.predicted_ms is None else f"~{wording.latency(target.predicted_ms)}"


def _share(target: TargetSnapshot) -> float | None:
    """Return how much of a target is used, by the re-measurement or else by the first; None where that is not known.

    Of a rate it is the rate asked for over the one that was reached. An accuracy that is to be kept has none.
    """
    if not target.target:
        best_ms = target.verified_ms if target.verified_ms is not None else target.measured_ms
        return None if best_ms is None or not target.target_ms else best_ms / target.target_ms
    kind = wording.other_kind(target.target)
    value = target.value_high if target.value_high is not None else target.value
    if kind is None or kind.kind is TargetKind.ACCURACY or not value:
        return None
    return kind.value / value if kind.kind is TargetKind.RATE else value / kind.value


def _share_text(share: float | None) -> str:
    if share is None:
        return " " * _SHARE_CELLS
    filled = round(min(1.0, share) * _BAR_CELLS)
    percent = right(wording.percent(share), _SHARE_CELLS - _BAR_CELLS - 2)
    return f"  {'█' * filled}{'░' * (_BAR_CELLS - filled)}{percent}"


def _style(target: TargetSnapshot) -> Style:
    return PLAIN if target.met is None else GOOD if target.met else BAD
