"""The search on one device setting as pure ask and tell, for measurements of the caller's own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.target_kinds import TargetKind
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Failed, FailureReason, Measurement, TaskKey
from fleetnas.supernet_export.bundle import SupernetBundle

__all__ = ["Tuner"]

#: Least number of measurements that a latency predictor is learned from.
_FEWEST = 3


class Tuner:
    """Finds, for each latency target, the most accurate subnet that was measured within it.

    It proposes subnets, is told their latencies, and learns a predictor from them. It uses no network, thread or clock
    of its own, and its proposals are a function of the seed and of what it was told.

    ```python
    tuner = fleetnas.Tuner(bundle, targets="auto:3", budget=20)
    while not tuner.finished:
        for proposal in tuner.ask(4):
            tuner.tell(proposal, measure(proposal.architecture))
    ```
    """

    def __init__(
        self,
        bundle: SupernetBundle,
        targets: str | Sequence[float],
        *,
        budget: int = 40,
        initial_design: int = 10,
        bounds: Bounds | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare a search; nothing is measured yet.

        Args:
            bundle: a bundle with an accuracy predictor.
            targets: milliseconds, as numbers or as text such as `20,30`, or `auto:N` for N targets over the range of
                latencies that the device turns out to have; `accuracy:75` for the fastest subnet that keeps 75 %.
            budget: measurements before verification, at least 3.
            initial_design: how many of them cover the design space first, at least 3.
            bounds: the most that a subnet may cost beside its latency; nothing beyond them is proposed.
            seed: of all random choices.
            clock: Unix seconds, which mark the measurements.

        Raises:
            UsageError: the targets cannot be read, a number is too small, or the bundle has no accuracy predictor.
            InfeasibleTargetError: no subnet keeps the bounds; names the least possible costs.
        """
        if min(budget, initial_design) < _FEWEST:
            raise UsageError(
                f"a search needs a budget of at least {_FEWEST} measurements and an initial design of as many; "
                f"found {budget} and {initial_design}"
            )
        predictor = bundle.accuracy_predictor()
        if predictor is None:
            raise UsageError(
                f"{bundle.path} holds no accuracy predictor; put one in with `fleetnas accuracy fit --bundle`"
            )
        if bounds is not None:
            bounds.check(bundle.space)
        accuracy = PredictedAccuracy(bundle.space, predictor)
        text = targets if isinstance(targets, str) else ",".join(f"{float(target)!r}" for target in targets)
        request = TargetRequest.parse(text)
        if any(target.kind is not TargetKind.ACCURACY for target in request.others):
            raise UsageError(f"a tuner is told medians alone, and targets {text!r} are about more; give milliseconds")
        solver = BundleTargetSolver(bundle.space, accuracy, Strategy.BOTTOM_UP, bounds=bounds)
        self._clock = clock
        design = InitialDesign(bundle.space, count=min(initial_design, budget), seed=seed, bounds=bounds)
        self._tuner = DeviceTuner(design, accuracy, request, solver, budget=budget)

    @property
    def finished(self) -> bool:
        """Whether every target is decided and nothing is left to ask."""
        return self._tuner.finished

    @property
    def phase(self) -> str:
        """The phase of the search: the initial design, search, verification, or done."""
        return self._tuner.phase

    @property
    def targets(self) -> tuple[TargetState, ...]:
        """Each target, ascending, with its status and its best subnet so far; latencies in ms."""
        return tuple(self._tuner.targets)

    def ask(self, count: int = 1) -> list[Proposal]:
        """Propose up to `count` subnets to measure next.

        Returns:
            Proposals with an `architecture` each. The list is empty once the search has finished, and also while the
            last proposals of a round have not been told: tell those first.
        """
        return self._tuner.ask(count)

    def tell(self, proposal: Proposal, latency_ms: float, *, half_width_percent: float = 1.0) -> None:
        """Report the measured latency of a proposal.

        Args:
            proposal: one that `ask` returned.
            latency_ms: the median of repeated runs, above 0.
            half_width_percent: the 95 % half-width of that median, in percent of it.

        Raises:
            pydantic.ValidationError: a number is not finite or out of range.
        """
        self._tuner.tell(
            proposal,
            Measurement(
                # The caller's file is not known here; the architecture identifies what was measured.
                model_sha256=hashlib.sha256(proposal.architecture.fingerprint.encode()).hexdigest(),
                model_bytes=0,
                median_ms=latency_ms,
                mad_ms=0.0,
                p90_ms=latency_ms,
                min_ms=latency_ms,
                runs=1,
                half_width_percent=half_width_percent,
                quality="ok",
                undisturbed_ms=latency_ms,
                undisturbed_half_width_percent=half_width_percent,
                times_us=(1000.0 * latency_ms,),
                provider="caller",
                build_ms=0.0,
                load_ms=0.0,
                finished_unix_s=self._clock(),
            ),
        )

    def fail(self, proposal: Proposal, reason: FailureReason = "crashed", detail: str = "") -> None:
        """Report that a proposal could not be measured; after two failures a subnet is left alone.

        Args:
            proposal: one that `ask` returned.
            reason: the kind of failure.
            detail: text for people, at most 500 characters.
        """
        task = TaskKey(task_id=proposal.architecture.fingerprint, attempt=1)
        self._tuner.tell(proposal, Failed(task=task, reason=reason, detail=detail[:500]))
