"""One device setting inside a campaign: its search, its task queue, its winners' files and their accuracy."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.fleet.work_queue import WorkQueue
from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.data_quality import Finding, QualityTally
from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord, Outcome, TaskRecord
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.messages import AgentInfo, Conditions, Failed, RuntimeSetting

_log = logging.getLogger("fleetnas.coordinator")


@dataclass(frozen=True)
class PlannedTask:
    """A proposal with the file that a verification measures."""

    proposal: Proposal
    model: CalibratedModel | None = None


class SettingRun:
    """One device setting. Times are the campaign's clock."""

    def __init__(
        self, run_id: str, device: str, setting: RuntimeSetting, info: AgentInfo, search: SettingTuner
    ) -> None:
        """`search` finds the subnets; `info` is what the agent announced when the setting was taken in."""
        self.run_id = run_id
        self.device = device
        self.setting = setting
        self.info = info
        self.search = search
        self.queue = WorkQueue(device, setting, lambda: search.measurements)
        self.tally = QualityTally()
        self._status = SettingStatus.RUNNING
        self._reason = ""
        #: Outcomes that came while a plan was being made; the search is told afterwards.
        self._inbox: list[tuple[Proposal, Outcome]] = []
        self._plan: Future[list[PlannedTask]] | None = None
        self._evaluations: dict[str, Future[tuple[float, int] | None]] = {}
        self._models: dict[str, CalibratedModel] = {}
        self._accuracies: dict[str, tuple[float, int]] = {}
        self._selection: tuple[int, int] | None = None
        #: Lines for the log; workers append to it.
        self._remarks: deque[str] = deque()
        #: (target, subnet) for which the search's choice was announced.
        self._announced: set[tuple[float, str, str]] = set()
        self._settled: set[tuple[float, str, str]] = set()
        self._learning: list[PredictorPoint] = []
        #: The resolved targets, ms, with the text of those of other kinds; empty before they were stored.
        self._targets: list[tuple[float, str]] = []
        self._targets_note = ""
        self._failures = 0
        self._temperature_c: float | None = None
        self._throttled: bool | None = None
        self._unshown = False

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """Device and setting, for people."""
        return self.queue.label

    @property
    def status(self) -> SettingStatus:
        """Whether it is at work, and how it ended."""
        return self._status

    @property
    def reason(self) -> str:
        """Explanation of a loss, a failure or a stop before the end; empty otherwise."""
        return self._reason

    @property
    def ready(self) -> Sequence[Task]:
        """Tasks that wait to be dispatched."""
        return self.queue.ready

    @property
    def leased(self) -> Mapping[str, Task]:
        """Tasks that the device holds, by task id."""
        return self.queue.leased

    @property
    def inbox(self) -> Sequence[tuple[Proposal, Outcome]]:
        """Outcomes that the search was not told yet."""
        return self._inbox

    @property
    def plan(self) -> Future[list[PlannedTask]] | None:
        """The plan that a worker makes; None where none is being made."""
        return self._plan

    @property
    def evaluations(self) -> Mapping[str, Future[tuple[float, int] | None]]:
        """Evaluations of winners under way, by subnet."""
        return self._evaluations

    @property
    def accuracies(self) -> Mapping[str, tuple[float, int]]:
        """Evaluated accuracy, a fraction, and the number of images, by subnet."""
        return self._accuracies

    @property
    def selection(self) -> tuple[int, int] | None:
        """Candidates evaluated on selection images, and candidates in all; None where none are being evaluated."""
        return self._selection

    @property
    def learning(self) -> Sequence[PredictorPoint]:
        """Held-out error of the predictor as it learned."""
        return self._learning

    @property
    def failures(self) -> int:
        """Number of failed measurements."""
        return self._failures

    @property
    def temperature_c(self) -> float | None:
        """Latest temperature of the device, degrees Celsius; None where it is not known."""
        return self._temperature_c

    @property
    def throttled(self) -> bool | None:
        """Whether the device throttled itself lately; None where it is not known."""
        return self._throttled

    @property
    def wire_bytes(self) -> int:
        """Bytes sent and received for its tasks, without the bundle."""
        return self.queue.wire_bytes

    @property
    def busy(self) -> bool:
        """Whether something is planned, dispatched, evaluated or still to be told."""
        return bool(not self.queue.is_empty or self._inbox or self._plan is not None or self._evaluations)

    @property
    def measurements(self) -> int:
        """Measurements that count against the budget, those included that the search was not told yet."""
        waiting = sum(
            counts_against_budget(proposal.purpose, proposal.target_ms, proposal.target) for proposal, _ in self._inbox
        )
        return self.search.measurements + waiting

    # -- outcomes ----------------------------------------------------------------------------------------------

    def count_outcome(self, outcome: Outcome) -> tuple[Finding, ...]:
        """Count the outcome of a task; returns the findings to announce."""
        if isinstance(outcome, Failed):
            self._failures += 1
            return ()
        return self.tally.add(outcome)

    def receive(self, proposal: Proposal, outcome: Outcome) -> None:
        """Keep an outcome until the search is told."""
        self._inbox.append((proposal, outcome))

    def take_inbox(self) -> list[tuple[Proposal, Outcome]]:
        """Return the outcomes to tell the search, in order of arrival; none while a plan is being made."""
        if self._plan is not None:
            return []
        taken, self._inbox = self._inbox, []
        return taken

    def take_conditions(self, conditions: Conditions) -> None:
        """Take over temperature and throttling of the device."""
        self._temperature_c = conditions.temperature_c
        self._throttled = conditions.throttled

    # -- plans -------------------------------------------------------------------------------------------------

    def begin_plan(self, plan: Future[list[PlannedTask]]) -> None:
        """Note that a worker makes the next plan."""
        self._plan = plan

    def take_plan(self) -> list[PlannedTask] | None:
        """Return a finished plan, once; an exception of the planning is raised here."""
        if self._plan is None or not self._plan.done():
            return None
        made, self._plan = self._plan, None
        return made.result()

    def announce(self, state: TargetState, subnet: str) -> bool:
        """Note that the choice of `subnet` for a target is announced; False where it was before."""
        choice = (state.target_ms, state.text, subnet)
        if choice in self._announced:
            return False
        self._announced.add(choice)
        return True

    # -- predictor ---------------------------------------------------------------------------------------------

    @property
    def learned_much(self) -> bool:
        """Whether twice as much was measured as when the predictor's error was noted last, and a round is over."""
        noted = self._learning[-1].measurements if self._learning else 1
        return self.search.needs_planning and self.search.measurements >= 2 * noted

    def note_learning(self) -> bool:
        """Note the predictor's held-out error; False where it has learned nothing new."""
        error = self.search.held_out_error()
        if (
            error.mape_percent is None
            or not math.isfinite(error.mape_percent)
            or (self._learning and self._learning[-1].measurements == error.held_out)
        ):
            return False
        rank = error.spearman if error.spearman is not None and math.isfinite(error.spearman) else None
        noted = PredictorError(error.mape_percent, rank, error.held_out, error.transfer_weight)
        self._learning.append(PredictorPoint(error.held_out, noted))
        return True

    # -- winners -----------------------------------------------------------------------------------------------

    def restore_model(self, record: TaskRecord) -> None:
        """Keep the file of a stored verification."""
        if record.model_sha256 is not None:
            self.add_model(CalibratedModel(record.architecture, self.setting, record.model_sha256, record.calibration))

    def add_model(self, model: CalibratedModel) -> None:
        """Keep the file of a subnet that is to be verified."""
        self._models[model.architecture.fingerprint] = model

    def model(self, subnet: str) -> CalibratedModel:
        """Return the file of a verified subnet."""
        return self._models[subnet]

    def begin_evaluation(self, subnet: str, evaluation: Future[tuple[float, int] | None]) -> None:
        """Note that a worker evaluates a winner."""
        self._evaluations[subnet] = evaluation

    def note_accuracy(self, subnet: str, found: tuple[float, int] | None) -> None:
        """Keep the accuracy of a winner's file, a fraction, and the number of images; None: there are no images."""
        if found is not None:
            self._accuracies[subnet] = found

    def accuracy_of(self, architecture: Architecture | None) -> tuple[float | None, int | None]:
        """Return the accuracy of a winner's file and the number of images; None where it was not evaluated."""
        if architecture is None:
            return None, None
        return self._accuracies.get(architecture.fingerprint, (None, None))

    def note_selection(self, done: int, total: int, remark: str = "") -> None:
        """Note, on a worker's thread, how many candidates were evaluated, with a line for the log."""
        self._selection = (done, total) if done < total else None
        if remark:
            self._remarks.append(remark)

    def collect_evaluations(self) -> list[str]:
        """Take finished evaluations; returns lines for the log, such as one for each file that cannot be run here."""
        reasons = [self._remarks.popleft() for _ in range(len(self._remarks))] + self.search.take_remarks()
        for subnet, future in list(self._evaluations.items()):
            if future.done():
                del self._evaluations[subnet]
                try:
                    self.note_accuracy(subnet, future.result())
                except Exception as error:  # noqa: BLE001 - the latency stands without the accuracy
                    if not isinstance(error, FleetnasError):
                        _log.error("the accuracy of winner %s of %s is unknown", subnet, self.label, exc_info=error)
                    reasons.append(f"no accuracy for winner {subnet}: {one_line(error)}")
        return reasons

    def settle(self, state: TargetState) -> bool:
        """Note that the end of a target is stored; False where it was before."""
        key = (state.target_ms, state.text, state.subnet)
        if key in self._settled:
            return False
        self._settled.add(key)
        return True

    # -- end, storing and resuming -----------------------------------------------------------------------------

    def close(self, status: SettingStatus, reason: str) -> None:
        """End the device setting; its tasks are abandoned."""
        self._status, self._reason = status, reason
        if status is not SettingStatus.FINISHED:
            self.search.leave()
        self.queue.close()

    def suspend(self, reason: str) -> None:
        """Note why it is stopped before its end; it stays at work for those who resume the run."""
        self._reason = reason

    def break_down(self, reason: str) -> None:
        """End the search after an exception, and drop its outcomes that were not told."""
        self.search.abandon(reason)
        self._plan = None
        self._inbox.clear()
        self._evaluations.clear()

    def to_record(self) -> DeviceRecord:
        """Return the record to store."""
        # Resolved latencies seldom change, and reading them makes the search look for the best subnet of each.
        unresolved, note = all(text for _, text in self._targets), self.search.targets_note
        stopped = self._status is not SettingStatus.RUNNING or self._reason
        if unresolved or stopped or note != self._targets_note:
            self._targets_note = note
            self._targets = [(state.target_ms, state.text) for state in self.search.targets if not state.subnet]
        return DeviceRecord(
            self.run_id,
            self.device,
            self.setting,
            self.info,
            self._status,
            self._reason,
            tuple(self._learning),
            self.queue.wire_bytes,
            tuple(target_ms for target_ms, text in self._targets if not text)
            or (() if self.search.targets_known == 0 else None),
            note,
            self.search.board,
            tuple(text for _, text in self._targets if text) or None,
        )

    def mark_unshown(self) -> bool:
        """Note that no snapshot of it could be made; False where that was noted before."""
        before, self._unshown = self._unshown, True
        return not before

    def restore(self, record: DeviceRecord) -> None:
        """Take over the history of an earlier coordinator."""
        self._learning = list(record.learning)
        self.queue.restore_bytes(record.wire_bytes)
