"""Verification of a class's winners: the runs of each board, and the boards that are within a target."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from fleetnas.coordinator.records.board_share import BoardShare
from fleetnas.coordinator.tuning.board_speeds import SERVED_SHARE
from fleetnas.coordinator.tuning.class_tuner import ClassTuner
from fleetnas.coordinator.tuning.judgement import DISTURBED_TRIES, Judgement, judge_run
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.subnet_observations import QUARANTINE_FAILURES, Run
from fleetnas.fleet_protocol.messages import Failed, Measurement

Key = tuple[int, ...]


@dataclass
class Check:
    """One verification that several boards make."""

    proposal: Proposal
    waiting: set[str] = field(default_factory=set)
    outcomes: dict[str, Measurement | Failed] = field(default_factory=dict)


class BoardChecks:
    """Verifying runs by board and subnet, as they ran."""

    def __init__(self, tuner: ClassTuner) -> None:
        self._tuner = tuner
        self._runs: dict[str, dict[Key, list[Run]]] = {}
        self._failures: dict[str, dict[Key, int]] = {}
        #: Verifications of the present round, by target and subnet.
        self._open: dict[tuple[float, Key], Check] = {}

    # -- the present round -------------------------------------------------------------------------------------

    def open(self, proposal: Proposal) -> Check:
        """Return the verification of a proposal, begun now where it was not."""
        return self._open.setdefault((proposal.target_ms or 0.0, proposal.genome), Check(proposal))

    @property
    def are_waited_for(self) -> bool:
        """Whether boards have not answered yet."""
        return any(check.waiting for check in self._open.values())

    def leave(self, board: str) -> None:
        """Wait for a board no more."""
        for check in self._open.values():
            check.waiting.discard(board)

    def take_open(self) -> list[Check]:
        """Return the verifications of the present round in the order of targets, and end it."""
        found = [self._open[key] for key in sorted(self._open)]
        self._open.clear()
        return found

    def is_later(self, board: str, proposal: Proposal) -> bool:
        """Whether a board's proposal is of a later round than the open verifications, which are all answered."""
        if not self._open or self.are_waited_for:
            return False
        if proposal.purpose != "verification":
            return True
        check = self._open.get((proposal.target_ms or 0.0, proposal.genome))
        if check is not None:
            return board in check.outcomes
        return any(target_ms == proposal.target_ms for target_ms, _ in self._open)

    def settle(self, check: Check, boards: Collection[str]) -> None:
        """Tell the class's search all runs of a verification that has some, and judge it by the deciding one."""
        self._tuner.enter(check.proposal)  # a resumed run chose its targets before these runs
        told = self._deciding(check, boards) or min(check.outcomes)
        genome = np.array(check.proposal.genome, dtype=np.int16)
        for board in sorted(check.outcomes):
            outcome = check.outcomes[board]
            if board != told and isinstance(outcome, Measurement):
                self._tuner.observe(board, genome, outcome)
        self._tuner.tell_of(told, check.proposal, check.outcomes[told])

    # -- runs --------------------------------------------------------------------------------------------------

    def add(self, board: str, subnet: Key, outcome: Measurement | Failed) -> None:
        """Add the outcome of a verification on a board."""
        if isinstance(outcome, Failed):
            failures = self._failures.setdefault(board, {})
            failures[subnet] = failures.get(subnet, 0) + 1
        else:
            self._runs.setdefault(board, {}).setdefault(subnet, []).append(Run.of(outcome, board))

    def latest(self, board: str, subnet: Key) -> Run | None:
        """Return the run that decides: the last one; None where the board has not verified this subnet."""
        runs = self._runs.get(board, {}).get(subnet)
        return runs[-1] if runs else None

    def judge(self, board: str, subnet: Key, target_ms: float) -> Judgement | None:
        """Compare a board's own run with a target; None where it has none."""
        run = self.latest(board, subnet)
        return None if run is None else judge_run(target_ms, run, self._tuner.typical_ms(run))

    def failed(self, board: str, subnet: Key) -> bool:
        """Whether a subnet failed so often on a board that it is left alone there."""
        return self._failures.get(board, {}).get(subnet, 0) >= QUARANTINE_FAILURES

    def lacks(self, board: str, subnet: Key, target_ms: float) -> bool:
        """Whether a board is to verify a subnet, or to verify it once more after a disturbance."""
        if self.failed(board, subnet):
            return False
        runs = self._runs.get(board, {}).get(subnet, [])
        disturbed = bool(runs) and self.judge(board, subnet, target_ms) is Judgement.DISTURBED
        return not runs or (disturbed and len(runs) <= DISTURBED_TRIES)

    def share(self, boards: Iterable[str], subnet: Key, target_ms: float) -> BoardShare:
        """Count the boards with a run of a subnet, and those within the target."""
        found = [judged for board in boards if (judged := self.judge(board, subnet, target_ms)) is not None]
        return BoardShare(sum(judged is Judgement.WITHIN for judged in found), len(found))

    def _deciding(self, check: Check, boards: Collection[str]) -> str | None:
        """Return the board by whose run a check is judged; None where no board measured.

        `SERVED_SHARE` of the boards that are not slow are as fast as that one, by this check and earlier ones.
        """
        subnet, target_ms = check.proposal.genome, check.proposal.target_ms or math.inf
        measured = [board for board, outcome in check.outcomes.items() if isinstance(outcome, Measurement)]
        if not measured:
            return None
        regular = [board for board in measured if not self._tuner.speeds.is_slow(board)] or measured
        verified = [
            board
            for board in boards
            if self.latest(board, subnet) is not None and not self._tuner.speeds.is_slow(board)
        ] or regular
        within = {board for board in verified if self.judge(board, subnet, target_ms) is Judgement.WITHIN}
        needed = math.ceil(SERVED_SHARE * len(verified))
        enough = len(within) >= needed
        agreeing = [board for board in regular if (board in within) == enough] or regular

        def ran_ms(board: str) -> tuple[float, str]:
            run = self.latest(board, subnet)
            return (run.ran_ms if run is not None else math.inf), board

        in_order = sorted(agreeing, key=ran_ms)
        # Of those within the slowest one; of those beyond the one that would complete the share.
        return in_order[-1] if enough else in_order[min(max(needed - len(within), 1), len(in_order)) - 1]


def drawn(boards: Iterable[str], target_ms: float, count: int, seed: int) -> list[str]:
    """Draw the boards that verify a target: the same ones after a restart, others for another target."""

    def place(board: str) -> str:
        return hashlib.sha256(f"{seed} {target_ms!r} {board}".encode()).hexdigest()

    return sorted(boards, key=place)[:count]
