"""The portfolio of a stored run: few subnets for all of its device settings and targets, by what the run measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.app.setting_learners import SettingLearners
from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, TargetOutcome
from fleetnas.coordinator.records.plan import CampaignPlan, settings_of
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.portfolio import (
    Demands,
    Portfolio,
    choose_portfolio,
    choose_worst_case,
    portfolio_curve,
    portfolio_of,
)
from fleetnas.coordinator.search.portfolio_bound import mean_accuracy_bound, worst_case_bound
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.shared_archive import Archive
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]
#: How the latency of a subnet on a device setting is known: `measured` while searching, `verified` against the target.
Knowledge: TypeAlias = Literal["predicted", "measured", "verified"]
_KNOWLEDGE: tuple[Knowledge, ...] = get_args(Knowledge)

#: Margin on a predicted latency, in its standard deviations: a prediction that fails costs a verification.
_SIGMAS = 1.0
#: Weights beyond this leave no room for the others in a sum of doubles.
_MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class Demand:
    """A latency target on a device setting, and how the run ended for it."""

    device: str
    setting: str  #: label of the runtime setting
    target_ms: float
    outcome: TargetOutcome
    weight: float = 1.0

    def is_of(self, device: DeviceOutcome) -> bool:
        """Whether this is a target of a device setting."""
        return (self.device, self.setting) == (device.device, device.setting.label)


@dataclass(frozen=True)
class Service:
    """A demand, and the chosen subnet that serves it."""

    demand: Demand
    architecture: Architecture | None = None  #: None where no subnet is likely to meet it
    accuracy: float | None = None  #: predicted top-1, a fraction
    latency_ms: float | None = None  #: at the typical speed of the run
    known_by: Knowledge = "predicted"


@dataclass(frozen=True)
class RunPortfolio:
    """Subnets chosen for a run."""

    architectures: tuple[Architecture, ...]
    services: tuple[Service, ...]  #: one per demand, in their order
    winners: int  #: different winners of the run
    winners_accuracy: float | None  #: weighted mean accuracy of the targets that they meet; None without winners

    @property
    def mean_accuracy(self) -> float | None:
        """Weighted mean predicted accuracy of the served demands, a fraction; None where none is served."""
        return _weighted((service.accuracy, service.demand.weight) for service in self.services)

    def is_served(self, *, verified: bool) -> bool:
        """Whether every demand is served, with `verified` by a subnet that was verified for it."""
        wanted = _KNOWLEDGE[-1:] if verified else _KNOWLEDGE
        return all(each.architecture is not None and each.known_by in wanted for each in self.services)


@dataclass(frozen=True)
class PortfolioBound:
    """What no portfolio of as many subnets can exceed, fractions; None where it was not asked for, or is not known."""

    mean_accuracy: float | None
    greatest_loss: float
    """Loss of the worst-served target of the chosen portfolio, against its own best subnet."""
    least_loss: float | None
    """No portfolio keeps its worst-served target below this loss."""


class PortfolioProblem:
    """Candidates (n) and demands (P) of a run; verified latencies are told to it, and the choice is made again."""

    def __init__(
        self, space: DesignSpace, genomes: Genomes, accuracy: Floats, demands: Sequence[Demand], latency: _Latencies
    ) -> None:
        self._space, self._genomes, self._accuracy = space, genomes, accuracy
        self.demands = tuple(demands)
        self._latency = latency

    def choose(self, models: int, *, worst_case: bool = False) -> RunPortfolio:
        """Choose at most `models` subnets; `UsageError` where that is below 1.

        By the highest mean accuracy of all demands; with `worst_case` by the least loss of the demand that loses most
        against its own best subnet.
        """
        problem = self._present()
        chosen = (choose_worst_case if worst_case else choose_portfolio)(problem, models)
        architectures = self._space.decode(self._genomes[list(chosen.chosen)])
        of_row = dict(zip(chosen.chosen, architectures, strict=True))
        won = [demand for demand in self.demands if demand.outcome.met]
        return RunPortfolio(
            tuple(architectures),
            tuple(
                self._service(demand, column, row, of_row.get(row))
                for column, (demand, row) in enumerate(
                    zip(self.demands, problem.served_by(chosen.chosen).tolist(), strict=True)
                )
            ),
            len({demand.outcome.architecture for demand in won}),
            _weighted((demand.outcome.predicted_accuracy, demand.weight) for demand in won),
        )

    def bound(self, chosen: RunPortfolio, models: int, *, worst_case: bool = False) -> PortfolioBound:
        """Bound what any portfolio of `models` subnets can reach, by what is known now."""
        problem = self._present()
        genomes = self._space.encode(list(chosen.architectures)) if chosen.architectures else self._genomes[:0]
        rows = [int(np.flatnonzero((self._genomes == genome).all(axis=1))[0]) for genome in genomes]
        found = portfolio_of(problem, rows)
        return PortfolioBound(
            mean_accuracy_bound(problem, found, models) if not worst_case else None,
            found.greatest_loss,
            worst_case_bound(problem, found, models) if worst_case else None,
        )

    def curve(self) -> list[Portfolio]:
        """Return the portfolios of 1, 2, ... models by mean accuracy, to where more models change nothing."""
        return portfolio_curve(self._present(), len(self.demands))

    def _present(self) -> Demands:
        """Return which candidate meets which demand, by what is known now."""
        weights = np.array([demand.weight for demand in self.demands], dtype=np.float64)
        return Demands(self._accuracy, self._latency.meets, weights)

    def _service(self, demand: Demand, column: int, row: int, architecture: Architecture | None) -> Service:
        if architecture is None:
            return Service(demand)
        latency = self._latency
        return Service(
            demand,
            architecture,
            float(self._accuracy[row]),
            float(latency.typical_ms[row, column]),
            _KNOWLEDGE[latency.known_by[row, column]],
        )

    def tell(self, architecture: Architecture, demand: Demand, latency_ms: float, *, met: bool) -> None:
        """Take in the verification of a candidate for a demand, whose latency is at the typical speed."""
        genome = self._space.encode([architecture])[0]
        row = int(np.flatnonzero((self._genomes == genome).all(axis=1))[0])
        self._latency.set(row, self.demands.index(demand), latency_ms, "verified", met=met)


class _Latencies:
    """Of every candidate and demand, (n, P): latency at the typical speed, how it is known, and whether it is met."""

    def __init__(self, typical_ms: Floats, known_by: NDArray[np.intp], meets: NDArray[np.bool_]) -> None:
        self.typical_ms, self.known_by, self.meets = typical_ms, known_by, meets

    def set(self, row: int, column: int, latency_ms: float, known_by: Knowledge, *, met: bool) -> None:
        self.typical_ms[row, column], self.meets[row, column] = latency_ms, met
        self.known_by[row, column] = _KNOWLEDGE.index(known_by)

    @staticmethod
    def joined(parts: Sequence[_Latencies]) -> _Latencies:
        return _Latencies(
            np.concatenate([part.typical_ms for part in parts], axis=1),
            np.concatenate([part.known_by for part in parts], axis=1),
            np.concatenate([part.meets for part in parts], axis=1),
        )


def parse_weights(source: str, text: str) -> dict[str, float]:
    """Parse weights of devices and settings from JSON.

    Raises:
        UsageError: it is no object of numbers above 0, or has a name twice; the message begins with `source`.
    """
    found: dict[str, float] = {}

    def take(pairs: list[tuple[str, object]]) -> dict[str, float]:
        for name, value in pairs:
            if name in found:
                raise UsageError(f"{source} names {name} twice")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < float(value) < _MOST_WEIGHT:  # type: ignore[arg-type]
                raise UsageError(f"{source}: the weight of {name} must be a number above 0; found {str(value)[:80]}")
            found[name] = float(value)  # type: ignore[arg-type]
        return found

    try:
        parsed: object = json.loads(text, object_pairs_hook=take)
    except (ValueError, RecursionError) as error:
        raise UsageError(f'{source} is not JSON ({one_line(error)}); give an object such as {{"pi4": 20}}') from error
    if parsed is not found:
        raise UsageError(f'{source} is no JSON object of weights; give one such as {{"pi4": 20}}')
    return found


def open_portfolio(
    store: MeasurementStore,
    run_id: str,
    accuracy: PredictedAccuracy,
    weights: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PortfolioProblem:
    """Read a stored search and predict the latency of every candidate on each of its device settings.

    Candidates are the subnets that the run measured, and those that are good on some device.

    Args:
        store: holds the run.
        run_id: a search.
        accuracy: of the run's bundle.
        weights: of devices by name, of settings by `DEVICE/SETTING`; 1 for those that are not named.
        progress: is given the device settings predicted and those in all.

    Raises:
        UsageError: there is no such run, it has no targets yet, it measured given subnets, or weights name others.
    """
    outcome, plan = outcome_of(store, run_id), settings_of(store.run(run_id)).plan
    if plan.kind != "search":
        raise UsageError(f"run {run_id} measured given subnets; a portfolio needs a search: see `fleetnas runs`")
    devices = [device for device in outcome.devices if device.targets and device.rows]
    demands = _weighed([demand for device in devices for demand in _demands(device)], weights or {})
    if not demands:
        raise UsageError(f"run {run_id} has no device setting with measurements and targets; let it go on first")
    space = accuracy.space
    genomes = _candidates(accuracy, plan, outcome)
    learners = SettingLearners(store, space, plan, outcome.started_s)
    parts: list[_Latencies] = []
    with single_threaded_blas():
        for done, device in enumerate(devices):
            progress(done, len(devices))
            learned = learners.latency(run_id, device, outcome.devices)
            own = [each for each in demands if each.is_of(device)]
            parts.append(_latencies(learned, genomes, space, own, {row.architecture for row in device.rows}))
        predicted = np.asarray(accuracy.predict(genomes), dtype=np.float64)
    progress(len(devices), len(devices))
    return PortfolioProblem(space, genomes, predicted, demands, _Latencies.joined(parts))


def _demands(device: DeviceOutcome) -> list[Demand]:
    return [
        Demand(device.device, device.setting.label, target.target_ms, target)
        for target in device.targets
        if target.target_ms is not None and not target.target
    ]


def _weighed(demands: Sequence[Demand], weights: Mapping[str, float]) -> list[Demand]:
    names = {name for demand in demands for name in (demand.device, f"{demand.device}/{demand.setting}")}
    unknown = sorted(set(weights) - names)
    if unknown:
        near = did_you_mean(unknown[0], sorted(names))
        raise UsageError(f"weights name {', '.join(unknown)[:200]}{near} the run has {', '.join(sorted(names))[:400]}")
    return [
        replace(
            demand,
            weight=weights.get(f"{demand.device}/{demand.setting}", 1.0) * weights.get(demand.device, 1.0),
        )
        for demand in demands
    ]


def _candidates(accuracy: PredictedAccuracy, plan: CampaignPlan, outcome: CampaignOutcome) -> Genomes:
    """Return the candidates, (n, G)."""
    space = accuracy.space
    measured = space.encode([row.architecture for device in outcome.devices for row in device.rows])
    measured = measured[plan.bounds.met(space, measured)]
    with single_threaded_blas():
        archive = Archive(space, accuracy, plan.bounds).genomes
    genomes: Genomes = np.unique(np.concatenate([archive, measured]), axis=0)
    return genomes


def _latencies(
    latency: SettingLatency,
    genomes: Genomes,
    space: DesignSpace,
    demands: Sequence[Demand],
    measured: Collection[Architecture],
) -> _Latencies:
    """Return what is known of every candidate on one device setting, which measured some, for its demands."""
    table = latency.observations.table()
    mean, deviation = latency.predict(genomes)
    # The smallest subnet was measured; a linear model that learned from disturbed data may go below it, even below 0.
    mean = np.maximum(mean, table.typical_ms.min(initial=np.inf) if len(table) else 0.0)
    targets = [demand.target_ms for demand in demands]
    found = _Latencies(
        np.repeat(mean[:, None], len(demands), axis=1),
        np.zeros((len(genomes), len(demands)), dtype=np.intp),
        (mean + _SIGMAS * deviation)[:, None] <= np.array(targets),
    )
    row_of = {genome.tobytes(): row for row, genome in enumerate(genomes)}
    own = {genome.tobytes() for genome in space.encode(list(measured))}
    for genome, typical_ms, bound_ms in zip(
        table.genomes, table.typical_ms.tolist(), table.bound_ms.tolist(), strict=True
    ):
        row = row_of.get(genome.tobytes()) if genome.tobytes() in own else None
        for column, target_ms in enumerate(targets if row is not None else ()):
            # The latency on a slowed device is a bound: within the target it decides, beyond it nothing.
            if np.isinf(bound_ms) or bound_ms <= target_ms:
                found.set(row, column, typical_ms, "measured", met=typical_ms <= target_ms)  # type: ignore[arg-type]
    for column, demand in enumerate(demands):
        winner = demand.outcome
        if winner.architecture is not None and winner.verified_ms is not None:
            row = row_of.get(space.encode([winner.architecture])[0].tobytes())
            if row is not None:
                found.set(row, column, winner.typical_ms or winner.verified_ms, "verified", met=winner.met)
    return found


def _weighted(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """Return the weighted mean of the values that are known; None where none is."""
    known = [(value, weight) for value, weight in pairs if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if known else None
