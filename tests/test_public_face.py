"""`import fleetnas`: which names it has, that it loads nothing heavy, and that each of them does its work."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from rigs import waiting
from rigs.outcome_examples import campaign_outcome, device_outcome, model_of
from rigs.supernets import random_bundle

import fleetnas
from fleetnas.api.fleet_search import _EventFeed
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.report.artifacts import ArtifactFolder
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import CorruptBundleError, InfeasibleTargetError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "Architecture",
    "CampaignPlan",
    "FineTuningRecipe",
    "FleetnasError",
    "LatencyPredictor",
    "Tuner",
    "__version__",
    "design_space",
    "emit_subnet",
    "export_digits",
    "fine_tune",
    "open_bundle",
    "plot_fronts",
    "plot_results",
    "read_results",
    "search",
    "search_fleet",
    "slice_subnet",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return fleetnas.export_digits(tmp_path_factory.mktemp("digits") / "digits.supernet")


def macs_latency(bundle: SupernetBundle, architectures: list[fleetnas.Architecture]) -> np.ndarray:
    """A latency that is linear in multiply-accumulates, ms."""
    return 0.05 + bundle.space.macs(bundle.space.encode(architectures)) / 1e7


def test_the_public_names_are_these() -> None:
    assert set(fleetnas.__all__) == NAMES
    assert set(dir(fleetnas)) >= NAMES
    assert fleetnas.__version__ == version("fleetnas")
    for name in NAMES - {"__version__"}:
        assert inspect.getdoc(getattr(fleetnas, name)), name
    with pytest.raises(AttributeError, match="no_such_name"):
        fleetnas.no_such_name  # noqa: B018


def test_importing_it_loads_neither_numpy_nor_a_runtime() -> None:
    program = "import sys, fleetnas; fleetnas.__version__; print(*sys.modules)"
    run = waiting.run([sys.executable, "-c", program])
    run.check_returncode()
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"numpy", "torch", "onnx", "onnxruntime", "pydantic", "rich", "sqlalchemy", "matplotlib"}


def test_a_bundle_is_opened_by_its_hash(digits: SupernetBundle, tmp_path: Path) -> None:
    assert fleetnas.open_bundle(digits.path, sha256=digits.sha256).space.size == digits.space.size
    with pytest.raises(fleetnas.FleetnasError, match="SHA-256"):
        fleetnas.open_bundle(digits.path, sha256="0" * 64)
    (tmp_path / "other.supernet").write_text("no bundle")
    with pytest.raises(CorruptBundleError):
        fleetnas.open_bundle(str(tmp_path / "other.supernet"))


def test_a_subnet_is_sliced_and_emitted_in_every_format(digits: SupernetBundle) -> None:
    (architecture,) = digits.space.decode(digits.space.smallest())
    assert fleetnas.slice_subnet(digits, architecture).layers
    files = {
        (model_format, precision): fleetnas.emit_subnet(
            digits, architecture, model_format=model_format, precision=precision
        )
        for model_format in ("onnx", "tflite")
        for precision in ("fp32", "int8")
    }
    assert len({*files.values()}) == 4
    assert files["onnx", "fp32"] == fleetnas.emit_subnet(digits, architecture)
    assert files["tflite", "fp32"][4:8] == b"TFL3"


def test_without_images_a_subnet_keeps_the_statistics_of_its_supernet(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "random.supernet", OfaMbv3Space())
    (architecture,) = bundle.space.decode(bundle.space.smallest())
    assert fleetnas.emit_subnet(bundle, architecture)
    with pytest.raises(UsageError):
        fleetnas.slice_subnet(bundle, architecture, calibration_images=tmp_path / "nothing here")


def test_a_predictor_learns_and_a_search_keeps_its_targets(digits: SupernetBundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    predictor = fleetnas.LatencyPredictor(digits)
    chosen = predictor.suggest(12, rng)
    predictor.fit(chosen, macs_latency(digits, chosen))
    others = digits.space.decode(digits.space.sample(30, rng))
    mean_ms, deviation_ms = predictor.predict(others)
    assert mean_ms.shape == deviation_ms.shape == (30,)
    assert np.abs(mean_ms / macs_latency(digits, others) - 1).max() < 0.1
    assert predictor.count == predictor.held_out_error().held_out == 12

    targets = [float(np.quantile(mean_ms, share)) for share in (0.7, 0.3)]
    found = fleetnas.search(digits, predictor, targets)
    assert [winner.target_ms for winner in found.winners] == targets
    assert all(winner.latency_ms <= winner.target_ms for winner in found.winners)
    cautious = fleetnas.search(digits, predictor.latency_model(margin=3.0), targets)
    assert cautious.winners[1].accuracy <= found.winners[1].accuracy
    fleetnas.plot_fronts({"mean": found, "cautious": cautious}, tmp_path / "fronts.svg", title="two margins")
    assert b"two margins" in (tmp_path / "fronts.svg").read_bytes()


def test_a_search_says_what_it_lacks(digits: SupernetBundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no latency table"):
        fleetnas.search(digits, tmp_path, [1.0])
    with pytest.raises(UsageError, match="accuracy predictor"):
        fleetnas.search(fleetnas.design_space("ofa-mbv3", width=1.2), tmp_path, [1.0])
    with pytest.raises(UsageError):
        fleetnas.design_space("ofa-mbv4")
    without_accuracy = random_bundle(tmp_path / "random.supernet", OfaMbv3Space())
    with pytest.raises(UsageError, match="accuracy predictor"):
        fleetnas.search(without_accuracy, fleetnas.LatencyPredictor(without_accuracy), [1.0])
    with pytest.raises(UsageError, match="accuracy predictor"):
        fleetnas.Tuner(without_accuracy, [1.0])


def test_a_tuner_says_what_it_cannot_search(digits: SupernetBundle) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        fleetnas.Tuner(digits, [1.0], budget=2)
    with pytest.raises(UsageError, match="at least 3"):
        fleetnas.Tuner(digits, [1.0], initial_design=0)
    with pytest.raises(InfeasibleTargetError, match="the smallest subnet has"):
        fleetnas.Tuner(digits, [1.0], bounds=Bounds(parameters=10))


def test_the_tuner_meets_targets_by_measured_subnets(digits: SupernetBundle) -> None:
    tuner = fleetnas.Tuner(digits, "auto:2", budget=12, initial_design=6, clock=lambda: 1.0)
    measured: set[str] = set()
    while not tuner.finished:
        for proposal in tuner.ask(4):
            measured.add(proposal.architecture.fingerprint)
            tuner.tell(proposal, float(macs_latency(digits, [proposal.architecture])[0]))
    assert tuner.phase == "done"
    assert [target.status for target in tuner.targets] == ["met", "met"]
    for target in tuner.targets:
        assert target.architecture is not None
        assert target.verified_ms is not None
        assert target.architecture.fingerprint in measured
        assert target.verified_ms <= target.target_ms


def test_a_tuner_whose_measurements_all_fail_ends(digits: SupernetBundle) -> None:
    tuner = fleetnas.Tuner(digits, [1.0], clock=lambda: 1.0)
    while not tuner.finished:
        for proposal in tuner.ask():
            tuner.fail(proposal, "out_of_memory", "tried in a test")
    assert [target.status for target in tuner.targets] == ["missed"]


def test_a_closed_iterator_interrupts_its_search_once_unless_it_has_finished() -> None:
    feed = _EventFeed()
    at_work = Snapshot("run-1", "digits.supernet", started_s=0.0, now_s=1.0, phase="searching")
    feed.update(at_work)
    feed.stop()
    feed.update(replace(at_work, phase="finished"))
    with pytest.raises(KeyboardInterrupt):
        feed.update(at_work)
    feed.update(at_work)


def test_a_fleet_search_that_cannot_be_opened_closes_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[MeasurementStore] = []
    really_close = MeasurementStore.close

    def close(store: MeasurementStore) -> None:
        closed.append(store)
        really_close(store)

    monkeypatch.setattr(MeasurementStore, "close", close)
    store = str(tmp_path / "runs.sqlite")
    with pytest.raises(fleetnas.FleetnasError, match="nothing"):
        next(fleetnas.search_fleet(tmp_path / "nothing", "localhost", fleetnas.CampaignPlan(targets="1"), store=store))
    assert len(closed) == 1


def test_results_are_read_and_drawn(tmp_path: Path) -> None:
    outcome = campaign_outcome(device_outcome("pi4"), device_outcome("pi5"))
    artifacts = ArtifactFolder(tmp_path)
    for device in outcome.devices:
        for target in device.targets:
            if target.met:
                artifacts.add_winner(device, target, model_of(device.device, target.target_ms))
    artifacts.write(outcome)
    assert [device.device for device in fleetnas.read_results(tmp_path).fleet] == ["pi4", "pi5"]
    plots = fleetnas.plot_results(tmp_path)
    assert {label.partition("/")[0] for label in plots} == {"pi4", "pi5"}
    assert all(plot.svg.startswith("<svg") for of_device in plots.values() for plot in of_device)
    with pytest.raises(fleetnas.FleetnasError):
        fleetnas.read_results(tmp_path / "elsewhere")


def test_the_example_runs(tmp_path: Path) -> None:
    example = ROOT / "docs" / "examples" / "first_search.py"
    run = waiting.run([sys.executable, str(example), str(tmp_path)])
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"digits.supernet", "front.png", "winner.onnx"}
