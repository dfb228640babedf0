"""The search on one device setting as pure ask and tell: no network, clock, threads or printing.

An initial design first; then, round by round, the predicted winners of every target that are not yet measured, with
predictions replaced by measurements where there are any; then each target's winner is measured once more, as the
file that ships. A miss counts and the next best is tried.

Proposals are a function of the seed and of the outcomes told, whatever their order within a round. So telling a stored
run again resumes it, and it ends as it would have ended.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.predictors.prior import Prior
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.budget import Purpose, counts_against_budget
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.automatic_targets import AutomaticTargets
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.observations import SubnetObservations
from fleetnas.coordinator.tuning.proposal import Genome, Proposal, TargetSolver, TargetState
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed
from fleetnas.coordinator.tuning.verification import Verification
from fleetnas.fleet_protocol.messages import Failed, Measurement
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: A subnet is worth a measurement that is predicted better by more than this (top-1, a fraction): the first as long
#: as there are any, then, while there is budget, the second. A percent of latency buys 0.0002 to 0.0005.
ACCURACY_GAINS = (0.0005, 0.0001)
#: Failures without a single measurement after which the device setting is given up.
MAX_INITIAL_FAILURES = 6
#: Measurements of one subnet of the initial design that a disturbed device may spoil.
_DESIGN_TRIES = 2
#: Margin on a prediction in its standard deviations. Once nothing better is likely to meet a target, subnets are
#: tried that may; each teaches the predictor where it was wrong.
_MARGINS = (0.5, 0.0, -0.5)
#: A round's candidates at least, if that many are found at all: rounds of one or two find hardly more, and a device
#: waits for each.
_ROUND = 3


class DeviceTuner:
    """One device setting's search."""

    def __init__(
        self,
        space: DesignSpace,
        accuracy: AccuracyModel,
        targets: TargetRequest,
        search: TargetSolver,
        *,
        budget: int = 40,
        spread: int = 10,
        seed: int = 0,
        prior: Prior | None = None,
        bounds: Bounds | None = None,
        opening: InitialDesign | None = None,
    ) -> None:
        """`budget` counts all but verifications, of which the first `spread` cover the space.

        Nothing that breaks the `bounds` is ever measured; `search` must keep them too. An `opening` that was made for
        the same space, spread, seed, prior and bounds may be given.
        """
        self.space = space
        self.budget = budget
        self.failure_reason = ""
        self.targets_note = ""
        """Why there are fewer automatic targets than were asked for."""
        self.measurements = 0
        self.failures = 0
        self._request, self._search, self._seed = targets, search, seed
        opening = opening or InitialDesign(space, count=min(spread, budget), seed=seed, prior=prior, bounds=bounds)
        self._design, self._ends = opening.spread, opening.ends
        self._design_tries = dict.fromkeys((genome.tobytes() for genome in self._design), 0)
        self._latency = SettingLatency(opening)
        self._verification = Verification(
            self._latency, accuracy, search, opening.architecture, opening.ends[0], self._rng
        )
        self._targets = [TargetState(target_ms) for target_ms in targets.fixed_ms]
        self._automatic = AutomaticTargets(targets, self._latency, self._ends, search, accuracy, seed)
        self._regime_unix_s = 0.0  # of the device when exploration ended, and since
        self._explored_from: int | None = None  # outcomes told when the initial design was complete
        self._current = True  # whether the targets' best subnets are those of all measurements
        self._told = 0
        self._queue: deque[Proposal] = deque()
        self._outstanding: dict[tuple[tuple[int, ...], Purpose, float | None], Proposal] = {}
        self._exploring = True
        self._finished = False
        self._abandoned = False

    # -- what the campaign sees --------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is left to ask."""
        return self._finished

    @property
    def phase(self) -> Literal["initial-design", "search", "verification", "done"]:
        """Where the search stands."""
        if self._finished:
            return "done"
        if self._explored_from is None:
            return "initial-design"
        return "search" if self._exploring else "verification"

    @property
    def targets(self) -> list[TargetState]:
        """Every target with its best subnet so far; automatic ones from the end of the initial design on."""
        if not self._current and not self._abandoned:
            self._current = True
            self._show_best_measured()
        return self._targets

    def predict_targets(self) -> None:
        """Renew the predictions of the subnets that targets stand at; costs as much as learning all measurements."""
        if not self._abandoned:
            self._verification.predict(self.targets)

    def target(self, target_ms: float | None) -> TargetState | None:
        """One target as its verifications left it; one that has none yet may stand better by now."""
        return next((state for state in self._targets if state.target_ms == target_ms), None)

    @property
    def decided(self) -> list[TargetState]:
        """Every target once the search has finished: before that, a target that is met may be opened again."""
        return self._targets if self._finished else []

    @property
    def quarantined(self) -> int:
        """Subnets that failed twice and are left alone."""
        return len(self._latency.observations.quarantined())

    @property
    def fastest_ms(self) -> float | None:
        """The least latency that was measured, as it ran."""
        fastest = self._latency.observations.fastest()
        return fastest.fastest_ms if fastest is not None else None

    @property
    def typical_speed(self) -> TypicalSpeed:
        """How slow the device typically is in this run."""
        return self._latency.speed

    def held_out_error(self) -> HeldOutError:
        """The predictor's own error: each measured subnet predicted from all others, at undisturbed speed."""
        return HeldOutError(None, None, 0) if self._abandoned else self._latency.held_out_error()

    def predict(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement at undisturbed speed, ms, each (n,)."""
        return self._latency.predict_undisturbed(genomes)

    @property
    def needs_planning(self) -> bool:
        """Whether the next `ask` has to think (some 0.1 s) rather than hand out what is planned already."""
        return not self._finished and not self._queue and not self._outstanding

    # -- ask and tell ------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Proposal]:
        """Up to `count` subnets to measure next; none while a round's last ones are out."""
        if self.needs_planning:
            self._queue.extend(self._next_round())
            self._latency.release()
        handed = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        self._outstanding.update((proposal.key, proposal) for proposal in handed)
        return handed

    def expect(self, proposal: Proposal) -> None:
        """A proposal of an earlier coordinator has no outcome yet: its round goes on."""
        self._outstanding[proposal.key] = proposal

    def abandon(self, reason: str) -> None:
        """End the search where it stands, without computing anything: it has broken down, and `reason` says how."""
        self._abandoned = self._finished = True
        self.failure_reason = reason
        self._queue.clear()
        self._outstanding.clear()
        for state in self._open_targets():
            state.status, state.reason = "missed", reason

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the outcome of a proposal, also of one that a stored run asked for."""
        if self._abandoned:
            return
        if proposal.purpose != "initial-design":
            self._end_initial_design()
        of_target = proposal.target_ms is not None
        if of_target:
            self._end_exploration()
            if self.target(proposal.target_ms) is None:
                self._follow_regime()
        elif proposal.purpose == "candidate" and not self._exploring:
            self._follow_regime()
        self._told += 1
        self._outstanding.pop(proposal.key, None)
        self._queue = deque(waiting for waiting in self._queue if waiting.key != proposal.key)
        genome = np.array(proposal.genome, dtype=np.int16)
        self.measurements += counts_against_budget(proposal.purpose, proposal.target_ms)
        if proposal.purpose == "initial-design" and genome.tobytes() in self._design_tries:
            self._design_tries[genome.tobytes()] += 1
        state, run = self.target(proposal.target_ms) if of_target else None, None
        if isinstance(outcome, Failed):
            self.failures += 1
            detail = f" ({outcome.detail})" if outcome.detail else ""
            self._verification.last_failure = f"{outcome.reason}{detail}"
            self._latency.add_failure(genome)
        else:
            run = self._latency.add(genome, outcome, awaited=proposal.purpose == "verification")
        if state is not None and proposal.purpose == "verification":
            self._verification.judge(state, genome, run)
        elif state is not None:
            state.replacements += 1
        self._check_abort(outcome)
        self._current = False

    def _check_abort(self, outcome: Measurement | Failed) -> None:
        if not isinstance(outcome, Failed) or self.failures < MAX_INITIAL_FAILURES:
            return
        if not len(self._latency.observations.table(unsure=True)):
            self.failure_reason = (
                f"its first {self.failures} measurements all failed, the last with {self._verification.last_failure}; "
                "run `fleetnas-agent doctor` on the device"
            )
            self._finish()

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self._seed, 3, self._told])

    # -- the initial design ------------------------------------------------------------------------------------

    def _is_open(self, genome: Genome) -> bool:
        """Whether a subnet of the initial design is to be measured, or measured once more."""
        seen: SubnetObservations = self._latency.observations.of(genome)
        if self.measurements >= self.budget or seen.quarantined or (seen.runs and seen.sure):
            return False
        return self._design_tries[genome.tobytes()] - seen.failures < _DESIGN_TRIES

    def _end_initial_design(self) -> None:
        """Once the initial design is measured, automatic targets follow from it."""
        if self._explored_from is None and not self._finished and not any(map(self._is_open, self._design)):
            self._explored_from = self._told
            if not len(self._latency.observations.table(unsure=True)):
                self.failure_reason = (
                    f"no measurement succeeded, the last failed with {self._verification.last_failure}; run "
                    "`fleetnas-agent doctor` on the device"
                )
                self._finish()
            elif self._request.automatic:
                self._automatic.begin()
                self._refresh_targets()

    # -- rounds ------------------------------------------------------------------------------------------------

    def _next_round(self) -> list[Proposal]:
        design = [genome for genome in self._design if self._is_open(genome)]
        if design:
            return self._verification.propose(design[: self.budget - self.measurements], "initial-design")
        self._end_initial_design()
        if self._exploring:
            self._refresh_targets()
        else:
            self._follow_regime()
        while self._exploring and not self._finished:
            found = self._candidates()
            if found:
                return found
            self._end_exploration()
            self._follow_regime()
        if self._finished:
            return []
        round_ = self._verifications()
        if not round_:
            self._verification.reconsider(self._targets)
            round_ = self._verifications()
        if not round_:
            self._finish()
        return round_

    def _end_exploration(self) -> None:
        """From the first re-measurement on, targets change with the device's lasting speed only."""
        if self._exploring and not self._finished:
            self._refresh_targets()
            self._exploring = False
            self._regime_unix_s = self._latency.observations.speed_since_unix_s

    def _follow_regime(self) -> None:
        """Explore again once the device's lasting speed has changed: its targets' best subnets are others now.

        Automatic targets are about the present speed as well.
        """
        regime_unix_s = self._latency.observations.speed_since_unix_s
        if self._finished or regime_unix_s in (0.0, self._regime_unix_s):
            return
        self._regime_unix_s = regime_unix_s
        self._refresh_targets()
        if not self._finished and self._latency.observations.changed_for_good:
            self._exploring = True
            self._verification.reconsider(self._targets)

    def _refresh_targets(self) -> None:
        """Take over automatic targets that are not those there are."""
        if not self._request.automatic:
            return
        resolved = self._automatic.now()
        self.targets_note = resolved.note
        if resolved.targets_ms != tuple(state.target_ms for state in self._targets):
            self._targets = [TargetState(target_ms) for target_ms in resolved.targets_ms]
        if not self._targets:
            self.failure_reason = self._automatic.unknown
            self._finish()

    def _verifications(self) -> list[Proposal]:
        asked = (self._verification.next(state, ACCURACY_GAINS[0]) for state in self._open_targets())
        return [proposal for proposal in asked if proposal is not None]

    def _open_targets(self) -> list[TargetState]:
        return [state for state in self._targets if state.status == "open"]

    def _candidates(self) -> list[Proposal]:
        """Predicted winners that are not measured yet and likely to be better than what is."""
        left = self.budget - self.measurements
        if left <= 0:
            return []
        states = self._open_targets()
        # Margins differ per target, so what is searched are the targets less their margins.
        margins = [self._verification.safety(state) for state in states]
        bounds = [state.target_ms / (1.0 + margin) for state, margin in zip(states, margins, strict=True)]
        best = [
            self._verification.best_measured(state, margin, unsure=False)
            for state, margin in zip(states, margins, strict=True)
        ]
        accuracies = [-math.inf if genome is None else self._verification.accuracy(genome) for genome in best]
        predicted, found = self._latency.undisturbed_model(), list[list[Genome | None]]()
        for gain in ACCURACY_GAINS:
            chosen: dict[bytes, Genome] = {}
            for place, sigmas in enumerate(_MARGINS):
                if place == len(found):
                    model = predicted.at_margin(sigmas)
                    found.append(self._latency.winners(self._search, bounds, self._rng(), model))
                for accuracy, winner in zip(accuracies, found[place], strict=True):
                    if winner is not None and self._verification.improves(accuracy, winner, gain):
                        chosen.setdefault(winner.tobytes(), winner)
                if len(chosen) >= min(_ROUND, left):
                    break
            if chosen:
                return self._verification.propose(list(chosen.values())[:left], "candidate")
        return []

    # -- how targets stand -------------------------------------------------------------------------------------

    def _show_best_measured(self) -> None:
        """Before verification, each target shows its best measured subnet."""
        if self._explored_from is None:
            return
        for state in self._open_targets():
            if state.verifications == 0:
                best = self._verification.choice(state, unsure=not self._exploring)
                if best is not None:
                    self._verification.stand(state, best)

    def _finish(self) -> None:
        self._finished = True
        self._queue.clear()
        self._outstanding.clear()
        for state in self._open_targets():
            state.status = "missed"
            state.reason = state.reason or self.failure_reason or "it was not verified"
        self._verification.explain_given_up(self._targets)
        self._verification.predict(self._targets)
        self._verification.adopt_better_winners(self._targets)
        self._note_what_constrains_nothing()

    def _note_what_constrains_nothing(self) -> None:
        largest_ms = self._largest_ms()
        for state in self._targets:
            if largest_ms is not None and state.status == "met" and largest_ms <= state.target_ms:
                state.note = f"constrains nothing: the largest subnet takes {largest_ms:.3g} ms"

    def _largest_ms(self) -> float | None:
        """Latency of the largest subnet at the typical speed, ms; None where it is not known."""
        observations = self._latency.observations
        largest = observations.of(self._ends[-1])
        known = any(run.undisturbed_ms is not None for run in largest.runs)
        return observations.latency_ms(largest) if known else None
