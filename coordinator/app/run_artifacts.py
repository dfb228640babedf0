"""The folder of results and winners' files of one run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fleetnas.coordinator.app.results_writer import ResultsWriter
from fleetnas.coordinator.app.winner_card import rewrite_card
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder, CalibratedModel, WinnerBuilder
from fleetnas.coordinator.records.outcome import CampaignOutcome
from fleetnas.coordinator.records.plan import RunSettings
from fleetnas.coordinator.records.targets import target_name
from fleetnas.coordinator.report.artifacts import REPORT_FILE, RESULTS_FILE, ArtifactFolder
from fleetnas.coordinator.report.html import write_report
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError, ResultsError
from fleetnas.supernet_export.bundle import SupernetBundle

_log = logging.getLogger("fleetnas.coordinator")


class RunArtifacts:
    """Writes the artifacts of a run: in the background while it is driven, and in full at its end."""

    def __init__(
        self,
        store: MeasurementStore,
        run_id: str,
        out: Path | None,
        models: WinnerBuilder,
        note: Callable[[str], object],
        clock: Callable[[], float],
        card: Path | None = None,
    ) -> None:
        """`out` None: nothing is written. `note` takes a line on a part that could not be made.

        `card` is a model card to rewrite at the end, where the model that was measured met its target.
        """
        self._card = card
        self.card_remark = ""
        """What was done with the card; empty before the end, and where there is none."""
        self._store, self._run_id, self._out, self._models, self._note = store, run_id, out, models, note
        self._writer: ResultsWriter | None = None
        if out is not None and not store.in_memory:  # a store in memory is not read from another thread
            self._writer = ResultsWriter(lambda: write_artifacts(store, run_id, out, models, report=False), note, clock)

    def update(self, targets_stored: int) -> None:
        """Write the results so far in the background, where more targets are decided than at the last call."""
        if self._writer is not None:
            self._writer.update(targets_stored)

    def write(self) -> str | None:
        """Write everything, the report included; returns the path of the results file.

        Raises:
            ResultsError: the folder cannot be written.
        """
        if self._out is None:
            return None
        self.close()
        try:
            remarks = write_artifacts(self._store, self._run_id, self._out, self._models)
            if self._card is not None:
                self.card_remark = rewrite_card(self._card, self._out)
                remarks.append(self.card_remark)
        except OSError as error:
            raise ResultsError(
                f"the results of run {self._run_id} could not be written ({one_line(error)}); each file that is in "
                f"{self._out} is whole, and everything measured is in the store {self._store.url}: make room or choose "
                "another --out, then resume the run, which measures nothing again"
            ) from error
        for remark in remarks:
            self._note(remark)
        return str(self._out / RESULTS_FILE)

    def close(self) -> None:
        """Wait for the background writer, and end it."""
        if self._writer is not None:
            self._writer.close()


def write_artifacts(
    store: MeasurementStore, run_id: str, directory: Path, models: WinnerBuilder, *, report: bool = True
) -> list[str]:
    """Write a stored run's results, measurements and winners' files, built again from their stored statistics.

    `report` is for a run that has ended: its plots take long. Returns a line on each part that could not be made and is
    left out: a winner's file, the report. `OSError` where the folder cannot be written.
    """
    outcome = outcome_of(store, run_id)
    artifacts = ArtifactFolder(directory)
    remarks = _write_winners(store, outcome, artifacts, models)
    artifacts.write(outcome)
    if not report:
        # The report of an earlier run would stand beside results that are not its own.
        (directory / REPORT_FILE).unlink(missing_ok=True)
        return remarks
    try:
        write_report(directory)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - the results are written already, and the report repeats them
        _log.error("the report is not written", exc_info=error)
        remarks.append(f"the report could not be written: {one_line(error)}; the results are")
    return remarks


def _write_winners(
    store: MeasurementStore, outcome: CampaignOutcome, artifacts: ArtifactFolder, models: WinnerBuilder
) -> list[str]:
    """Write the winners' files that are missing; returns a line on each that could not be made."""
    remarks = []
    verified = {
        (task.device, task.setting_label, task.architecture.fingerprint): task
        for task in store.tasks(outcome.run_id)
        if task.model_sha256 is not None
    }
    for device in outcome.devices:
        for target in device.targets:
            if not target.met or target.architecture is None:
                continue
            try:
                task = verified[device.device, device.setting.label, target.architecture.fingerprint]
                assert task.model_sha256 is not None
                model = CalibratedModel(target.architecture, device.setting, task.model_sha256, task.calibration)
                if not artifacts.has_winner(device, target):
                    artifacts.add_winner(device, target, models.file(model))
            except OSError:  # the disk is full or gone, for every device
                raise
            except Exception as error:  # noqa: BLE001 - one winner's file must not cost the others theirs
                name = target_name(target.target_ms, target.subnet, target.target)
                subject = f"{device.label} has no model file for {name}"
                if not isinstance(error, FleetnasError):
                    _log.error("%s", subject, exc_info=error)
                remarks.append(f"{subject}: {one_line(error)}")
    return remarks


def stored_models(settings: RunSettings) -> BundleWinnerBuilder:
    """Make the builder of a stored run's winners' files; its bundle must still be at its path."""
    return BundleWinnerBuilder(SupernetBundle.open(settings.supernet_path), None, None)
