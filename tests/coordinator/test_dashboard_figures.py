"""Figures of a dashboard: right values in the right places, readable ticks, and nothing where there is nothing."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from fleetnas.coordinator.dashboard import figures
from fleetnas.coordinator.dashboard.axes import Axis
from fleetnas.coordinator.dashboard.drawing import HEIGHT, WIDTH, Figure, Series, draw
from fleetnas.coordinator.dashboard.figures import CurvePoint, pareto_front
from fleetnas.coordinator.dashboard.run_state import Point

POINT = Point(
    task_id="t",
    purpose="candidate",
    fingerprint="0123456789ab",
    at_unix_s=1000.0,
    measured_ms=2.0,
    half_width_percent=0.5,
    quality="ok",
    predicted_ms=1.9,
    slowdown=1.0,
    temperature_c=50.0,
    accuracy=0.9,
    target="",
    lasting_since_unix_s=900.0,
)


def points(count: int = 5) -> list[Point]:
    return [
        replace(POINT, measured_ms=1.0 + n, predicted_ms=1.1 + n, accuracy=0.8 + 0.01 * n, at_unix_s=1000.0 + 60 * n)
        for n in range(count)
    ]


def places(figure: Figure, style: str) -> list[tuple[float, float]]:
    """Places of the dots of one series."""
    root = ElementTree.fromstring(str(figure.svg).replace("<svg ", "<svg xmlns='x' ", 1))
    found = [each.get("d", "") for each in root.iter("{x}path") if each.get("class") == f"dots {style}"]
    return [(float(x), float(y)) for d in found for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", d)]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (74.99, 75.01), (0.2, 900.0), (1e-4, 2e-4), (5.0, 5.0), (-3.0, 8.0), (1e5, 9e6)]
)
@pytest.mark.parametrize("wide", [False, True])
def test_every_axis_has_a_few_ticks_of_different_texts_on_it(low: float, high: float, wide: bool) -> None:
    axis = Axis.around("x", (low, high), wide=wide)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert len({text for _, text in ticks}) == len(ticks)
    assert all(axis.low - 1e-9 <= value <= axis.high + 1e-9 for value, _ in ticks)
    assert all(math.isclose(float(text), value, rel_tol=1e-6, abs_tol=1e-12) for value, text in ticks)
    assert 0 <= axis.share(low) <= axis.share(high) <= 1


def test_values_far_apart_have_a_logarithmic_axis_and_others_none() -> None:
    assert Axis.around("x", (1.0, 10.0), wide=True).logarithmic
    assert not Axis.around("x", (1.0, 4.0), wide=True).logarithmic
    assert not Axis.around("x", (0.0, 10.0), wide=True).logarithmic
    assert Axis.around("x", (math.inf, math.nan)).ticks()


def test_the_front_holds_what_no_other_subnet_beats() -> None:
    rated = [(3.0, 0.9), (1.0, 0.8), (2.0, 0.79), (1.0, 0.7), (4.0, 0.9), (5.0, None), (2.5, 0.85)]
    front = pareto_front([replace(POINT, measured_ms=ms, accuracy=accuracy) for ms, accuracy in rated])
    assert front == [(1.0, 80.0), (2.5, 85.0), (3.0, 90.0)]


def test_dots_lie_where_their_values_are_and_inside_the_figure() -> None:
    figure = figures.front("front", ("pi4", "s"), points(), [])
    assert figure is not None
    found = places(figure, "measured")
    assert len(found) == 5
    assert found == sorted(found)
    assert [y for _, y in found] == sorted((y for _, y in found), reverse=True)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in found)


def test_predictions_that_agree_lie_on_the_line() -> None:
    exact = [replace(point, predicted_ms=point.measured_ms) for point in points()]
    figure = figures.agreement(exact)
    assert figure is not None
    ends = re.search(r'line reference" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)', str(figure.svg))
    assert ends is not None
    x0, y0, x1, y1 = map(float, ends.groups())
    for x, y in places(figure, "measured"):
        assert y == pytest.approx(y0 + (x - x0) * (y1 - y0) / (x1 - x0), abs=0.3)
    assert "within 0.0 %" in figure.description


def test_slowed_measurements_and_new_speeds_stand_out() -> None:
    taken = points()
    taken[2] = replace(taken[2], quality="slowed", slowdown=1.4)
    taken[3] = replace(taken[3], lasting_since_unix_s=1100.0)
    taken[4] = replace(taken[4], slowdown=None, lasting_since_unix_s=1100.0)
    figure = figures.drift(taken)
    assert figure is not None
    assert len(places(figure, "slowed")) == 1
    assert str(figure.svg).count('class="line change"') == 1
    assert "1.00 to 1.40 times; 1 of 5" in figure.description
    assert "unknown in 1" in figure.description


@pytest.mark.parametrize(
    "lonely", [[], [replace(POINT, accuracy=None, predicted_ms=None, slowdown=None, temperature_c=None)]]
)
def test_nothing_is_drawn_of_nothing(lonely: list[Point]) -> None:
    assert figures.setting_figures(lonely, [], None, ("pi4", "s")) == []
    assert figures.portfolio_curve([], 4) is None
    assert figures.portfolio_curve([CurvePoint(1, 0.8, 4)], 4) is None


def test_a_single_measurement_has_figures_that_can_be_drawn() -> None:
    drawn = figures.setting_figures([POINT], [], None, ("pi4", "s"))
    assert [figure.name for figure in drawn] == ["front", "drift", "temperature"]
    for figure in drawn:
        ElementTree.fromstring(str(figure.svg))
        assert "nan" not in str(figure.svg)


def test_ten_thousand_dots_are_one_element_and_those_in_one_place_one_dot() -> None:
    axes = (Axis("x", 0.0, 1.0), Axis("y", 0.0, 1.0))
    pairs = [(n % 100 / 100, n // 100 / 100) for n in range(10_000)]
    figure = draw("many", "t", "d", axes, [Series("dots", "measured", [*pairs, *pairs])])
    assert str(figure.svg).count('class="dots measured"') == 1
    assert len(places(figure, "measured")) == 10_000


def test_texts_are_no_markup_and_every_figure_has_an_alternative() -> None:
    axes = (Axis("<x>", 0.0, 1.0), Axis("y", 0.0, 1.0))
    figure = draw("f", "<b>", 'a "text" & more', axes, [Series("s", "measured", [(0.5, 0.5)], "diamonds", ["<i>"])])
    root = ElementTree.fromstring(str(figure.svg))
    assert root.get("role") == "img"
    assert [each.text for each in root if each.tag in ("title", "desc")] == ["<b>", 'a "text" & more']
    assert root.get("aria-labelledby") == "f-title f-text"
    assert "style=" not in str(figure.svg)
