"""The report in headless Chromium: it loads nothing, and the verdict is on the screen of a phone too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome

from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.report.html import write_report

pytestmark = pytest.mark.xdist_group("browser")
playwright = pytest.importorskip("playwright.sync_api")
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    artifacts(
        folder,
        campaign_outcome(
            device_outcome("raspberry-pi-4-model-b-in-the-lab", threads=4),
            device_outcome("board-b", threads=2, status=SettingStatus.LOST, measurements=14, seed=1),
            device_outcome("board-c", seed=2),
        ),
    )
    return write_report(folder)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no program chromium; install Debian's chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture(params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def page(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Iterator[Any]:
    width, height = request.param
    context = chromium.new_context(viewport={"width": width, "height": height})
    found = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda asking: asked.append(asking.url))
    found.goto(report.as_uri())
    yield found
    assert said == []
    assert asked == [report.as_uri()]
    context.close()


def test_verdict_and_gain_are_on_the_first_screen(page: Any) -> None:
    height = page.viewport_size["height"]
    for selector in (".verdict", ".gains li"):
        box = page.locator(selector).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height, selector


def test_the_page_is_no_wider_than_the_screen(page: Any) -> None:
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.locator("table.stack").evaluate_all("all => all.map(each => each.getBoundingClientRect().right)"):
        if width == PHONE[0]:
            assert box <= width


def test_a_warning_about_a_long_name_is_no_wider_than_the_screen(page: Any) -> None:
    page.evaluate(
        """() => {
          const warning = document.createElement("p");
          [warning.className, warning.textContent] = ["warning", "onnxruntime_".repeat(30)];
          document.body.prepend(warning);
        }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_legends_cover_no_point(page: Any) -> None:
    """A figure's legend is below its axes: each entry is lower than every point that is drawn."""
    lowest = page.evaluate(
        """() => [...document.querySelectorAll('figure svg')].map(svg => {
            const points = [...svg.querySelectorAll('use')].filter(use => use.closest('g[clip-path]'));
            const texts = [...svg.querySelectorAll('text')];
            const bottom = Math.max(...points.map(point => point.getBoundingClientRect().top));
            const named = ['winner, verified and evaluated', 'subnet', 'latency measured'];
            const legend = texts.filter(text => named.includes(text.textContent));
            return legend.map(text => text.getBoundingClientRect().bottom - bottom);
        })"""
    )
    found = [gap for figure in lowest for gap in figure]
    assert len(found) >= 6
    assert min(found) > 0
