"""Runs logged to MLflow: what is logged, once per run, and a tracker that fails costs nothing else."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from rigs.command_line import fleetnas
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome

from fleetnas.coordinator.app.tracking import EXPERIMENT, MlflowTracking, log_run, parse_tracking
from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.coordinator.report.html import write_report
from fleetnas.coordinator.report.tracked_values import metrics_of, parameters_of
from fleetnas.fleet_protocol.errors import UsageError

mlflow = pytest.importorskip("mlflow")
LABEL = "board-a/onnxruntime_cpu_1t_fp32"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of results, with a model of an earlier run that is none of its own."""
    folder = tmp_path / "out"
    artifacts(folder, campaign_outcome(device_outcome("board-a"), device_outcome("board-b", threads=2, seed=1)))
    write_report(folder)
    (folder / "board-z").mkdir()
    (folder / "board-z" / "5ms.onnx").write_bytes(b"of an earlier run")
    return folder


def opened(tmp_path: Path) -> tuple[MlflowTracking, Any]:
    uri = parse_tracking(f"mlflow:{tmp_path / 'tracked'}")
    return MlflowTracking(uri), mlflow.MlflowClient(tracking_uri=uri)


def runs_of(client: Any) -> list[Any]:
    found: list[Any] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return found


def files_below(client: Any, run_id: str, path: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run_id, path):
        found |= files_below(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def test_a_run_is_logged_with_parameters_metrics_and_files(tmp_path: Path, results: Path) -> None:
    tracking, client = opened(tmp_path)
    line = log_run(tracking, results, "run-0001")
    (run,) = runs_of(client)
    assert line == f"logged to MLflow at {tracking.place}: run {run.info.run_id} of the experiment fleetnas"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run-0001")
    written = read_results(results)
    assert run.data.params == parameters_of(written)
    assert run.data.params["bound.macs"] == "4e+06"
    for metric in metrics_of(written):
        assert metric.name in run.data.metrics
    target = written.fleet[0].targets[2]
    assert run.data.metrics[f"{LABEL}/3.5ms/verified_ms"] == target.verified_ms
    assert run.data.metrics[f"{LABEL}/3.5ms/accuracy"] == target.accuracy
    assert run.data.metrics["targets_met"] == 8
    history = client.get_metric_history(run.info.run_id, f"{LABEL}/predictor_error_percent")
    assert [(each.step, each.value) for each in history] == [
        (point.measurements, point.mape_percent) for point in written.fleet[0].learning
    ]
    files = files_below(client, run.info.run_id)
    assert {"results.json", "measurements.csv", "report.html"} <= files
    assert {f"{LABEL}/{name}" for name in ("3.5ms.onnx", "3.5ms.json", "infer.py")} <= files
    assert not [name for name in files if name.startswith("board-z")]


def test_a_run_that_goes_on_stays_one_run(tmp_path: Path, results: Path) -> None:
    unfinished = campaign_outcome(device_outcome("board-a"))
    artifacts(results, type(unfinished)(**{**vars(unfinished), "finished_s": None, "budget": 20}))
    tracking, client = opened(tmp_path)
    log_run(tracking, results, "run-0001")
    assert [run.info.status for run in runs_of(client)] == ["KILLED"]
    artifacts(results, campaign_outcome(device_outcome("board-a"), device_outcome("board-b", threads=2, seed=1)))
    line = log_run(MlflowTracking(parse_tracking(f"mlflow:{tmp_path / 'tracked'}")), results, "run-0001")
    assert line.startswith("logged to MLflow")
    (run,) = runs_of(client)
    assert (run.info.status, run.data.tags["fleetnas.status"]) == ("FINISHED", "complete")
    assert (run.data.params["budget"], run.data.tags["changed.budget"]) == ("20", "40")
    assert run.data.metrics["targets_asked"] == 8


def test_a_tracker_that_fails_at_the_end_is_a_line(tmp_path: Path, results: Path) -> None:
    tracking, _ = opened(tmp_path)
    shutil.rmtree(tmp_path / "tracked")
    (tmp_path / "tracked").write_text("no folder any more")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    line = log_run(tracking, results, "run-0001")
    assert line.startswith(f"the run is not logged to MLflow at {tracking.place} (")
    assert "nothing of it is lost" in line
    assert line.endswith(f"fleetnas results run-0001 --out DIR --track mlflow:{tracking.place}")
    assert "\n" not in line
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    assert "has no folder of results" in log_run(tracking, None, "run-0001")


def test_a_server_that_does_not_answer_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:  # bound and not listening: it refuses
        taken.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = fleetnas(
            capsys,
            *("search", "--local", "--supernet", "none.supernet", "--targets", "5"),
            *("--store", str(tmp_path / "runs.sqlite"), "--track", f"mlflow:{uri}"),
        )
    assert (code, out, "Traceback" in err, "secret" in err) == (2, "", False, False)
    said = " ".join(err.split())
    assert "--track: MLflow at http://***@127.0.0.1" in said
    assert said.endswith("start it, correct the address, or leave --track out")


@pytest.mark.parametrize("text", ["wandb:x", "mlflow", "mlflow:", "http://127.0.0.1:5000", ""])
def test_what_is_no_tracker_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give mlflow:URI"):
        parse_tracking(text)


def test_addresses_and_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_tracking("mlflow:http://host:5000") == "http://host:5000"
    assert parse_tracking("mlflow:runs") == (tmp_path / "runs").as_uri()
    assert parse_tracking("mlflow:file:///data/runs") == "file:///data/runs"


def test_results_are_logged_from_a_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = fleetnas(capsys, "results", "run-1", "--track", "mlflow:tracked")
    assert (code, "--out DIR" in err) == (2, True)
