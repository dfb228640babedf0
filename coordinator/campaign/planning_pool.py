"""Plan rounds and evaluate winners: at once where that is quick, else on a worker thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from fleetnas.coordinator.campaign.setting_run import PlannedTask, SettingRun
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel, FileKey, WinnerBuilder, file_key
from fleetnas.coordinator.records.stored import EvaluationRecord, ImagePart
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.subnet_tuner import SubnetTuner
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.supernet_export.evaluation.answers import ClassAnswers

#: More than any round proposes.
_ROUND = 10_000
#: Lines in the log while the candidates of a device setting are evaluated.
_LINES_PER_SELECTION = 5

_log = logging.getLogger("fleetnas.coordinator")


class PlanningPool:
    """Asks searches, has candidates evaluated, and winners calibrated and evaluated."""

    def __init__(
        self, models: WinnerBuilder, executor: Executor, plans_at_once: Callable[[], bool] = lambda: False
    ) -> None:
        """`plans_at_once` returns whether searches answer too quickly to be worth another thread."""
        self._models, self._executor, self._plans_at_once = models, executor, plans_at_once
        #: Device settings of which a plan or an evaluation is finished; workers append to it.
        self._finished: deque[SettingRun] = deque()
        #: Evaluations that are not stored yet; workers append to it.
        self._evaluated: deque[EvaluationRecord] = deque()
        self._known: set[tuple[FileKey, ImagePart]] = set()
        #: Device settings with the reasons, told once, why their candidates cannot be evaluated.
        self._told: set[tuple[str, str]] = set()

    def take_finished(self) -> Iterator[SettingRun]:
        """Yield the device settings of which a worker finished a plan or an evaluation."""
        while self._finished:
            yield self._finished.popleft()

    def take_evaluated(self) -> list[EvaluationRecord]:
        """Return the evaluations that were made since the last call, to store them."""
        return [self._evaluated.popleft() for _ in range(len(self._evaluated))]

    def plan(self, setting_run: SettingRun) -> list[PlannedTask] | None:
        """Return the next tasks; None where a worker plans them: `setting_run.take_plan` returns them later."""
        search, setting = setting_run.search, setting_run.setting
        asked = search.ask(_ROUND) if self._plans_at_once() else None
        if (
            asked is not None
            and (asked or not search.wanted_accuracies())
            and all(
                proposal.purpose != "verification" or self._models.calibrates_at_once(proposal.architecture, setting)
                for proposal in asked
            )
        ):
            return self._make_plan(setting_run, asked)
        plan = self._executor.submit(self._make_plan, setting_run, asked)
        setting_run.begin_plan(plan)
        plan.add_done_callback(lambda _: self._finished.append(setting_run))
        return None

    def _make_plan(self, setting_run: SettingRun, asked: list[Proposal] | None) -> list[PlannedTask]:
        """Ask the search unless that is done, and build the files that verifications measure."""
        search = setting_run.search
        asked = search.ask(_ROUND) if asked is None else asked
        wanted = [] if asked else search.wanted_accuracies()
        if wanted:
            # One per plan: an interrupted campaign waits for one, and no device setting for all those of another.
            self._evaluate_candidate(setting_run, wanted)
            asked = search.ask(_ROUND)
        planned = [self._planned(setting_run, proposal) for proposal in asked]
        return [task for task in planned if task is not None]

    def _planned(self, setting_run: SettingRun, proposal: Proposal) -> PlannedTask | None:
        """Return the task of a proposal; None for a given subnet whose file cannot be made, which ends that one."""
        if proposal.purpose != "verification":
            return PlannedTask(proposal, None)
        try:
            return PlannedTask(proposal, self._models.calibrate(proposal.architecture, setting_run.setting))
        except Exception as error:
            if not isinstance(setting_run.search, SubnetTuner):
                raise
            if not isinstance(error, FleetnasError):
                _log.error("subnet %s has no file", proposal.architecture.fingerprint, exc_info=error)
            setting_run.search.reject(proposal, f"its file cannot be made: {one_line(error)}")
            return None

    def _evaluate_candidate(self, setting_run: SettingRun, wanted: list[Architecture]) -> None:
        """Tell the search the accuracy of its next candidate, one resolution after the other."""
        done, _ = setting_run.selection or (0, 0)
        total = done + len(wanted)
        if not done:
            setting_run.note_selection(done, total, f"{total} candidates are evaluated on selection images")
        architecture = min(wanted, key=lambda each: (each.r, each.fingerprint))
        accuracy, remark = None, ""
        try:
            found = self._selection_answers(setting_run, architecture)
            if found is not None:
                accuracy = found.accuracy
                if (done + 1) % -(-total // _LINES_PER_SELECTION) == 0 or done + 1 == total:
                    remark = f"{done + 1} of {total} candidates evaluated on {found.images:,} selection images"
        except Exception as error:  # noqa: BLE001 - the prediction stands where a file cannot be evaluated
            reason = one_line(error)
            if (setting_run.label, reason) not in self._told:
                self._told.add((setting_run.label, reason))
                if not isinstance(error, FleetnasError):
                    _log.error("a candidate of %s is not evaluated", setting_run.label, exc_info=error)
                remark = f"candidates such as {architecture.fingerprint} are not evaluated: {reason}"
        setting_run.search.tell_accuracy(architecture, accuracy)
        setting_run.note_selection(done + 1, total, remark)

    def _selection_answers(self, setting_run: SettingRun, architecture: Architecture) -> ClassAnswers | None:
        setting = setting_run.setting
        known = self._models.known_answers(architecture, setting, "selection")
        if known is not None:  # of a resumed run, or of another device setting, which stores them
            return known
        return self._keep(setting_run.run_id, self._models.calibrate(architecture, setting), "selection")

    def _keep(self, run_id: str, model: CalibratedModel, part: ImagePart) -> ClassAnswers | None:
        """Return a file's answers to images, and have them stored once."""
        found, key = self._models.answers(model, part), file_key(model.architecture, model.setting)
        if found is not None and (key, part) not in self._known:
            self._known.add((key, part))
            self._evaluated.append(
                EvaluationRecord(run_id, *key, part, found.classes, found.images, answers=found.packed)
            )
        return found

    def _accuracy(self, run_id: str, model: CalibratedModel) -> tuple[float, int] | None:
        found = self._models.accuracy(model)
        self._keep(run_id, model, "evaluation")
        return found

    def evaluate(self, setting_run: SettingRun, proposal: Proposal) -> None:
        """Evaluate the accuracy of a winner, where `proposal` verified one and its accuracy is not known.

        Given subnets are decided together, by the last outcome.
        """
        state = setting_run.search.target_of(proposal)
        if proposal.purpose != "verification" or state is None:
            return
        if state.subnet:
            for decided in setting_run.search.decided:
                if decided.status is TargetStatus.MET:
                    self._evaluate(setting_run, decided.subnet)
        elif state.status is TargetStatus.MET:
            self._evaluate(setting_run, proposal.architecture.fingerprint)

    def _evaluate(self, setting_run: SettingRun, subnet: str) -> None:
        if subnet in setting_run.evaluations or subnet in setting_run.accuracies:
            return
        model = setting_run.model(subnet)
        if self._models.evaluates_at_once(model):
            setting_run.note_accuracy(subnet, self._accuracy(setting_run.run_id, model))
            return
        evaluation = self._executor.submit(self._accuracy, setting_run.run_id, model)
        setting_run.begin_evaluation(subnet, evaluation)
        evaluation.add_done_callback(lambda _: self._finished.append(setting_run))
