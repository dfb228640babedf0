"""Where commands write: names fit contents, places are tried before the work, and a full disk is told in one line."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.simulated_fleet import Simulation, StandInModels
from rigs.untrained_supernet import write_untrained

from fleetnas.agent.cli.main import main as agent_main
from fleetnas.coordinator.app.results_writer import ResultsWriter
from fleetnas.coordinator.app.run_artifacts import write_artifacts
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE, read_results
from fleetnas.coordinator.report.html import REPORT_FILE
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import HashMismatchError, UsageError
from fleetnas.supernet_export.output_files import check_file, check_folder, write_atomically

FIT = ("accuracy", "fit", "evaluated.csv", "--space", "digits", "-o")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestSuffixes:
    @pytest.mark.parametrize(
        ("command", "name", "right"),
        [
            (("evaluate", "B", "smallest", "-o"), "x.tflite", "x.onnx"),
            (("evaluate", "B", "smallest", "-o"), "model", "model.onnx"),
            (("evaluate", "B", "smallest", "--runtime", "litert", "-o"), "x.onnx", "x.tflite"),
            (("export", "digits", "-o"), "x.onnx", "x.supernet"),
            (("export", "ofa-mbv3-w1.0", "-o"), "x.pth", "x.supernet"),
            (("export", "B", "--space", "digits", "-o"), "x.safetensors", "x.supernet"),
            (("export-data", "--store", "S", "-o"), "x.xlsx", "x.csv"),
            (("export-data", "--store", "S", "-o"), "x.json", "x.csv"),
            (("export-data", "--store", "S", "--format", "csv", "-o"), "x.parquet", "x.csv"),
            (("export-data", "--store", "S", "--format", "parquet", "-o"), "x.CSV", "x.parquet"),
            (FIT, "x.pth", "x.safetensors"),
            (FIT, "x", "x.safetensors"),
            (("enroll", "pi4", "--authority", "A", "-o"), "pi4.zip", "pi4.credentials"),
            (("broker", "rotate", "A", "-o"), "next.yaml", "next.credentials"),
        ],
    )
    def test_a_name_that_promises_another_content_is_refused_before_the_work(
        self, capsys: pytest.CaptureFixture[str], here: Path, command: tuple[str, ...], name: str, right: str
    ) -> None:
        pytest.importorskip("sklearn")
        write_untrained(here / "B")
        MeasurementStore.open(here / "S").close()
        if "A" in command:
            fleetnas(capsys, "broker", "init", "A", "--host", "localhost")
        before = sorted(here.rglob("*"))
        code, out, err = fleetnas(capsys, *command, name)
        assert (code, out) == (2, "")
        assert name in err
        assert f"such as {right}\n" in err
        assert sorted(here.rglob("*")) == before

    def test_names_that_promise_nothing_else_are_taken(self, tmp_path: Path) -> None:
        for name in ("data", "data.csv", "DATA.CSV", "run.2026", "pi4.home"):
            check_file("-o", tmp_path / name, ".csv")
        check_file("-o", tmp_path / "x.ONNX", ".onnx", strict=True)
        assert not list(tmp_path.iterdir())

    def test_the_agents_table_of_windows_is_no_spreadsheet(
        self, capsys: pytest.CaptureFixture[str], here: Path
    ) -> None:
        (here / "model.onnx").write_bytes(b"")
        with pytest.raises(SystemExit) as ended:
            agent_main(["bench", "model.onnx", "--sustained", "1m", "--csv", "windows.xlsx"])
        assert ended.value.code == 2
        assert "such as windows.csv" in capsys.readouterr().err
        assert not (here / "windows.xlsx").exists()


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (lambda folder: folder / "file", "is not a folder"),
    "below a file": (lambda folder: folder / "file" / "out", "Not a directory"),
    "where nobody writes, root included": (lambda _: Path("/proc/self/fleetnas"), "No such file or directory"),
    "a device": (lambda _: Path("/dev/null"), "is not a folder"),
    "too long": (lambda folder: folder / ("x" * 300), "File name too long"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_results_cannot_go_is_said_before_the_search(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    where, words = PLACES[place]
    out = where(tmp_path)
    store = str(tmp_path / "runs.sqlite")
    bundle = write_untrained(tmp_path / "untrained.supernet")
    fleet = ("--broker", "127.0.0.1:1", "--targets", "5", "--supernet", str(bundle), "--store", store)
    offline = ("--offline", "--targets", "20", "--latency-table", "table", "--accuracy", "known.csv")
    for command in (("search", *fleet), ("search", *offline), ("demo",)):
        code, printed, err = fleetnas(capsys, *command, "--out", str(out))
        assert (code, printed) == (2, "")
        assert f"--out {out}" in err
        assert words in err
        assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
    assert fleetnas(capsys, "runs", "--store", store, "--json") == (0, "", "")


def test_no_device_file_is_replaced_and_no_folder(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), Path("/dev/full"), tmp_path):
        with pytest.raises(UsageError, match="no file that can be replaced"):
            check_file("--output", path, ".csv")
    with pytest.raises(UsageError, match="cannot be written"):
        check_file("--output", Path("/proc/self/x.csv"), ".csv")
    check_folder("--out", tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    path = tmp_path / "results.json"
    path.write_text("old")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from fleetnas.supernet_export.output_files import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_atomically(Path(sys.argv[1]), bytes(9000))\n"
        "except OSError as error: print(error.errno, error.filename, error.filename2)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(errno.EFBIG), str(path), "None"]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class Files(StandInModels):
    """Winners' files are what the stand-in's hash is taken of; `broken` says of which there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()

    def file(self, model: CalibratedModel) -> bytes:
        if model.architecture.fingerprint in self.broken:
            raise HashMismatchError("the bundle is another")
        assert model.calibration is not None
        return f"{model.architecture.fingerprint} {hashlib.sha256(model.calibration).hexdigest()}".encode()


@pytest.fixture
def finished() -> Simulation:
    fleet = Simulation(CampaignPlan(targets="auto:2", budget=10, initial_design=6), models=Files())
    fleet.add("pi0")
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    return fleet


class TestParts:
    def test_a_winner_without_a_file_costs_no_other_result(self, finished: Simulation, tmp_path: Path) -> None:
        models = finished.models
        assert isinstance(models, Files)
        (setting_run,) = finished.campaign.setting_runs.values()
        first, second = (state.architecture for state in setting_run.search.targets)
        assert first is not None
        assert second is not None
        models.broken.add(first.fingerprint)
        (remark,) = write_artifacts(finished.store, "run-1", tmp_path, models)
        assert "has no model file" in remark
        results = read_results(tmp_path)
        assert [target.met for target in results.fleet[0].targets] == [True, True]
        assert [target.model is not None for target in results.fleet[0].targets] == [False, True]
        assert (tmp_path / REPORT_FILE).is_file()

    def test_a_report_that_fails_costs_no_result(
        self, finished: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)  # as where it is not installed
        # An earlier test of this process may have imported the module that imports it.
        monkeypatch.delitem(sys.modules, "fleetnas.coordinator.view.page_templates", raising=False)
        (remark,) = write_artifacts(finished.store, "run-1", tmp_path, finished.models)
        assert "the report could not be written" in remark
        assert read_results(tmp_path).status == "complete"
        assert (tmp_path / MEASUREMENTS_FILE).is_file()

    def test_a_run_at_work_has_no_report_of_another(self, finished: Simulation, tmp_path: Path) -> None:
        (tmp_path / REPORT_FILE).write_text("of an earlier run")
        assert write_artifacts(finished.store, "run-1", tmp_path, finished.models, report=False) == []
        assert not (tmp_path / REPORT_FILE).exists()
        assert read_results(tmp_path).targets_met == 2


class TestWhileAtWork:
    def test_results_are_written_when_targets_are_decided_and_not_too_often(self) -> None:
        written: list[int] = []
        now = [0.0]

        def write() -> None:
            written.append(len(written))
            now[0] += 1.0  # it takes a second

        writer = ResultsWriter(write, lambda _: None, lambda: now[0])
        writer.update(0)
        writer.update(1)
        writer.settle()
        assert written == [0]
        writer.update(1)  # nothing new
        writer.update(2)  # too soon: twenty times as long as it took
        writer.settle()
        assert written == [0]
        now[0] += 20.0
        writer.update(2)
        writer.close()
        assert written == [0, 1]

    def test_a_failure_is_noted_once_and_tried_again(self) -> None:
        notes: list[str] = []
        answers = iter([OSError(errno.ENOSPC, "No space left on device", "/out/results.json")] * 2 + [None] * 2)

        def write() -> None:
            answer = next(answers)
            if answer is not None:
                raise answer

        writer = ResultsWriter(write, notes.append, lambda: 0.0)
        for decided in range(1, 5):
            writer.update(decided)
            writer.settle()
        writer.close()
        (note,) = notes
        assert "/out/results.json: No space left on device" in note
        assert "everything measured is in the store" in note
        assert next(answers, "all were asked") == "all were asked"


def test_a_file_that_is_written_is_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "x", b"1")
    write_atomically(tmp_path / "new" / "x", b"22")
    assert (tmp_path / "new" / "x").read_bytes() == b"22"
    assert os.listdir(tmp_path / "new") == ["x"]
