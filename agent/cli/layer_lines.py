"""Print the times of a model's layers as a table with bars."""

from __future__ import annotations

from collections.abc import Sequence

from fleetnas.fleet_protocol.layer_times import LayerTime

#: Width of the longest bar, and of a layer's name.
_BAR, _NAME = 24, 40


def layer_lines(layers: Sequence[LayerTime], *, ascii_only: bool = False) -> list[str]:
    """Return a line per operator, then one per layer in the order of execution, each with its share of all layers."""
    total_us = sum(layer.mean_us for layer in layers) or 1.0
    by_operator: dict[str, list[float]] = {}
    for layer in layers:
        by_operator.setdefault(layer.op or "others", []).append(layer.mean_us)
    largest = max(layer.mean_us for layer in layers) or 1.0
    lines = [
        f"{len(layers)} layers, {total_us / 1000:.4g} ms in all: more than the latency, as each is clocked by itself"
    ]
    for op, times_us in sorted(by_operator.items(), key=lambda item: -sum(item[1])):
        share = 100 * sum(times_us) / total_us
        lines.append(f"  {op:<24} {len(times_us):>4} layers {sum(times_us):>10.1f} us {share:>5.1f} %")
    lines.append("")
    sign = "#" if ascii_only else "█"
    for layer in layers:
        bar = sign * round(_BAR * layer.mean_us / largest)
        name = layer.name if len(layer.name) <= _NAME else f"...{layer.name[3 - _NAME :]}"
        lines.append(
            f"{name:<{_NAME}} {layer.op:<20.20} {layer.mean_us:>9.1f} us {100 * layer.mean_us / total_us:>5.1f} % {bar}"
        )
    return [line.rstrip() for line in lines]
