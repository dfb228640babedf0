"""Log a run to an MLflow server or folder: `--track mlflow:URI`. Nothing of the run depends on it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE, REPORT_FILE, RESULTS_FILE, read_results
from fleetnas.coordinator.report.inference_program import INFER_FILE, LABELS_FILE
from fleetnas.coordinator.report.results import Results
from fleetnas.coordinator.report.tracked_values import Metric, files_of, metrics_of, parameters_of
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_extra

EXPERIMENT = "fleetnas"
_KIND = "mlflow:"
#: Tag by which a run is found again when it is resumed, or logged once more.
_RUN_TAG = "fleetnas.run_id"
#: A server that does not answer costs half a minute, not MLflow's quarter of an hour; and the library sends nothing to
#: anybody else.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
#: Most metrics, and parameters, of one request to MLflow.
_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
_PASSWORD = re.compile(r"(?<=://)[^/@]+@")
#: MLflow's status of a run; one whose coordinator was killed is still `running` in its results.
_ENDINGS = {
    RunStatus.COMPLETE: "FINISHED",
    RunStatus.PARTIAL: "FINISHED",
    RunStatus.INTERRUPTED: "KILLED",
    RunStatus.RUNNING: "KILLED",
}

_log = logging.getLogger("fleetnas.coordinator")
T = TypeVar("T")


def parse_tracking(text: str) -> str:
    """Return the URI in `mlflow:URI`, a path as the URI of a folder; `UsageError` where it is none."""
    uri = text.removeprefix(_KIND)
    if uri == text or not uri.strip():
        raise UsageError(
            f"--track {_shown(text)!r} names no tracker; give mlflow:URI, such as mlflow:http://127.0.0.1:5000, or "
            "mlflow:FOLDER"
        )
    return uri if re.match(r"[a-z][a-z0-9+.-]+:", uri) else Path(uri).absolute().as_uri()


class MlflowTracking:
    """One run of ours as a run of MLflow's experiment `fleetnas`."""

    def __init__(self, uri: str) -> None:
        """Connect, and make the experiment where there is none.

        Raises:
            MissingDependencyError: MLflow is not installed.
            UsageError: its server does not answer, or its folder cannot be used.
        """
        self.place = _shown(uri)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if uri.startswith("file:"):
            # Recent versions ask for this before they write to a folder.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise MissingDependencyError(
                f"--track needs MLflow, which is not installed; run: {install_extra('mlflow')}"
            ) from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        except Exception as error:  # noqa: BLE001 - MLflow and its transports raise anything
            raise UsageError(
                f"--track: MLflow at {self.place} cannot be used ({_shown(one_line(error))}); start it, correct the "
                "address, or leave --track out"
            ) from None

    def log(self, directory: Path) -> str:
        """Log the results in a folder; returns the id of MLflow's run, the same one for the same run of ours."""
        results = read_results(directory)
        run = self._run(results)
        self._log_values(run, results)
        for name in (RESULTS_FILE, MEASUREMENTS_FILE, REPORT_FILE):
            if (directory / name).is_file():
                self._client.log_artifact(run, str(directory / name))
        for model in files_of(results):
            for path in _with_companions(directory / model):
                self._client.log_artifact(run, str(path), str(Path(model).parent))
        self._client.set_terminated(run, _ENDINGS.get(RunStatus(results.status), "FAILED"))
        return run

    def _run(self, results: Results) -> str:
        """Return MLflow's run of a run of ours; it is begun where there is none."""
        found = self._client.search_runs([self._experiment], f"tags.`{_RUN_TAG}` = '{results.run_id}'", max_results=1)
        if found:
            run: str = found[0].info.run_id
            return run
        tags = {_RUN_TAG: results.run_id, "mlflow.runName": results.run_id, "mlflow.source.name": "fleetnas"}
        began_ms = round(1000 * results.started_at.timestamp())
        begun: str = self._client.create_run(self._experiment, start_time=began_ms, tags=tags).info.run_id
        return begun

    def _log_values(self, run: str, results: Results) -> None:
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag

        ended = results.finished_at or results.started_at
        at_ms = round(1000 * ended.timestamp())
        known = self._client.get_run(run).data
        # MLflow refuses another value of a parameter; values that a resumed run changed are tags of it.
        changed = _differing(parameters_of(results), known.params)
        metrics = [MlflowMetric(each.name, each.value, at_ms, each.step) for each in _last_values(metrics_of(results))]
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(run, metrics=part)
        for names in _parts([name for name in changed if name not in known.params], _MOST_PARAMETERS):
            self._client.log_batch(run, params=[Param(name, changed[name]) for name in names])
        tags = [RunTag(f"changed.{name}", changed[name]) for name in changed if name in known.params]
        self._client.log_batch(run, tags=[*tags, RunTag("fleetnas.status", str(results.status))])


def log_run(tracking: MlflowTracking, directory: Path | None, run_id: str) -> str:
    """Log a run from its folder of results; returns a line on where it is logged, or why it is not. It never fails."""
    again = f"fleetnas results {run_id} --out DIR --track {_KIND}{tracking.place}"
    if directory is None:
        return f"nothing is logged to MLflow: the run has no folder of results; log it with: {again}"
    try:
        with _quiet():
            found = tracking.log(directory)
    except Exception as error:  # noqa: BLE001 - the run is stored and written, whatever the tracker does
        _log.error("the run is not logged to MLflow", exc_info=error)
        return (
            f"the run is not logged to MLflow at {tracking.place} ({_shown(one_line(error))}); nothing of it is lost: "
            f"log it again with: {again}"
        )
    return f"logged to MLflow at {tracking.place}: run {found} of the experiment {EXPERIMENT}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's own lines about runs and retries out of the terminal."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "urllib3")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _with_companions(model: Path) -> list[Path]:
    """Return a model file with its card, and the program and class names beside them."""
    beside = (model, model.with_suffix(".json"), model.with_name(INFER_FILE), model.with_name(LABELS_FILE))
    return [path for path in beside if path.is_file()]


def _differing(given: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in given.items() if known.get(name) != value}


def _last_values(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics with the last value of each name and step."""
    return list({(each.name, each.step): each for each in metrics}.values())


def _parts(values: Sequence[T], size: int) -> Iterator[list[T]]:
    for begin in range(0, len(values), size):
        yield list(values[begin : begin + size])


def _shown(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    return _PASSWORD.sub("***@", text)
