"""`fleetnas export-latency`: the predictor of a run as files, and searches with them here and by the peer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from rigs import peer
from rigs.command_line import fleetnas as command_line
from rigs.search_problems import public_problem
from rigs.simulated_fleet import Simulation, file_sha256, measurement
from rigs.untrained_supernet import write_untrained

from fleetnas.coordinator.app.latency_export import export_latency
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.block_table import read_block_table
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.coordinator.search.offline import OfflineRequest, read_latency, search_offline
from fleetnas.coordinator.search.predictor_file import read_predictor_file
from fleetnas.coordinator.search.problem import PredictedAccuracy, Problem
from fleetnas.coordinator.search.table_fit import write_block_tables
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.fleet_protocol.messages import Measurement, RuntimeSetting
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes


def fleetnas(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return command_line(capsys, *map(str, arguments))


ENGINE = GuidedSettings(rounds=4)
THREADS = RuntimeSetting(threads=2)


def typical_ms(tuner: DeviceTuner, genomes: Genomes) -> np.ndarray:
    """What the tuner itself predicts."""
    undisturbed, _ = tuner.predict(genomes)
    return tuner.typical_speed.typical_ms(undisturbed)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with a bundle and the store of a search, and the tuner of one of its device settings."""
    folder = tmp_path_factory.mktemp("export")
    write_untrained(folder / "digits.supernet")
    store = MeasurementStore.open(folder / "runs.sqlite")
    fleet = Simulation(
        CampaignPlan(targets=TargetRequest.parse("auto:3"), budget=20, wait_for=2, prior="default"), store=store
    )
    fleet.add("pi4", seed=0)
    fleet.add("pi5", seed=1, settings=(RuntimeSetting(), THREADS))
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    store.close()
    tuner = fleet.campaign.setting_runs["pi4", RuntimeSetting().label].search
    return SimpleNamespace(folder=folder, tuner=tuner, store=folder / "runs.sqlite", bundle=folder / "digits.supernet")


def test_the_predictor_file_predicts_what_the_run_predicts(
    digits: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("export-latency", "run-1", "--device", "pi4", "--store", digits.store)
    code, output, errors = fleetnas(capsys, *line, "-o", tmp_path, "--json")
    assert (code, errors) == (0, "")
    told = json.loads(output)
    found = read_predictor_file(tmp_path / "predictor.json")
    assert (found.run_id, found.device, found.setting) == ("run-1", "pi4", RuntimeSetting().label)
    assert told["subnets"] == len(found.measured) >= 10
    assert len(found.features) == len(found.weights_ms) == len(found.weights_covariance_ms2)
    bundle = SupernetBundle.open(digits.bundle)
    genomes = bundle.space.sample(300, np.random.default_rng(7))
    exported = read_latency(tmp_path, bundle.space)
    np.testing.assert_allclose(exported.predict(genomes), typical_ms(digits.tuner, genomes), rtol=1e-9)
    tables = read_block_table(tmp_path / "ofa", bundle.space)  # type: ignore[arg-type]
    off = np.abs(tables.predict(genomes) / typical_ms(digits.tuner, genomes) - 1.0)
    assert 100.0 * off.max() <= 2.0 * told["table_most_percent"]
    assert told["table_rms_percent"] < 6.0  # each place of this device costs something else


def test_an_offline_search_from_the_file_finds_the_winners_of_the_predictor(
    digits: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, _ = fleetnas(
        capsys, "export-latency", "run-1", "--device", "pi4", "--store", digits.store, "-o", tmp_path
    )
    assert code == 0
    assert "block tables; they differ from the predictor by" in output
    bundle = SupernetBundle.open(digits.bundle)
    predictor = bundle.accuracy_predictor()
    assert predictor is not None
    targets_ms = [state.target_ms for state in digits.tuner.targets]
    wanted = search(
        Problem(bundle.space, PredictedAccuracy(bundle.space, predictor), OfTheRun(bundle.space, digits.tuner)),
        targets_ms,
        rng=np.random.default_rng(0),
        engine=ENGINE,
        leave_out_infeasible=True,
    )
    targets_ms = [winner.target_ms for winner in wanted.winners]
    found = search_offline(OfflineRequest(None, tmp_path, digits.bundle, tuple(targets_ms), engine=ENGINE))
    for winner, own in zip(found.result.winners, wanted.winners, strict=True):
        assert winner.accuracy >= own.accuracy - 1e-9
        assert winner.latency_ms <= winner.target_ms


class OfTheRun:
    """The run's own predictor as a latency model."""

    def __init__(self, space: DesignSpace, tuner: DeviceTuner) -> None:
        self.space, self.tuner = space, tuner

    def predict(self, genomes: Genomes) -> np.ndarray:
        return typical_ms(self.tuner, genomes)

    def slot_tables(self) -> Any:
        base = self.space.smallest()
        constant = float(self.predict(base)[0])
        return constant, tuple(costs[:, 1:5].sum(axis=1) / 1e6 for costs in self.space.slot_costs)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("run-9", "--device", "pi4"), "run-9"),
        (("run-1", "--device", "pi9"), "run run-1 has no device pi9; did you mean pi5? it has pi4, pi5"),
        (("run-1", "--device", "pi5"), "choose one with --setting"),
        (("run-1", "--device", "pi4", "--setting", "onnxruntime,threads=9"), "pi4 has no setting"),
    ],
)
def test_what_is_not_there_is_named(
    digits: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    complaint: str,
) -> None:
    out = tmp_path / "out"
    code, output, errors = fleetnas(capsys, "export-latency", *options, "--store", digits.store, "-o", out)
    assert (code, output) == (2, "")
    assert complaint in errors.replace("\n", " ")
    assert not out.exists(), "an empty folder would be taken for latencies"


@pytest.mark.parametrize("setting", ["onnxruntime,threads=2", THREADS.label])
def test_a_setting_is_named_by_its_options_or_its_label(
    digits: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    line = ("export-latency", "run-1", "--device", "pi5", "--setting", setting, "--store", digits.store)
    assert fleetnas(capsys, *line, "-o", tmp_path)[0] == 0
    assert read_predictor_file(tmp_path / "predictor.json").setting == THREADS.label


def test_a_predictor_file_that_cannot_be_used_says_why(
    digits: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("export-latency", "run-1", "--device", "pi4", "--store", digits.store)
    assert fleetnas(capsys, *line, "-o", tmp_path)[0] == 0
    offline = ("search", "--offline", "--accuracy", digits.bundle, "--targets", "5", "--out", tmp_path / "out")
    file = tmp_path / "predictor.json"
    code, _, errors = fleetnas(capsys, *offline, "--latency-table", file, "--space", "ofa-mbv3")
    assert (code, "is of digits, not of ofa-mbv3; leave out --space" in errors.replace("\n", " ")) == (2, True)
    fields = json.loads(file.read_text())
    for change, complaint in (
        ({"version": 2}, "version"),
        ({"slots": fields["slots"][:-1]}, "make it for the same space"),
        ({"constant_ms": None}, "constant_ms"),
        ({"space": "nowhere"}, "nowhere"),
    ):
        file.write_text(json.dumps(fields | change))
        code, output, errors = fleetnas(capsys, *offline, "--latency-table", file)
        assert (code, output) == (2, "")
        assert complaint in errors.replace("\n", " ")
        assert "Traceback" not in errors


class Note10Like:
    """The Note10's published latencies, with a cost of its own for each place in a stage."""

    def __init__(self, data: Path) -> None:
        self.space, self.accuracy, table = public_problem(data)
        constant, tables = table.slot_tables()
        rng = np.random.default_rng(5)
        self.latency = SlotTableLatency(self.space, constant, [each * rng.uniform(0.9, 1.1) for each in tables])
        self._rng = np.random.default_rng(6)

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        ms = float(self.latency.predict(self.space.encode([task.architecture]))[0]) * self._rng.normal(1.0, 0.01)
        return measurement(ms, file_sha256(task.architecture, task.calibration), finished_unix_s)


@pytest.fixture(scope="module")
def exported(public_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The files of a simulated search of OFA-MobileNetV3."""
    device, folder = Note10Like(public_data), tmp_path_factory.mktemp("note10")
    store = MeasurementStore.open(folder / "runs.sqlite")
    fleet = Simulation(
        CampaignPlan(targets=TargetRequest.parse("20,40"), budget=24, prior="default"),
        store=store,
        space=device.space,
        accuracy=PredictedAccuracy(device.space, device.accuracy),
        checked=False,
    )
    fleet.models.space, fleet.models.predicted = device.space, fleet.accuracy  # type: ignore[attr-defined]
    agent = fleet.add("note10")
    agent.devices = {RuntimeSetting(): device}  # type: ignore[dict-item]
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    told = export_latency(store, "run-1", "note10", None, folder)
    store.close()
    tuner = fleet.campaign.setting_runs["note10", RuntimeSetting().label].search
    return SimpleNamespace(folder=folder, told=told, device=device, tuner=tuner)


def test_the_peer_reads_the_tables_as_we_do(exported: SimpleNamespace) -> None:
    module = peer.import_peer("ofa.tutorial.latency_table")
    space = exported.device.space
    genomes = space.sample(500, np.random.default_rng(0))
    ours = read_block_table(exported.folder / "ofa", space).predict(genomes)
    theirs = peer_tables(module, exported.folder, space.resolutions)
    wanted = [
        theirs[a.r].predict_network_latency_given_spec(
            {"ks": list(a.ks), "e": [int(ratio) for ratio in a.e], "d": list(a.d), "r": [a.r]}
        )
        for a in space.decode(genomes)
    ]
    assert np.abs(ours - wanted).max() <= 1e-6
    assert exported.told.table_error.rms_percent < 3.0
    np.testing.assert_allclose(ours, typical_ms(exported.tuner, genomes), rtol=0.1)


def test_the_tables_drive_the_peers_evolution_finder(exported: SimpleNamespace, public_data: Path) -> None:
    module = peer.import_peer("ofa.tutorial.latency_table")
    finder_module = peer.import_peer("ofa.tutorial.evolution_finder")
    accuracy_module = peer.import_peer("ofa.tutorial.accuracy_predictor")
    import torch

    finder_module.tqdm = lambda steps, **_: steps
    accuracy = accuracy_module.AccuracyPredictor(pretrained=False, device="cpu")
    state = torch.load(public_data / "ofa_mbv3" / "acc_predictor.pth", map_location="cpu", weights_only=True)
    accuracy.model.load_state_dict(state)
    latency = module.LatencyTable.__new__(module.LatencyTable)
    latency.latency_tables = peer_tables(module, exported.folder, exported.device.space.resolutions)
    finder = finder_module.EvolutionFinder(
        "note10", 30.0, latency, accuracy, max_time_budget=3, population_size=20, parent_ratio=0.25
    )
    _, (_, found, their_ms) = finder.run_evolution_search()
    space = exported.device.space
    architecture = space.decode(space.largest())[0].model_copy(
        update={
            "ks": tuple(found["ks"]),
            "e": tuple(float(ratio) for ratio in found["e"]),
            "d": tuple(found["d"]),
            "r": found["r"][0],
        }
    )
    genome = space.canonical(space.encode([architecture]))
    our_ms = read_block_table(exported.folder / "ofa", space).predict(genome)[0]
    assert abs(our_ms - their_ms) <= 1e-6
    assert their_ms <= 30.0


def peer_tables(module: Any, folder: Path, resolutions: tuple[int, ...]) -> dict[int, Any]:
    """The peer's estimators; their constructor downloads, and the file is here."""
    found = {}
    for resolution in resolutions:
        found[resolution] = module.LatencyEstimator.__new__(module.LatencyEstimator)
        text = (folder / "ofa" / f"{resolution}_lookup_table.yaml").read_text()
        found[resolution].lut = yaml.load(text, Loader=yaml.SafeLoader)
        assert all(isinstance(layer["mean"], float) for layer in found[resolution].lut.values())
    return found


def test_a_model_that_is_a_sum_of_shapes_is_written_exactly(public_data: Path, tmp_path: Path) -> None:
    space, _, latency = public_problem(public_data)
    error = write_block_tables(tmp_path, space, latency.predict, latency.slot_tables())
    assert error.most_percent < 1e-6
