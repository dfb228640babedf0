"""The report's section on a portfolio: few models for the whole fleet, and accuracy over their number."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetnas.device_profiles.text_files import read_text

#: Files of a portfolio in the folder of results.
PORTFOLIO_FILE, CURVE_FILE = "portfolio.json", "portfolio.svg"
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 16, 46
#: Colours of the picture that stands alone, in place of the page's variables.
_COLOURS = {"--ink": "#1c2128", "--muted": "#5c6570", "--measured": "#0072b2", "--winner": "#f0b400"}
_TICKS = 5

_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True)
class PortfolioSection:
    """What the page shows."""

    models: int
    targets: int
    mean_percent: float | None
    bound_percent: float | None
    served: Sequence[Mapping[str, Any]]
    svg: str


def portfolio_section(directory: Path, run_id: str) -> PortfolioSection | None:
    """Read the portfolio of a run from its folder; None where there is none of this run, or it cannot be shown."""
    file = directory / PORTFOLIO_FILE
    if not file.exists():
        return None
    try:
        found = json.loads(read_text(file))
        if found["run_id"] != run_id:
            return None
        mean, bound = found["mean_accuracy"], found.get("bound", {}).get("mean_accuracy")
        return PortfolioSection(
            len(found["models"]),
            len(found["served"]),
            None if mean is None else 100.0 * float(mean),
            None if bound is None else 100.0 * float(bound),
            [_served(each) for each in found["served"]],
            _curve(found["curve"], len(found["models"])),
        )
    except Exception as error:  # noqa: BLE001 - a damaged file must not cost the page
        _log.error("%s cannot be shown", file, exc_info=error)
        return None


def curve_picture(curve: Sequence[Mapping[str, Any]], chosen: int) -> str:
    """Draw accuracy over the number of models as an SVG file; `chosen` is marked."""
    svg = _curve(curve, chosen)
    for name, colour in _COLOURS.items():
        svg = svg.replace(f"var({name})", colour)
    return svg


def _served(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values of one target that the page formats."""
    names = ("device", "setting", "subnet", "known_by")
    numbers = ("target_ms", "latency_ms", "accuracy")
    texts = {name: None if entry[name] is None else str(entry[name]) for name in names}
    return {**texts, **{name: None if entry[name] is None else float(entry[name]) for name in numbers}}


def _curve(curve: Sequence[Mapping[str, Any]], chosen: int) -> str:
    points = [(int(point["models"]), 100.0 * float(point["mean_accuracy"]), int(point["served"])) for point in curve]
    if not points:
        return ""
    most = points[-1][0]
    low, high = min(point[1] for point in points), max(point[1] for point in points)
    margin = max(0.08 * (high - low), 0.05)
    low, high = low - margin, high + margin

    def x(models: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (models - 1) / max(most - 1, 1)

    def y(percent: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (percent - low) / (high - low)

    label = (
        f"Mean accuracy over the number of models, from {points[0][1]:.2f} % for 1 to {points[-1][1]:.2f} % for {most}"
    )
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" '
        'font-family="sans-serif" font-size="12">'
    )
    parts = [opening]
    for step in range(_TICKS):
        percent = low + (high - low) * step / (_TICKS - 1)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(percent):.1f}" y2="{y(percent):.1f}" '
            'stroke="var(--muted)" stroke-opacity="0.25"/>'
            f'<text x="{_LEFT - 6}" y="{y(percent) + 4:.1f}" text-anchor="end" fill="var(--ink)">{percent:.2f}</text>'
        )
    below = _HEIGHT - _BOTTOM + 18
    parts += [
        f'<text x="{x(models):.1f}" y="{below}" text-anchor="middle" fill="var(--ink)">{models}</text>'
        for models in sorted({1, most, *(round(1 + (most - 1) * step / (_TICKS - 1)) for step in range(_TICKS))})
    ]
    line = " ".join(f"{x(models):.1f},{y(percent):.1f}" for models, percent, _ in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--measured)" stroke-width="2"/>')
    demands = max(point[2] for point in points)
    for models, percent, served in points:
        colour = "--winner" if models == chosen else "--measured"
        hollow = f'fill="none" stroke="var({colour})"' if served < demands else f'fill="var({colour})"'
        radius = 5 if models == chosen else 3
        parts.append(f'<circle cx="{x(models):.1f}" cy="{y(percent):.1f}" r="{radius}" {hollow}/>')
    middle = (_WIDTH + _LEFT - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle" fill="var(--ink)">number of models</text>'
        f'<text transform="translate(14 {(_HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle" '
        'fill="var(--ink)">mean predicted top-1, %</text></svg>'
    )
    return "".join(parts)
