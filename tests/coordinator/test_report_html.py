"""The report: self-contained, complete, and safe with what devices sent."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome

from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, FailedMeasurement, TargetOutcome
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.report.html import MAX_FAILURES, render_report, write_report
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.supernet_export.manifest import Preprocessing

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; refuses one whose elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


@pytest.fixture(scope="module")
def outcome() -> CampaignOutcome:
    subnet = device_outcome("x").rows[0].architecture
    hostile = FailedMeasurement("task-1", 1, "candidate", subnet, "crashed", "<script>alert(1)</script>")
    return campaign_outcome(
        dataclasses.replace(device_outcome("board-a"), failures=(hostile,)),
        device_outcome("board-b", threads=2, status=SettingStatus.LOST, measurements=14, seed=1),
        dataclasses.replace(
            device_outcome("board-c", status=SettingStatus.LOST, measurements=0),
            targets=(),
            predictor=None,
            predictor_history=(),
        ),
    )


@pytest.fixture(scope="module")
def folder(outcome: CampaignOutcome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("take_home")
    artifacts(directory, outcome)
    return directory


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_report(folder).read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_it_loads_nothing_and_runs_nothing(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "image"}
    assert page.values("src") == []
    for link in page.values("href"):
        assert link.startswith("#") or not re.match(r"[a-z]+:|//", link), link


def test_every_link_leads_to_a_file_or_to_a_place_on_the_page(page: Page, folder: Path) -> None:
    places = page.values("id")
    assert len(places) == len(set(places))
    links = page.values("href")
    for link in links:
        assert link[1:] in places if link.startswith("#") else (folder / link).is_file(), link
    assert {"measurements.csv", "results.json", "board-a/onnxruntime_cpu_1t_fp32/3.5ms.onnx"} <= set(links)
    assert "board-a/onnxruntime_cpu_1t_fp32/3.5ms.json" in links


def test_the_bounds_that_winners_keep_are_told(page: Page) -> None:
    assert "every winner has at most 4,000,000 multiply-accumulates" in " ".join("".join(page.text).split())


def test_what_a_device_sent_is_text(page: Page) -> None:
    assert "<script>alert(1)</script>" in page.text


def test_each_device_has_the_plots_it_has_data_for(page: Page) -> None:
    labels = [attributes["aria-label"] or "" for name, attributes in page.elements if name == "svg"]
    titles = [label.partition(".")[0] for label in labels]
    one = ["Front", "Prediction and measurement", "Predictor error as it learned", "Slow-down and temperature"]
    assert titles == ["All fronts", *one, *one]
    assert "30 measured subnets" in labels[1]
    assert "4 winners" in labels[1]


def test_the_front_has_a_mark_for_each_point(html: str) -> None:
    svg = html.split("<svg")[2]
    measured, predicted, winners = (svg.count(f"fill: var(--{kind})") for kind in ("measured", "predicted", "winner"))
    assert measured >= 30
    assert winners >= 4
    assert predicted == 0
    assert svg.count("stroke: var(--predicted)") >= 27 + 4


def test_colours_follow_the_page(html: str) -> None:
    for svg in html.split("<svg")[1:]:
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg.partition("</svg>")[0]))
        assert {colour for colour in colours if not colour.startswith("var(")} <= {"none"}


def test_the_same_run_gives_the_same_page(folder: Path, html: str) -> None:
    assert render_report(folder) == html


def test_the_verdict_is_the_verified_one(page: Page) -> None:
    text = " ".join("".join(page.text).split())
    assert "7 of 8 targets met by a fresh re-measurement" in text
    assert text.count("✓ met") == 7
    assert "✗ the device was lost before it was measured" in text


def slowed(device: DeviceOutcome, every: int) -> DeviceOutcome:
    """The device, with one in `every` measurements slowed, and at another lasting speed from the eleventh on."""
    rows = [
        dataclasses.replace(
            row,
            measurement=row.measurement.model_copy(
                update={
                    "quality": "slowed" if index % every == every - 1 else "ok",
                    "undisturbed_ms": row.measurement.median_ms
                    / (3.0 if index % every == every - 1 else 1.2 if index >= 10 else 1.0),
                    "regime_unix_s": 1.7e9 + (600 if index >= 10 else 0),
                }
            ),
        )
        for index, row in enumerate(device.rows)
    ]
    return dataclasses.replace(device, rows=tuple(rows))


@pytest.mark.parametrize(("every", "loud"), [(3, True), (4, False)])
def test_a_banner_warns_of_slowed_measurements(tmp_path: Path, every: int, loud: bool) -> None:
    artifacts(tmp_path, campaign_outcome(device_outcome("board-a"), slowed(device_outcome("board-b"), every)))
    page = Page(render_report(tmp_path))
    text = " ".join("".join(page.text).split())
    count = 30 // every
    assert page.values("role").count("alert") == loud
    assert (f"WARNING: {count} of 30 measurements slowed down on board-b/" in text) is loud
    assert f"{30 - count} ok, 0 noisy, {count} slowed; largest slow-down 3.00x; 2 lasting speeds" in text
    assert "27 ok, 3 noisy, 0 slowed" in text
    assert "since 22:13:20 UTC: 1.00x in 10 measurements; since 22:23:20 UTC: 1.20x in 20 measurements" in text
    plots = [label for label in page.values("aria-label") if label.startswith("Slow-down and temperature")]
    assert f"from 1.00 to 3.00 times; {count} slowed, 2 lasting speeds" in plots[1]


def test_failed_devices_are_counted_apart_from_failed_measurements(tmp_path: Path) -> None:
    failed = dataclasses.replace(
        device_outcome("board-b", status=SettingStatus.FAILED, measurements=3),
        reason="it refuses tasks",
        failures=(),
        targets=(),
    )
    unreached = tuple(TargetOutcome(target_ms, reason="not reached: device lost") for target_ms in (5.0, 10.0, 20.0))
    lost = dataclasses.replace(device_outcome("board-c", status=SettingStatus.LOST), targets=unreached, targets_asked=3)
    outcome = campaign_outcome(device_outcome("board-a"), dataclasses.replace(failed, targets_asked=4), lost)
    artifacts(tmp_path, outcome)
    page = Page(render_report(tmp_path))
    text = " ".join("".join(page.text).split())
    assert (
        "4 of 11 targets met by a fresh re-measurement on 3 device settings (1 finished, 1 lost, 1 failed): partial"
        in text
    )
    # Targets, measurements, failed ones and slowed ones.
    assert "✗ failed : it refuses tasks 0 of 4 3 0 0 of 3" in " ".join(" ".join(page.text).split())
    assert "4 targets asked for, none chosen" in text
    assert text.count("✗ not reached: device lost") == 3
    assert "no target was set" not in text


def test_what_is_said_of_a_target_stands_beside_it(tmp_path: Path) -> None:
    device = device_outcome("board-a")
    first, second, *rest = device.targets
    first = dataclasses.replace(first, verified_ms=0.9, typical_ms=0.985, note="constrains nothing: it takes 0.9 ms")
    second = dataclasses.replace(second, verified_ms=1.9, typical_ms=2.1, reason="within it in a lucky moment only")
    changed = dataclasses.replace(
        device, targets=(first, second, *rest), targets_note="a narrow range", predictor=PredictorError(59.0, 0.2, 2)
    )
    artifacts(tmp_path, campaign_outcome(changed))
    text = " ".join("".join(Page(render_report(tmp_path)).text).split())
    assert "0.900 (typical 0.985) ✓ met; constrains nothing: it takes 0.9 ms" in text
    assert "1.90 (typical 2.10) ✗ within it in a lucky moment only" in text
    assert "a narrow range" in text
    assert "too few to tell (2 held out)" in text
    assert "59.0" not in text


def test_a_folder_that_holds_no_take_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--out"):
        write_report(tmp_path)


def test_energy_is_shown_where_a_board_tells_it(tmp_path: Path) -> None:
    known = device_outcome("metered")
    target, row = known.targets[0], known.rows[0]
    assert target.sha256 is not None
    verified = dataclasses.replace(
        row,
        purpose="verification",
        measurement=row.measurement.model_copy(update={"model_sha256": target.sha256, "energy_mj": 12.34}),
    )
    metered = dataclasses.replace(known, rows=(*known.rows, verified))
    directory = tmp_path / "both"
    artifacts(directory, campaign_outcome(metered, device_outcome("silent")))
    page = Page(render_report(directory))
    assert page.text.count("Energy") == 1
    assert page.text.count("12.3 mJ") == 1
    assert page.text.count("no target was set") == 0


def test_the_first_failures_of_a_failing_device_are_listed_and_the_rest_linked(tmp_path: Path) -> None:
    device = device_outcome("board-a")
    architecture = device.rows[0].architecture
    failures = tuple(
        FailedMeasurement(f"task-{n}", 1, "candidate", architecture, "crashed", f"failure {n} of many")
        for n in range(500)
    )
    artifacts(tmp_path, campaign_outcome(dataclasses.replace(device, failures=failures)))
    text = render_report(tmp_path)
    assert "500 measurements failed" in text
    assert text.count("of many") == MAX_FAILURES
    assert f"The first {MAX_FAILURES} are shown" in text


@pytest.mark.parametrize(("widest_ms", "logarithmic"), [(2.0, False), (50.0, True)])
def test_a_front_over_a_wide_range_is_drawn_so_that_its_fast_end_can_be_read(
    tmp_path: Path, widest_ms: float, logarithmic: bool
) -> None:
    device = device_outcome("board-a")
    rows = tuple(
        dataclasses.replace(
            row,
            predicted_ms=ms,
            measurement=row.measurement.model_copy(update={"median_ms": ms}),
        )
        for row, ms in zip(device.rows, [1.0, widest_ms] * len(device.rows), strict=False)
    )
    artifacts(tmp_path, campaign_outcome(dataclasses.replace(device, rows=rows, targets=())))
    front = render_report(tmp_path).partition("<figcaption>Front")[2].partition("</figure>")[0]
    assert (">20</text>" in front or ">10</text>" in front) is logarithmic


def test_the_page_shows_what_is_classified(outcome: CampaignOutcome, tmp_path: Path) -> None:
    names = tuple(f"class {i} <b>" for i in range(40))
    images = Preprocessing(channels=1, mean=(0.5,), std=(0.25,), interpolation="bilinear", fit="letterbox")
    for shown in (names[:3], names):
        supernet = dataclasses.replace(
            outcome.supernet, dataset="textures", class_names=shown, preprocessing=images, checkpoint_sha256=None
        )
        artifacts(tmp_path, dataclasses.replace(outcome, supernet=supernet))
        page = Page(write_report(tmp_path).read_text())
        text = " ".join("".join(page.text).split())
        assert "Data settextures" in text
        assert ", ".join(shown) in text
        assert "grey, letterbox, bilinear interpolation, mean 0.5, deviation 0.25" in text
    assert "Classes40class 0 <b>, class 1" in text


def test_results_of_an_earlier_version_are_read(outcome: CampaignOutcome, tmp_path: Path) -> None:
    artifacts(tmp_path, outcome)
    written = json.loads((tmp_path / "results.json").read_text())
    for name in ("dataset", "class_names", "preprocessing"):
        del written["supernet"][name]
    (tmp_path / "results.json").write_text(json.dumps(written))
    text = render_report(tmp_path)
    assert "Data set" not in text
    assert "Classes" not in text
