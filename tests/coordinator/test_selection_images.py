"""Selection images from the request to the winners: what is refused, what is warned of, and real files."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rigs.command_line import fleetnas
from rigs.measuring_device import MeasuringDevice
from rigs.simulated_fleet import Simulation
from rigs.untrained_supernet import write_untrained

pytest.importorskip("sklearn")

import fleetnas as product
from fleetnas.api.fleet_search import _image_folders
from fleetnas.coordinator.app import offline_selection
from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.images import checked_images, checked_selection_images, selection_warnings
from fleetnas.coordinator.app.offline_selection import OfflineSelection
from fleetnas.coordinator.app.request import FleetAccess, ImageFolders, NewRun, SearchRequest
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.coordinator.search.offline import OfflineOutcome, OfflineRequest
from fleetnas.coordinator.search.problem import Problem
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import LinesView
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
from fleetnas.supernet_export.digits.data import load_digits
from fleetnas.supernet_export.evaluation.images import DigitsImages, open_images
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.spaces.base import DesignSpace


def write_digits(folder: Path, rows: Sequence[int]) -> Path:
    """Write test digits as images, in a folder per class."""
    part = load_digits().test
    for row in rows:
        of_class = folder / str(part.labels[row])
        of_class.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(part.images[row] * (255 / 16), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(of_class / f"{row}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    folder = tmp_path_factory.mktemp("bundle")
    export_digits(folder / "digits.supernet")
    return SupernetBundle.open(folder / "digits.supernet")


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("selection"), range(120))


def opened(supernet: Path, rerank: int, images: ImageFolders, store: MeasurementStore) -> None:
    nobody = FleetAccess(BrokerAddress("127.0.0.1", 1))
    plan = CampaignPlan(targets="auto:2", rerank=rerank)
    request = SearchRequest("", nobody, NewRun(supernet, plan), images=images)
    open_search(request, functools.partial(LinesView, io.StringIO()), store).close()


def other_dataset(tmp_path: Path) -> Path:
    """Write a bundle that is not of the built-in digits."""
    bundle = SupernetBundle.open(write_untrained(tmp_path / "untrained.supernet"))
    manifest = bundle.manifest.model_copy(update={"dataset": "mine"})
    write_bundle(tmp_path / "mine.supernet", manifest, {name: bundle.tensor(name) for name in bundle.names})
    return tmp_path / "mine.supernet"


def test_candidates_without_images_and_images_without_candidates_are_refused(
    tmp_path: Path, bundle: SupernetBundle, selection: Path
) -> None:
    nothing = (None, None)
    with pytest.raises(UsageError, match="--rerank K"):
        checked_selection_images(bundle, ImageFolders(selection=selection), nothing, 0)
    assert checked_selection_images(bundle, ImageFolders(), nothing, 0) is None
    # The built-in digits have their own.
    own = checked_selection_images(bundle, ImageFolders(), nothing, 4)
    assert own is not None
    assert list(own.labels) == list(DigitsImages("calibration").labels)
    mine = SupernetBundle.open(other_dataset(tmp_path))
    with pytest.raises(UsageError, match="--selection-images DIR"):
        checked_selection_images(mine, ImageFolders(), nothing, 4)


def test_the_command_refuses_selection_images_without_candidates(
    capsys: pytest.CaptureFixture[str], bundle: SupernetBundle, selection: Path, tmp_path: Path
) -> None:
    begun = ["search", "--local", "--supernet", str(bundle.path), "--targets", "1", "--out", str(tmp_path / "out")]
    code, _, err = fleetnas(capsys, *begun, "--selection-images", str(selection))
    assert (code, "--rerank K" in err) == (2, True)
    code, _, err = fleetnas(capsys, "search", "--offline", "--targets", "1", "--selection-images", str(selection))
    assert (code, "--rerank K" in err) == (2, True)


def test_a_broken_selection_image_costs_an_error_before_the_first_measurement(
    tmp_path: Path, bundle: SupernetBundle
) -> None:
    folder = write_digits(tmp_path / "selection", range(40))
    (folder / "3" / "broken.png").write_bytes(b"no image")
    store = MeasurementStore.open("sqlite://")
    with pytest.raises(UsageError, match=r"1 of 41 images .*broken\.png"):
        opened(bundle.path, 3, ImageFolders(selection=folder), store)
    assert store.runs() == []


def test_images_that_are_used_twice_are_warned_of_and_read_once(
    tmp_path: Path, bundle: SupernetBundle, selection: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(selection)
    assert selection_warnings(ImageFolders(calibration=tmp_path, evaluation=tmp_path, selection=selection)) == []
    (reported,) = selection_warnings(ImageFolders(evaluation=link, selection=selection))
    assert "selected on the reported images" in reported
    (calibrated,) = selection_warnings(ImageFolders(calibration=selection, selection=selection))
    assert "calibration images" in calibrated
    folders = ImageFolders(evaluation=link, selection=selection)
    sources = checked_images(bundle, folders)
    read: list[int] = []
    found = checked_selection_images(bundle, folders, sources, 3, lambda done, total: read.append(done))
    assert found is sources[1]
    assert read == []


def test_from_python_images_are_named_by_their_purpose(tmp_path: Path) -> None:
    assert _image_folders({"selection": tmp_path}) == ImageFolders(selection=tmp_path)
    with pytest.raises(UsageError, match="not for selected"):
        _image_folders({"selected": tmp_path})
    plan = product.CampaignPlan(targets="1", rerank=2)
    supernet, store = write_untrained(tmp_path / "s.supernet"), str(tmp_path / "runs.sqlite")
    images = {"selection": tmp_path / "nowhere"}
    search = product.search_fleet(supernet, "127.0.0.1:1", plan, store=store, images=images)
    with pytest.raises(UsageError, match="no folder of images"):
        next(search)


def ended(models: BundleWinnerBuilder, setting: RuntimeSetting) -> Simulation:
    fleet = Simulation(CampaignPlan(targets="auto:2", budget=8, initial_design=6, rerank=3), models=models)
    agent = fleet.add("pi", settings=(setting,))
    agent.devices = {setting: MeasuringDevice(models, setting)}
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    return fleet


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_candidates_are_evaluated_as_the_files_that_ship(
    bundle: SupernetBundle, selection: Path, precision: str
) -> None:
    setting = RuntimeSetting(precision=precision)
    folders = ImageFolders(selection=selection)
    images = checked_images(bundle, folders)
    chosen_by = checked_selection_images(bundle, folders, images, 3)
    models = BundleWinnerBuilder(bundle, *images, chosen_by)
    fleet = ended(models, setting)
    fresh = BundleWinnerBuilder(bundle, *images, chosen_by)
    evaluations = fleet.store.evaluations.of_run("run-1")
    chosen = {each.fingerprint: each for each in evaluations if each.part == "selection"}
    assert 3 <= len(chosen) <= 6
    assert {each.precision for each in evaluations} == {precision}
    (device,) = outcome_of(fleet.store, "run-1").devices
    for target in device.targets:
        assert target.architecture is not None
        assert target.selection is not None
        model = fresh.calibrate(target.architecture, setting)
        assert model.sha256 == target.sha256
        assert fresh.answers(model, "selection") == target.selection
        assert target.selection.images == 120
        assert target.answers is not None
        assert target.accuracy == target.answers.accuracy
        assert target.accuracy_images == 600


def test_stored_answers_to_other_images_are_not_taken_over(bundle: SupernetBundle, selection: Path) -> None:
    images = checked_images(bundle, ImageFolders())
    fleet = ended(BundleWinnerBuilder(bundle, *images, DigitsImages("calibration")), RuntimeSetting())
    stored = fleet.store.evaluations.of_run("run-1")
    target = outcome_of(fleet.store, "run-1").devices[0].targets[0]
    assert target.architecture is not None
    folder = checked_selection_images(bundle, ImageFolders(selection=selection), images, 3)
    for chosen_by, known in ((DigitsImages("calibration"), 200), (folder, 120)):
        models = BundleWinnerBuilder(bundle, *images, chosen_by)
        models.adopt(stored)
        recalled = models.known_answers(target.architecture, RuntimeSetting(), "selection")
        assert recalled == (target.selection if known == 200 else None)
        model = models.calibrate(target.architecture, RuntimeSetting())
        assert models.evaluates_at_once(model)
        found = models.answers(model, "selection")
        assert found is not None
        assert found.images == known
        assert (found == target.selection) is (known == 200)


def macs_table(space: DesignSpace) -> SlotTableLatency:
    """Stands for a measured table: a microsecond per thousand multiply-accumulates."""
    return SlotTableLatency(space, 0.01, [costs[:, 1:5].sum(axis=1) / 1e6 for costs in space.slot_costs])


def test_an_offline_search_chooses_by_selection_images(
    bundle: SupernetBundle, selection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, targets_ms = bundle.space, (2.0, 0.8)
    monkeypatch.setattr(offline_selection, "read_latency", lambda path, space: macs_table(space))
    request = OfflineRequest("digits", Path("table"), bundle.path, targets_ms, engine=GuidedSettings(rounds=3))
    predictor = bundle.accuracy_predictor()
    assert predictor is not None
    found = search(
        Problem(space, predictor, macs_table(space)), targets_ms, rng=np.random.default_rng(0), engine=request.engine
    )
    outcome = OfflineOutcome(request, space, found)
    seen: list[tuple[int, int]] = []
    chooser = OfflineSelection(bundle.path, ImageFolders(selection=selection), 4, lambda done, total: None)
    chosen = chooser.choose(outcome, lambda done, total: seen.append((done, total)))
    assert seen == [(done, seen[-1][1]) for done in range(1, seen[-1][1] + 1)]
    assert 4 <= len(seen) <= 8
    assert [winner.target_ms for winner in chosen.result.winners] == list(targets_ms)
    models = BundleWinnerBuilder(bundle, DigitsImages("calibration"), None, open_images(bundle, selection))
    for winner, before, answers in zip(chosen.result.winners, found.winners, chosen.selection, strict=True):
        assert macs_table(space).predict(winner.genome[None])[0] <= winner.target_ms
        assert models.answers(models.calibrate(winner.architecture, RuntimeSetting()), "selection") == answers
        predicted = models.answers(models.calibrate(before.architecture, RuntimeSetting()), "selection")
        assert predicted is not None
        assert answers.accuracy >= predicted.accuracy
    assert chosen.selection[0].accuracy >= chosen.selection[1].accuracy
    (entry, _) = chosen.to_json()["targets"]
    assert entry["selection_images"] == 120
    assert "selection_accuracy" not in outcome.to_json()["targets"][0]
    with pytest.raises(UsageError, match=r"--accuracy FILE\.supernet"):
        OfflineSelection(Path("known.csv"), ImageFolders(selection=selection), 4, lambda done, total: None)
