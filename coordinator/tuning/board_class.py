"""A class of equal boards: one search whose measurements are shared out over them, and verified on each.

The first board that is there plans the rounds. A subnet of a round is measured on one board, the one with the least
work; a verification on all, or on those that are drawn. Beside that every board measures the anchor once, so that the
boards' speeds are compared. A subnet that fails on one board is tried on another before it counts as failed, and the
work of a board that leaves goes to the others.

Outcomes may come while a worker plans: they wait in an inbox. Verifications are judged together when their round is
over, in a fixed order, so that telling a stored run again resumes it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.board import Board, ProposalKey
from fleetnas.coordinator.tuning.board_checks import BoardChecks, drawn
from fleetnas.coordinator.tuning.class_tuner import ClassTuner
from fleetnas.coordinator.tuning.device_tuner import MAX_INITIAL_FAILURES
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement

Made = TypeVar("Made")

#: More than any round proposes.
_ROUND = 10_000
#: Boards on which a subnet fails before it counts as failed.
_FAILED_ON = 2


class BoardClass:
    """The boards of a class and their common search."""

    def __init__(self, name: str, tuner: ClassTuner, *, verify_boards: int | None = None, seed: int = 0) -> None:
        """`verify_boards` verify each target, drawn by `seed`; None: all of them."""
        self.name = name
        self.tuner = tuner
        self.checks = BoardChecks(tuner)
        self.boards: dict[str, Board] = {}
        self._verify_boards, self._seed = verify_boards, seed
        #: Boards that are there, in the order in which they joined, and those that have verified all winners.
        self._live: list[Board] = []
        self._done: set[str] = set()
        self._anchor_told = False
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        #: Proposals of the tuner's round that have no outcome yet, verifications aside, and where each failed.
        self._round: dict[ProposalKey, Proposal] = {}
        self._failed_on: dict[ProposalKey, set[str]] = {}

    # -- boards ------------------------------------------------------------------------------------------------

    def join(self, name: str) -> Board:
        """Take in a board, also of a search that is over: it verifies the winners."""
        board = self.boards[name] = Board(name)
        self._live = [each for each in self.boards.values() if not each.gone]
        self._inbox.append(self._take_up_orphans)
        self.drain()
        return board

    def _take_up_orphans(self) -> None:
        """Share out the proposals that no board has: those that had them left, or failed at them and left."""
        held = {key for board in self._live for key in (*board.outstanding, *(waiting.key for waiting in board.queue))}
        for key, proposal in self._round.items():
            if key not in held and not (self._is_anchor(proposal) and any(map(self._lacks_anchor, self._live))):
                self._assign(proposal)

    @property
    def several(self) -> bool:
        """Whether it has ever had more than one board."""
        return len(self.boards) > 1

    def leads(self, board: Board) -> bool:
        """Whether a board is the one that plans: the first that is there."""
        return bool(self._live) and self._live[0] is board

    def leave(self, board: Board) -> None:
        """Give a board's work to the others."""
        self._inbox.append(lambda: self._leave(board))
        self.drain()

    def _leave(self, board: Board, reason: str = "") -> None:
        if board.gone:
            return
        left = board.leave(reason)
        self._live = [each for each in self.boards.values() if not each.gone]
        for proposal in left:
            if proposal.key in self._round:
                self._assign(proposal)
        self.checks.leave(board.name)
        self._inbox.append(self._take_up_orphans)  # once its last outcome is told

    # -- state -------------------------------------------------------------------------------------------------

    def verifies(self, board: Board, target_ms: float, subnet: tuple[int, ...] | None = None) -> bool:
        """Whether a board verifies the winner of a target; one that has verified `subnet` did."""
        if self._verify_boards is None or self._verify_boards >= len(self._live):
            return True
        if subnet is not None and self.checks.latest(board.name, subnet) is not None:
            return True
        return board.name in drawn((each.name for each in self._live), target_ms, self._verify_boards, self._seed)

    def unverified(self, board: Board) -> list[TargetState]:
        """Return the targets of a search that is over whose winners a board has to verify still."""
        if board.gone or not self.tuner.finished or not self.several:
            return []
        return [
            state
            for state in self.tuner.targets
            if state.status is TargetStatus.MET
            and state.genome is not None
            and self.verifies(board, state.target_ms, _key(state))
            and self.checks.lacks(board.name, _key(state), state.target_ms)
        ]

    def needs_planning(self, board: Board) -> bool:
        """Whether a board's next `ask` returns something, or plans."""
        self.drain()
        if board.gone or self.finished:
            return False
        if board.queue or self._lacks_anchor(board):
            return True
        if self.tuner.finished:
            return board.is_idle and bool(self.unverified(board))
        return self.leads(board) and board.is_idle and self._round_is_over

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask of any board."""
        if not self.tuner.finished or self._inbox:
            return False
        for board in self._live:
            if board.name not in self._done:
                if not board.is_idle or self.unverified(board):
                    return False
                self._done.add(board.name)
        return True

    @property
    def _round_is_over(self) -> bool:
        return not self._round and not self.checks.are_waited_for

    def _lacks_anchor(self, board: Board) -> bool:
        return not board.anchored and len(self._live) > 1 and not self.tuner.finished

    # -- ask and tell ------------------------------------------------------------------------------------------

    def ask(self, board: Board, count: int) -> list[Proposal]:
        """Return up to `count` proposals for a board; the leading one plans a round where the last one is over."""
        with self._lock:
            self._take_inbox()
            if board.gone:
                return []
            if not board.queue and self.leads(board) and not self.tuner.finished and self._round_is_over:
                self._plan_round(board)
            if self.tuner.finished and board.is_idle:
                for state in self.unverified(board):
                    assert state.genome is not None
                    board.queue.append(self.tuner.check_proposal(state.genome, state.target_ms))
            if self._lacks_anchor(board):
                board.take_anchor(self.tuner.anchor_proposal())
            asked = [board.queue.popleft() for _ in range(min(count, len(board.queue)))]
            board.outstanding.update((proposal.key, proposal) for proposal in asked)
            return asked

    def expect(self, board: Board, proposal: Proposal) -> None:
        """Take in a proposal of an earlier coordinator that has no outcome yet."""
        self._inbox.append(lambda: self._expect(board, proposal))
        self.drain()

    def tell(self, board: Board, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take an outcome."""
        board.count(counts_against_budget(proposal.purpose, proposal.target_ms))
        if proposal.purpose == "verification":
            self.checks.add(board.name, proposal.genome, outcome)
        self._inbox.append(lambda: self._tell(board, proposal, outcome))
        self.drain()

    def tell_accuracy(self, architecture: Architecture, accuracy: float | None) -> None:
        """Take the evaluated accuracy of a wanted subnet, a fraction; None: the prediction stands."""
        with self._lock:
            self.tuner.tell_accuracy(architecture, accuracy)

    def unless_planning(self, compute: Callable[[], Made], otherwise: Made) -> Made:
        """Return what `compute` returns, or `otherwise` while a worker plans."""
        if not self._lock.acquire(blocking=False):
            return otherwise
        try:
            return compute()
        finally:
            self._lock.release()

    def drain(self) -> None:
        """Take the outcomes that wait, unless a worker plans: it takes them, or the next call does."""
        if self._inbox and self._lock.acquire(blocking=False):
            try:
                self._take_inbox()
            finally:
                self._lock.release()

    def _take_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _expect(self, board: Board, proposal: Proposal) -> None:
        if board.gone:
            return
        board.outstanding[proposal.key] = proposal
        if self.tuner.finished:
            return
        if self._is_anchor(proposal) and not board.anchor_told:
            board.take_anchor()
            if self._anchor_told:
                return
            self._round[proposal.key] = proposal
        elif proposal.purpose == "verification" and self.several:
            self.checks.open(proposal).waiting.add(board.name)
        else:
            self._unassign(proposal.key)
            self._round[proposal.key] = proposal
        self.tuner.expect(proposal)

    def _tell(self, board: Board, proposal: Proposal, outcome: Measurement | Failed) -> None:
        key = proposal.key
        expected = board.outstanding.pop(key, None) is not None or self._is_anchor(proposal)
        if not expected and self.checks.is_later(board.name, proposal):  # of a stored run, which is told again
            self._settle()
        own_anchor = self._is_anchor(proposal) and not board.anchor_told
        if own_anchor and self._repeats_anchor(key):
            board.tell_anchor()
            own_anchor = False
        if not own_anchor:
            self._unassign(key)
        self._count(board, outcome)
        if proposal.purpose == "verification" and self.several:
            self._round.pop(key, None)
            if not self.tuner.finished:
                check = self.checks.open(proposal)
                check.waiting.discard(board.name)
                check.outcomes[board.name] = outcome
        elif own_anchor:
            self._tell_anchor(board, proposal, outcome)
        elif not (isinstance(outcome, Failed) and self._try_elsewhere(board, proposal)):
            self._round.pop(key, None)
            self.tuner.tell_of(board.name, proposal, outcome)

    def _repeats_anchor(self, key: ProposalKey) -> bool:
        """Whether the tuner waits for the anchor once more, and no board is left that would tell it."""
        return self._anchor_told and key in self._round and not any(board.holds(key) for board in self._live)

    def _tell_anchor(self, board: Board, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the first measurement of the anchor as the tuner's own, and learn from those of the other boards."""
        board.tell_anchor()
        if self._anchor_told:
            if isinstance(outcome, Measurement):
                self.tuner.observe(board.name, self.tuner.anchor, outcome)
            return
        # Where it fails on one board, that of another one is waited for.
        waiting = any(not other.anchored or proposal.key in other.outstanding for other in self._live)
        if self.several and isinstance(outcome, Failed) and waiting:
            return
        self._anchor_told = True
        self._round.pop(proposal.key, None)
        self.tuner.tell_of(board.name, proposal, outcome)

    def _count(self, board: Board, outcome: Measurement | Failed) -> None:
        """Count a failure; a board on which nothing was ever measured is given up."""
        if not isinstance(outcome, Failed):
            board.note_measured()
            return
        failures = board.count_failure()
        if not board.measured and failures >= MAX_INITIAL_FAILURES and self.several:
            detail = f" ({outcome.detail})" if outcome.detail else ""
            self._leave(board, f"its first {failures} measurements failed, the last with {outcome.reason}{detail}")

    def _try_elsewhere(self, board: Board, proposal: Proposal) -> bool:
        """Give a subnet that failed to another board; False where it failed on enough of them."""
        failed_on = self._failed_on.setdefault(proposal.key, set())
        failed_on.add(board.name)
        others = [other for other in self._live if other.name not in failed_on]
        if len(failed_on) >= _FAILED_ON or not others or proposal.purpose == "verification":
            return False
        self._round[proposal.key] = proposal
        self._assign(proposal, others)
        return True

    def _is_anchor(self, proposal: Proposal) -> bool:
        anchor = tuple(self.tuner.anchor.tolist())
        return proposal.purpose == "initial-design" and proposal.genome == anchor

    # -- rounds ------------------------------------------------------------------------------------------------

    def _plan_round(self, lead: Board) -> None:
        """Judge the verifications of the last round, and share out the next one."""
        self._settle()
        if not self._round_is_over:
            return
        self.tuner.measure_at_once(len(self._live))
        for proposal in self.tuner.ask(_ROUND):
            if proposal.purpose == "verification" and self.several:
                self._begin_check(proposal)
            elif self._is_anchor(proposal) and not lead.anchored:
                self._round[proposal.key] = proposal
                lead.take_anchor(proposal)
            else:
                self._round[proposal.key] = proposal
                # The anchor once more: a board that has not told its own would take this outcome for that.
                told = [board for board in self._live if board.anchor_told] if self._is_anchor(proposal) else None
                self._assign(proposal, told)

    def _assign(self, proposal: Proposal, boards: list[Board] | None = None) -> None:
        """Give a proposal to the board with the least work; where there is none, it waits for one to join."""
        chosen = min(boards or self._live, key=lambda board: (board.load, board.measurements), default=None)
        if chosen is not None:
            chosen.queue.append(proposal)

    def _unassign(self, key: ProposalKey) -> None:
        """Take a proposal that has an outcome, or is on its way, from the boards that were to measure it."""
        if key[1] != "verification":
            for board in self.boards.values():
                board.drop(key)

    def _begin_check(self, proposal: Proposal) -> None:
        """Have the boards verify a subnet that have not yet, or were beyond the target."""
        target_ms, subnet = proposal.target_ms or 0.0, proposal.genome
        boards = [board for board in self._live if self.verifies(board, target_ms)]
        again = [board for board in boards if self.checks.lacks(board.name, subnet, target_ms)] or boards
        check = self.checks.open(proposal)
        for board in again:
            check.waiting.add(board.name)
            board.queue.append(proposal)

    def _settle(self) -> None:
        """Judge the verifications whose boards have all answered, in the order of targets."""
        for check in self.checks.take_open():
            if check.outcomes:
                self.checks.settle(check, [board.name for board in self._live])
            else:  # its boards are gone
                self._begin_check(check.proposal)


def _key(state: TargetState) -> tuple[int, ...]:
    return tuple(state.genome.tolist()) if state.genome is not None else ()
