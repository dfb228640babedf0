"""One baseline on one device setting: what it needs before its tasks, its measurements and its end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace

from fleetnas.agent.runtimes.sent_model import takes_format
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel, WinnerBuilder
from fleetnas.coordinator.records.agent_abilities import models_objection
from fleetnas.coordinator.records.baselines import Baseline, BaselineRecord
from fleetnas.coordinator.records.events import BaselineMeasured
from fleetnas.coordinator.records.setting_events import SettingEvents
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.tuning.judgement import DISTURBED_TRIES
from fleetnas.coordinator.tuning.subnet_tuner import REPEATS
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.messages import AgentInfo, Result

#: Failed measurements after which a baseline is given up on a device setting, and leases without a word.
MAX_FAILURES, MAX_EXPIRED = 2, 3


@dataclass(frozen=True)
class Preparation:
    """What makes the files of baselines and finds out their accuracies."""

    models: WinnerBuilder
    executor: Executor
    predict: Callable[[Baseline], float | None] = lambda baseline: None
    """Top-1 that the bundle's accuracy predictor expects of a subnet, a fraction; None where it is not known."""
    evaluate_file: Callable[[Baseline], tuple[float, int] | None] = lambda baseline: None
    """Accuracy of a model file, a fraction, and the number of images; None where it cannot be known."""


@dataclass(frozen=True)
class Prepared:
    """What the tasks of a baseline need, with its accuracy."""

    model: CalibratedModel | None
    """The file of a subnet; None for a model file."""
    accuracy: tuple[float, int] | None
    remark: str = ""
    """Why the accuracy is not known."""


@dataclass(eq=False)
class BaselineRow:
    """One baseline on one device setting."""

    setting_run: SettingRun
    baseline: Baseline
    record: BaselineRecord
    prepared: Prepared | None = None
    preparing: Future[Prepared] | None = field(default=None, repr=False)
    failures: int = 0
    expired: int = 0

    @property
    def label(self) -> str:
        """Device setting and baseline, for people."""
        return f"{self.setting_run.label}: baseline {self.baseline.name}"

    @property
    def sha256(self) -> str | None:
        """Hash of the file that is to be measured; None before it is known."""
        if self.baseline.file is not None:
            return self.baseline.file.reference.sha256
        model = self.prepared.model if self.prepared is not None else None
        return model.sha256 if model is not None else None

    def objection(self, info: AgentInfo) -> str:
        """Return why this baseline cannot be measured on its device setting; empty if it can.

        `info` is the latest announcement of its agent.
        """
        if self.setting_run.status is SettingStatus.LOST:
            return f"the device is lost: {self.setting_run.reason}"
        file = self.baseline.file
        if file is None:
            return ""
        wrong = takes_format(self.setting_run.setting.runtime, file.reference.format)
        return wrong or models_objection(info)

    def put(self, record: BaselineRecord) -> None:
        """Keep the record that was stored."""
        self.record = record

    def end(self, reason: str) -> None:
        """Give up, for `reason`."""
        self.record = replace(self.record, reason=reason, done=True)

    def count_failure(self) -> int:
        """Count a failed measurement; returns their number."""
        self.failures += 1
        return self.failures

    def count_expired(self) -> int:
        """Count a lease that ended without a result; returns their number."""
        self.expired += 1
        return self.expired

    def prepare(self, preparation: Preparation) -> bool:
        """Have the file calibrated and evaluated on a worker; True once that is done.

        An exception of the calibration is raised here; one of the evaluation leaves the accuracy unknown.
        """
        if self.prepared is not None:
            return True
        if self.preparing is None:
            self.preparing = preparation.executor.submit(self._prepare, preparation)
        if not self.preparing.done():
            return False
        self.prepared = self.preparing.result()
        found = self.prepared.accuracy
        if found is not None:
            self.record = replace(self.record, accuracy=found[0], accuracy_images=found[1])
        return True

    def _prepare(self, preparation: Preparation) -> Prepared:
        models = preparation.models
        architecture = self.baseline.architecture
        model = models.calibrate(architecture, self.setting_run.setting) if architecture is not None else None
        try:
            found = models.accuracy(model) if model is not None else None
            if model is None and self.baseline.accuracy is None:
                found = preparation.evaluate_file(self.baseline)
        except Exception as error:  # noqa: BLE001 - the latency stands without the accuracy
            return Prepared(model, None, one_line(error))
        return Prepared(model, found)

    def renewed(self, record: BaselineRecord, result: Result) -> BaselineRecord:
        """Return `record` with one more measurement; a result of another file than the ordered one ends the row."""
        measured = result.measurement
        if measured.model_sha256 != self.sha256:
            reason = f"the device measured a file with SHA-256 {measured.model_sha256}, and was sent {self.sha256}"
            return replace(record, reason=reason, done=True)
        known = [each for each in (record.memory_bytes, result.memory_bytes) if each is not None]
        measurements = (*record.measurements, measured)
        calm = any(each.quality != "slowed" for each in measurements)
        return replace(
            record,
            measurements=measurements,
            memory_bytes=max(known, default=None),
            # Further ones wait for a fast device, where it was slowed in all of the first.
            done=len(measurements) >= (REPEATS if calm else REPEATS + DISTURBED_TRIES),
        )

    @property
    def waits(self) -> bool:
        """Whether the next measurement waits for a fast device."""
        return len(self.record.measurements) >= REPEATS

    def event(self, at_s: float) -> BaselineMeasured:
        """Return the event of a row that is done, which ended at `at_s`, Unix seconds."""
        record = self.record
        return SettingEvents(record.run_id, record.device, record.setting_label).baseline(at_s, record)
