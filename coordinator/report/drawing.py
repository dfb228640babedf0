"""Draw the report's figures as inline SVG, coloured by the page's own CSS variables."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Series of a figure that have colours of their own; `series-1` to `series-8` on the page.
SERIES = tuple(f"series-{number}" for number in range(1, 9))
#: Placeholders that matplotlib draws with; the page's stylesheet replaces them, in light and in dark.
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "measured": "#030303",
    "predicted": "#040404",
    "winner": "#050505",
    **{name: f"#0606{number:02d}" for number, name in enumerate(SERIES, 10)},
}
#: Latencies that span more than this factor are shown on a logarithmic axis.
_WIDE = 5
WIDTH_IN, HEIGHT_IN = 4.8, 3.2
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fleetnas",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """One figure of the report."""

    title: str
    description: str
    """Text alternative, for readers who cannot see it."""
    svg: str
    """An `<svg>` element, complete in itself."""


def figure(rows: int = 1, height_in: float = HEIGHT_IN) -> tuple[Any, Any]:
    """Return a figure with `rows` axes below each other, and the axes."""
    from matplotlib.figure import Figure

    found = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = found.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    found.patch.set_alpha(0.0)
    for axis in axes:
        axis.patch.set_alpha(0.0)
        axis.grid(True, color=COLOURS["muted"], alpha=0.2, linewidth=0.6)
    return found, axes


def scale(axis: Any, latencies_ms: Iterable[float], *sides: str) -> None:
    """Make sides of an axis logarithmic where the latencies that it shows span a wide range."""
    shown = [value for value in latencies_ms if value > 0]
    if not shown or max(shown) <= _WIDE * min(shown):
        return
    from matplotlib.ticker import LogLocator, NullLocator

    for side in sides:
        getattr(axis, f"set_{side}scale")("log")
        line = getattr(axis, f"{side}axis")
        line.set_major_locator(LogLocator(subs=(1, 2, 5)))
        line.set_major_formatter("{x:g}")
        line.set_minor_locator(NullLocator())


def inline_svg(figure: Any, prefix: str, label: str) -> str:
    """Return a figure as an `<svg>` element; `prefix` keeps its identifiers apart, `label` is its text alternative."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    numbers = itertools.count()
    names: dict[str, str] = {}
    for identifier in re.findall(r'\bid="([^"]+)"', svg):
        names.setdefault(identifier, f"{prefix}-{next(numbers)}")
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{names[match[1]]}"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{names[match[1]]})", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', lambda match: f'href="#{names[match[1]]}"', svg)
    opening = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', re.DOTALL)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return opening.sub(
        lambda match: (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{match[1]}" role="img" aria-label="{escaped}">'
        ),
        svg,
        count=1,
    )
