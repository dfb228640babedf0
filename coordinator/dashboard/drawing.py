"""Figures as inline SVG: no script, no colours of their own, a text alternative; the page's stylesheet styles them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from markupsafe import Markup, escape

from fleetnas.coordinator.dashboard.axes import Axis

#: Size of a figure in its own units, about the pixels that it has on a small screen, so that its texts can be read.
WIDTH, HEIGHT = 480.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 12.0, 44.0

Pair: TypeAlias = tuple[float, float]
#: How values are drawn: filled or hollow dots, a line, a line that rises in steps, or larger diamonds.
Mark: TypeAlias = Literal["dots", "rings", "line", "steps", "diamonds"]


@dataclass(frozen=True)
class Series:
    """Values of one kind, drawn alike."""

    label: str
    """For the legend; empty for none."""
    style: str
    """Class of the stylesheet, such as `measured` or `hue-3`."""
    pairs: Sequence[Pair]
    mark: Mark = "dots"
    titles: Sequence[str] = ()
    """Texts of the values, shown where the pointer rests on one; for diamonds alone."""


@dataclass(frozen=True)
class Line:
    """A straight line between two values, such as a target."""

    label: str
    style: str
    start: Pair
    end: Pair


@dataclass(frozen=True)
class Figure:
    """One figure with its caption."""

    name: str
    """Unique on a page."""
    title: str
    description: str
    """Text alternative, which is the caption too."""
    svg: Markup
    legend: tuple[tuple[str, Markup], ...] = ()
    """Label and sign of each series."""


def draw(
    name: str,
    title: str,
    description: str,
    axes: tuple[Axis, Axis],
    series: Sequence[Series],
    lines: Sequence[Line] = (),
) -> Figure:
    """Draw a figure; `axes` are the horizontal and the vertical one."""
    plane = _Plane(*axes)
    size, label = f"0 0 {WIDTH:g} {HEIGHT:g}", f"{name}-title {name}-text"
    parts = [
        f'<svg class="figure" viewBox="{size}" role="img" aria-labelledby="{label}">',
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>',
        *plane.frame(),
        *(plane.line(line) for line in lines),
        *(plane.series(each) for each in series if each.pairs),
        "</svg>",
    ]
    shown = [(each.label, _sign(each.style, each.mark)) for each in series if each.label and each.pairs]
    known = dict(shown) | {line.label: _sign(line.style, "line") for line in lines if line.label}
    return Figure(name, title, description, Markup("".join(parts)), tuple(known.items()))


class _Plane:
    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y

    def place(self, pair: Pair) -> tuple[float, float]:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * self._x.share(pair[0])
        y = HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * self._y.share(pair[1])
        return round(x, 1), round(y, 1)

    def frame(self) -> Iterable[str]:
        low, right, top = HEIGHT - _BOTTOM, WIDTH - _RIGHT, _TOP
        for value, text in self._x.ticks():
            x, _ = self.place((value, self._y.low))
            yield f'<path class="grid" d="M{x:g} {low:g}V{top:g}"/>'
            yield f'<text class="tick" x="{x:g}" y="{low + 16:g}" text-anchor="middle">{text}</text>'
        for value, text in self._y.ticks():
            _, y = self.place((self._x.low, value))
            yield f'<path class="grid" d="M{_LEFT:g} {y:g}H{right:g}"/>'
            yield f'<text class="tick" x="{_LEFT - 6:g}" y="{y + 4:g}" text-anchor="end">{text}</text>'
        yield f'<path class="edge" d="M{_LEFT:g} {top:g}V{low:g}H{right:g}"/>'
        yield _axis_label((_LEFT + right) / 2, HEIGHT - 8, self._x.label)
        yield _axis_label(14.0, (top + low) / 2, self._y.label, f' transform="rotate(-90 14 {(top + low) / 2:g})"')

    def line(self, line: Line) -> str:
        (x0, y0), (x1, y1) = self.place(line.start), self.place(line.end)
        return f'<path class="line {line.style}" d="M{x0:g} {y0:g}L{x1:g} {y1:g}"/>'

    def series(self, series: Series) -> str:
        places = [self.place(pair) for pair in series.pairs]
        style = escape(series.style)
        if series.mark == "line":
            return f'<path class="line {style}" d="M{_joined(places)}"/>'
        if series.mark == "steps":
            steps = "".join(f"H{x:g}V{y:g}" for x, y in places[1:])
            return f'<path class="line {style}" d="M{places[0][0]:g} {places[0][1]:g}{steps}"/>' + _dots(places, style)
        if series.mark == "diamonds":
            return "".join(
                _diamond(place, style, title)
                for place, title in zip(places, series.titles or [""] * len(places), strict=True)
            )
        if series.mark == "rings":
            return _dots(places, style) + _dots(places, "hollow")
        return _dots(places, style)


def _axis_label(x: float, y: float, label: str, more: str = "") -> str:
    return f'<text class="axis" x="{x:g}" y="{y:g}" text-anchor="middle"{more}>{escape(label)}</text>'


def _joined(places: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:g} {y:g}" for x, y in places)


def _dots(places: Iterable[tuple[float, float]], style: str) -> str:
    """Draw dots as one path of round ends: ten thousand of them are one element, and those in one place are one dot."""
    return f'<path class="dots {style}" d="{"".join(f"M{x:g} {y:g}h0" for x, y in dict.fromkeys(places))}"/>'


def _diamond(place: tuple[float, float], style: str, title: str) -> str:
    x, y = place
    text = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="diamond {style}" d="M{x:g} {y - 7:g}l7 7l-7 7l-7-7z">{text}</path>'


def _sign(style: str, mark: Mark) -> Markup:
    """Draw what stands for a series in the legend."""
    drawn = {
        "line": f'<path class="line {escape(style)}" d="M1 7H23"/>',
        "steps": f'<path class="line {escape(style)}" d="M1 7H23"/>{_dots([(12.0, 7.0)], escape(style))}',
        "dots": _dots([(12.0, 7.0)], escape(style)),
        "rings": _dots([(12.0, 7.0)], escape(style)) + _dots([(12.0, 7.0)], "hollow"),
        "diamonds": f'<path class="diamond {escape(style)}" d="M12 1l6 6l-6 6l-6-6z"/>',
    }[mark]
    return Markup(f'<svg class="sign" viewBox="0 0 24 14" width="24" height="14" aria-hidden="true">{drawn}</svg>')
