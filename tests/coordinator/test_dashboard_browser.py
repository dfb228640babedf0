"""The dashboard in a real browser: it renders, renews itself while a campaign runs, and anybody can use it.

Needs Debian's `chromium`, and playwright and axe-core from the extra `dev`; skips where one is missing.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rigs import waiting
from rigs.dashboards import Dashboard, dashboard
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
axe = pytest.importorskip(
    "axe_playwright_python", reason="axe-core is not installed (pip install axe-playwright-python)"
)

#: One browser at a time.
pytestmark = pytest.mark.xdist_group("browser")
LABEL = "onnxruntime_cpu_1t_fp32"
DEVICE = f"/runs/run-1/devices/pi0/{LABEL}"
PAGES = ("/", "/runs/run-1", DEVICE, "/compare?run=run-1&run=run-2", "/compare", "/runs/run-1/portfolio", "/runs/none")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
#: Too narrow for the tables, and too wide for the cards that a phone shows in their place.
NARROW = (680, 900)


@dataclass
class Visit:
    """One page of the browser, and everything that went wrong on it."""

    page: Any
    dashboard: Dashboard
    faults: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        self.page.goto(self.dashboard.address.rstrip("/") + path)
        self.page.wait_for_load_state("load")

    def check(self) -> None:
        assert not self.faults
        assert not self.outside


@dataclass
class Stage:
    """A store with an ended run and one at work, which goes on step by step."""

    fleet: Simulation
    dashboard: Dashboard

    def go_on(self, outcomes: int) -> None:
        before = len(self.fleet.store.outcomes(self.fleet.run_id))
        self.fleet.run(until=lambda: len(self.fleet.store.outcomes(self.fleet.run_id)) >= before + outcomes)

    def finish(self) -> None:
        self.fleet.run()
        self.fleet.campaign.finish()


def campaign(store: MeasurementStore, run_id: str, seed: int = 0) -> Simulation:
    plan = CampaignPlan(targets="auto:2", budget=12, initial_design=6, wait_for=2, grace_s=5, seed=seed)
    fleet = Simulation(plan, store=store, run_id=run_id)
    fleet.add("pi0")
    fleet.add("pi1", seed=1)
    fleet.begin()
    return fleet


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-gpu"]
        launched = playwright.chromium.launch(executable_path=program, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """Two runs that have ended; tests only read."""
    file = tmp_path_factory.mktemp("ended") / "runs.sqlite"
    store = MeasurementStore.open(file)
    for seed, run_id in enumerate(("run-2", "run-1")):
        fleet = campaign(store, run_id, seed)
        fleet.run()
        fleet.campaign.finish()
    store.close()
    with dashboard(file) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    store = MeasurementStore.open(tmp_path / "runs.sqlite")
    fleet = campaign(store, "run-1")
    with dashboard(tmp_path / "runs.sqlite") as running:
        yield Stage(fleet, running)
    store.close()


def visit(browser: Any, served: Dashboard, size: str = "desktop", **options: Any) -> Visit:
    width, height = SIZES[size]
    page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
    made = Visit(page, served)
    page.set_default_timeout(1000 * waiting.STALL_S)
    page.on(
        "console", lambda message: made.faults.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: made.faults.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(served.address) else made.outside.append(request.url)
    )
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious_and_nothing_overflows(
    browser: Any, ended: Dashboard, size: str, scheme: str
) -> None:
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    opened = visit(browser, ended, size, color_scheme=scheme)
    for path in PAGES:
        opened.open(path)
        opened.page.evaluate(script)
        found = opened.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [
            (path, each["id"], [node["html"][:120] for node in each["nodes"][:3]])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious
        wide = opened.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, (path, wide)
    opened.faults = [fault for fault in opened.faults if "404" not in fault]  # of the page that is not there
    opened.check()
    opened.page.context.close()


def test_long_names_are_divided_and_labels_are_not(browser: Any, ended: Dashboard) -> None:
    opened = visit(browser, ended, "phone")
    opened.open(PAGES[0])
    content, screen, shrink = opened.page.evaluate(
        """() => {
          const main = document.querySelector("main");
          const table = document.createElement("table");
          table.className = "stack";
          const cell = '<td data-label="Data quality">' + "two words ".repeat(40) + "</td>";
          table.innerHTML = "<tbody><tr>" + cell + "</tr></tbody>";
          main.prepend(table);
          const style = getComputedStyle(table.querySelector("td"), "::before");
          const warning = document.createElement("p");
          [warning.className, warning.textContent] = ["warning", "onnxruntime_".repeat(30)];
          main.prepend(warning);
          return [document.documentElement.scrollWidth, window.innerWidth, style.flexShrink];
        }"""
    )
    assert content <= screen
    assert shrink == "0"
    opened.page.context.close()


def test_an_open_page_follows_a_campaign(browser: Any, stage: Stage) -> None:
    opened = visit(browser, stage.dashboard)
    opened.open("/runs/run-1")
    text = opened.page.locator("main")
    sync_api.expect(text).to_contain_text("No device takes part yet")
    stage.go_on(6)
    sync_api.expect(text).to_contain_text("exploring", timeout=1000 * waiting.STALL_S)
    sync_api.expect(opened.page.locator("#state")).to_have_text("live")
    assert opened.page.locator("svg.figure").count() >= 1
    stage.finish()
    sync_api.expect(text).to_contain_text("4 of 4 targets met", timeout=1000 * waiting.STALL_S)
    sync_api.expect(text).to_contain_text("complete")
    opened.check()
    opened.page.context.close()


def test_choices_focus_and_scrolling_outlive_a_renewal(browser: Any, stage: Stage) -> None:
    opened = visit(browser, stage.dashboard)
    opened.page.set_viewport_size(dict(zip(("width", "height"), NARROW, strict=True)))
    stage.go_on(4)
    opened.open("/runs/run-1")
    link = opened.page.locator(f'a[href="{DEVICE}"]').first
    link.focus()
    opened.page.evaluate("document.querySelector('.scroll').scrollLeft = 40")
    digest = opened.page.locator('[data-part="devices"]').get_attribute("data-digest")
    stage.go_on(2)
    sync_api.expect(opened.page.locator('[data-part="devices"]')).not_to_have_attribute(
        "data-digest", digest, timeout=1000 * waiting.STALL_S
    )
    assert opened.page.evaluate("document.activeElement.getAttribute('href')") == DEVICE
    assert opened.page.evaluate("document.querySelector('.scroll').scrollLeft") == 40
    opened.check()
    opened.page.context.close()


def test_a_dashboard_that_is_gone_is_told_and_its_return_too(browser: Any, stage: Stage) -> None:
    opened = visit(browser, stage.dashboard)
    opened.open("/runs/run-1")
    opened.page.route("**/*", lambda route: route.abort())
    state = opened.page.locator("#state")
    sync_api.expect(state).to_contain_text("does not answer", timeout=1000 * waiting.STALL_S)
    opened.page.unroute("**/*")
    sync_api.expect(state).to_have_text("live", timeout=1000 * waiting.STALL_S)
    opened.page.context.close()


def test_everything_is_reached_by_keyboard(browser: Any, ended: Dashboard) -> None:
    opened = visit(browser, ended)
    opened.open("/")
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.className") == "skip"
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("document.activeElement.id") == "main"
    seen = []
    for _ in range(8):
        opened.page.keyboard.press("Tab")
        seen.append(opened.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"c-run-1", "c-run-2", "run-1", "run-2", "Compare two runs"} <= set(seen)
    opened.page.locator("#c-run-1").focus()
    opened.page.keyboard.press("Space")
    opened.page.locator("#c-run-2").focus()
    opened.page.keyboard.press("Space")
    opened.page.keyboard.press("Enter")
    sync_api.expect(opened.page.locator("h1")).to_have_text("Two runs compared")
    opened.check()
    opened.page.context.close()


def test_a_link_with_a_token_opens_the_pages(browser: Any, tmp_path: Path) -> None:
    MeasurementStore.open(tmp_path / "runs.sqlite").close()
    (tmp_path / "token").write_text("a-token-of-the-users-own")
    with dashboard(tmp_path / "runs.sqlite", "--token-file", str(tmp_path / "token")) as running:
        opened = visit(browser, running)
        opened.page.goto(running.link)
        sync_api.expect(opened.page.locator("h1")).to_have_text("Runs")
        assert "token" not in opened.page.url
        sync_api.expect(opened.page.locator("#state")).to_have_text("live")
        opened.check()
        opened.page.context.close()


def test_many_readers_at_once_are_answered(ended: Dashboard) -> None:
    found: list[int] = []
    readers = [
        threading.Thread(target=lambda path=path: found.append(ended.get(path).status))  # type: ignore[misc]
        for path in PAGES[:3] * 8
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [200] * len(readers)
