"""One board of a class as a campaign drives it: its part of the class's work, and its own verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.board_share import BoardShare
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.board_class import BoardClass
from fleetnas.coordinator.tuning.judgement import Judgement
from fleetnas.coordinator.tuning.miss_reasons import remeasured_beyond
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.setting_tuner import TunerPhase
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement
from fleetnas.supernet_export.spaces.base import DesignSpace


class BoardTuner:
    """A board of a class. A board that is alone in its class is searched as any other device."""

    def __init__(self, boards: BoardClass, name: str) -> None:
        self._class, self._board = boards, boards.join(name)
        self._abandoned = ""

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def space(self) -> DesignSpace:
        """The design space of its subnets."""
        return self._class.tuner.space

    @property
    def failure_reason(self) -> str:
        """Why the board, or its whole class, is given up; empty otherwise."""
        return self._abandoned or self._board.failure_reason or self._class.tuner.failure_reason

    @property
    def targets_note(self) -> str:
        """The class, the board's speed where it is slow, and a remark on the targets."""
        notes = [self._class.tuner.targets_note]
        if self._class.several:
            notes.insert(0, f"one of {len(self._class.boards)} boards of class {self._class.name}")
            slower = self._slower()
            if slower:
                notes.insert(1, slower)
        return "; ".join(note for note in notes if note)

    @property
    def board(self) -> BoardPlace | None:
        """Its place in the class; None where it is alone in it."""
        if not self._class.several:
            return None
        own = self._class.tuner.speeds.now.boards.get(self._board.name)
        speed = (own.factor, own.error, own.slow) if own is not None else (1.0, 0.0, False)
        return BoardPlace(self._class.name, len(self._class.boards), *speed)

    def _slower(self) -> str:
        """Describe how much slower a slow board is; empty for another one."""
        speeds = self._class.tuner.speeds
        if not speeds.is_slow(self._board.name):
            return ""
        own = speeds.now.boards[self._board.name]
        return f"{100 * (own.factor - 1):.0f} % slower than the class (± {196 * own.error:.0f} %)"

    @property
    def measurements(self) -> int:
        """Measurements of this board that count; the budget is that of the whole class."""
        return self._board.measurements

    @property
    def measured_together(self) -> int:
        """Measurements of the whole class that count."""
        return self._class.tuner.measurements

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask of the class, or this board is given up."""
        return bool(self._abandoned or self._board.failure_reason) or self._class.finished

    @property
    def phase(self) -> TunerPhase:
        """Present phase of the class."""
        if self.finished:
            return "done"
        phase = self._class.tuner.phase
        return "verification" if phase == "done" else phase

    @property
    def needs_planning(self) -> bool:
        """Whether the next `ask` returns something, or plans."""
        return not self.finished and self._class.needs_planning(self._board)

    @property
    def quarantined(self) -> int:
        """Number of subnets that failed twice and are left alone, in the whole class."""
        return self._class.tuner.quarantined

    @property
    def fastest_ms(self) -> float | None:
        """The least latency that was measured in the class, at the speed for which its winners are chosen."""
        return self._class.tuner.fastest_ms

    def held_out_error(self) -> HeldOutError:
        """Return the error of the class's predictor; nothing while a worker uses it."""
        return self._class.unless_planning(self._class.tuner.held_out_error, HeldOutError(None, None, 0))

    def predict_targets(self) -> None:
        """Renew the predictions of the subnets that targets stand at."""
        self._class.unless_planning(self._class.tuner.predict_targets, None)

    # -- targets -----------------------------------------------------------------------------------------------

    @property
    def targets(self) -> list[TargetState]:
        """Every target as this board stands with it; of a search that is over those that it was asked to verify."""
        states = self._class.tuner.targets
        if not self._class.several:
            return states
        if self._class.tuner.finished and not self._class.tuner.failure_reason:
            states = [state for state in states if self._is_asked(state)]
        return [self._own(state) for state in states]

    @property
    def class_targets(self) -> list[TargetState]:
        """Every target as the class stands with it."""
        return self._class.tuner.targets

    @property
    def targets_known(self) -> int | None:
        """Number of targets that it has; None before they are known."""
        return len(self.targets) if self._class.tuner.targets else None

    @property
    def decided(self) -> list[TargetState]:
        """Every target once nothing is left to ask; none before."""
        return self.targets if self.finished else []

    def target_of(self, proposal: Proposal) -> TargetState | None:
        """Return the target of a proposal as this board's measurements left it."""
        state = self._class.tuner.target_of(proposal)
        if state is None or proposal.purpose != "verification" or not self._class.several:
            return state
        own = replace(state, status=TargetStatus.OPEN, reason="", sha256=None, verifications=0, given_up=False)
        return self._judged(own, proposal.genome)

    def _is_asked(self, state: TargetState) -> bool:
        return self._class.verifies(self._board, state.target_ms, _key(state))

    def _own(self, state: TargetState) -> TargetState:
        """Return a target of the class as this board's own measurements leave it."""
        subnet = _key(state)
        run = self._class.checks.latest(self._board.name, subnet) if subnet else None
        own = replace(state, verified_ms=None, typical_ms=None)
        if run is not None:
            own.verified_ms, own.typical_ms = run.ran_ms, self._class.tuner.typical_ms(run)
        if state.status is not TargetStatus.MET:
            if state.status is not TargetStatus.OPEN and self._abandoned:
                own.reason = own.reason or self._abandoned
            return own
        own.status, own.sha256, own.note = TargetStatus.OPEN, None, ""
        if not self.finished:
            return own
        return self._decided(own, state, subnet)

    def _decided(self, own: TargetState, state: TargetState, subnet: tuple[int, ...]) -> TargetState:
        """Decide a target whose winner the class has, by this board's own measurements."""
        judged = self._judged(own, subnet)
        share = self._share(subnet, state.target_ms)
        if judged.status is TargetStatus.MET:
            judged.note = "; ".join(note for note in (state.note, str(share)) if note)
        elif judged.verified_ms is None:
            failed = self._class.checks.failed(self._board.name, subnet)
            told = "its re-measurements failed on this board" if failed else "it was not verified on this board"
            judged.miss(f"{self.failure_reason or told}; {share}")
        else:
            slower = self._slower()
            judged.miss("; ".join(part for part in (judged.reason, slower, str(share)) if part))
        return judged

    def _judged(self, own: TargetState, subnet: tuple[int, ...]) -> TargetState:
        """Meet a target where this board's run of a subnet is within it; else give the reason."""
        run = self._class.checks.latest(self._board.name, subnet)
        judgement = self._class.checks.judge(self._board.name, subnet, own.target_ms)
        if run is None or judgement is None:
            return own
        judged = replace(own, verified_ms=run.ran_ms, typical_ms=self._class.tuner.typical_ms(run), verifications=1)
        if judgement is Judgement.WITHIN:
            judged.meet(run.model_sha256)
            return judged
        disturbed = judgement is Judgement.DISTURBED
        return replace(judged, reason=remeasured_beyond(judged, run, judged.typical_ms, disturbed=disturbed))

    def _share(self, subnet: tuple[int, ...], target_ms: float) -> BoardShare:
        return self._class.checks.share(self._class.boards, subnet, target_ms)

    # -- ask and tell ------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Proposal]:
        """Return up to `count` subnets for this board to measure next."""
        return [] if self.finished else self._class.ask(self._board, count)

    def expect(self, proposal: Proposal) -> None:
        """Take in a proposal of an earlier coordinator that has no outcome yet."""
        self._class.expect(self._board, proposal)

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the outcome of a proposal, also of one that a stored run asked for."""
        if not self._abandoned:
            self._class.tell(self._board, proposal, outcome)

    def wanted_accuracies(self) -> list[Architecture]:
        """Return the subnets whose accuracy is waited for; the board that plans evaluates them."""
        return self._class.tuner.wanted_accuracies() if self._class.leads(self._board) else []

    def tell_accuracy(self, architecture: Architecture, accuracy: float | None) -> None:
        """Take the evaluated accuracy of a wanted subnet, a fraction; None: the prediction stands."""
        self._class.tell_accuracy(architecture, accuracy)

    def abandon(self, reason: str) -> None:
        """End at once: it raised an exception, which `reason` describes; the other boards go on."""
        self._abandoned = reason
        if self._class.several:
            self._class.leave(self._board)
        else:
            self._class.tuner.abandon(reason)

    def leave(self) -> None:
        """Give its work to the other boards of its class."""
        self._class.leave(self._board)

    def take_remarks(self) -> list[str]:
        """Return a line once the board turns out to be slow."""
        if self._board.told_slow or self._class.tuner.phase == "initial-design":
            return []
        slower = self._slower()
        if slower:
            self._board.tell_slow()
        return [f"{slower}; its targets are judged by its own measurements"] if slower else []

    def validate(self) -> None:
        """Check targets and proposals; `BrokenInvariantError` names the first contradiction. For tests."""
        self._class.tuner.validate()
        states: Sequence[TargetState] = self.targets
        for state in states:
            if math.isfinite(state.target_ms):
                state.validate()


def _key(state: TargetState) -> tuple[int, ...]:
    return tuple(state.genome.tolist()) if state.genome is not None else ()
