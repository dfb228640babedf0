"""The documentation's pictures are drawn from a artifacts."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome

from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE
from fleetnas.coordinator.store.measurement_table import read_measurements


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", Path(__file__).parents[2] / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("share", "measured"), [(0.25, 8), (0.5, 15), (1.0, 30)])
def test_the_view_stands_as_it_did_at_that_time(
    pictures: ModuleType, tmp_path: Path, share: float, measured: int
) -> None:
    results = artifacts(tmp_path, campaign_outcome(device_outcome("board-a")))
    snapshot = pictures.snapshot_at(results, read_measurements(tmp_path / MEASUREMENTS_FILE), share)
    (device,) = snapshot.devices
    assert device.measurements == measured
    assert device.state == ("done" if share == 1.0 else "measuring")
    assert device.temperature_c == pytest.approx(45.0 + 0.4 * (measured - 1))
    assert all(target.verified_ms is None and target.met is None for target in device.targets)
    assert all(target.measured_ms is None or target.measured_ms <= target.target_ms for target in device.targets)


def test_the_picture_is_an_image_that_loads_nothing(pictures: ModuleType, tmp_path: Path) -> None:
    results = artifacts(tmp_path, campaign_outcome(device_outcome("board-a")))
    snapshot = pictures.snapshot_at(results, read_measurements(tmp_path / MEASUREMENTS_FILE), 0.5)
    pictures.draw_live_view(snapshot, 80, 24, tmp_path / "live.svg")
    text = (tmp_path / "live.svg").read_text()
    shown = " ".join("".join(ElementTree.fromstring(text).itertext()).split())
    assert "board-a" in shown
    assert "15/40" in shown
    assert "url(" not in text.replace("url(#", "")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_view_of_a_run_in_the_middle_tells_the_time_left(pictures: ModuleType, tmp_path: Path) -> None:
    results = artifacts(tmp_path, campaign_outcome(device_outcome("board-a")))
    snapshot = pictures.snapshot_at(results, read_measurements(tmp_path / MEASUREMENTS_FILE), 0.5)
    assert 0.0 < snapshot.progress.done < 1.0
    assert 0.0 < snapshot.progress.least_left_s <= snapshot.progress.left_s <= snapshot.progress.most_left_s


def test_invented_fleets_are_drawn_at_every_size(pictures: ModuleType, tmp_path: Path) -> None:
    pictures.draw_scenes(tmp_path, "no-such-browser")
    assert len(list(tmp_path.glob("scene-*.svg"))) == 9
    assert "kitchen-pi4" in (tmp_path / "scene-12-80x24.svg").read_text()
