"""Leave one device family out: the error on an unseen device after a few measurements of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.device_fit import MeasuredDevice, fit_device
from fleetnas.coordinator.predictors.evaluation.dataset import LatencyData
from fleetnas.coordinator.predictors.evaluation.methods import (
    LearnedPriors,
    Method,
    MethodFactory,
    NewSetting,
    PriorMethod,
)
from fleetnas.coordinator.predictors.metrics import spearman
from fleetnas.coordinator.predictors.prior import Floats, hierarchical_prior
from fleetnas.fleet_protocol.errors import UsageError

Choice = Literal["random", "own"]

#: Half-width of a 90 % interval in standard deviations.
_SIGMAS_90 = 1.6449


@dataclass(frozen=True)
class Score:
    """Errors on held-out architectures."""

    spearman: float
    mape_percent: float
    rmse_ms: float
    coverage_percent: float = float("nan")  #: of 90 % intervals; NaN for a method without intervals


@dataclass(frozen=True)
class EvaluationRow:
    """One device setting at one budget: medians over the draws of samples."""

    setting: str
    family: str
    samples: int
    choice: Choice
    score: Score
    floor: Score  #: of a fit to all other architectures of the setting itself


@dataclass(frozen=True)
class Split:
    """Architectures to measure or learn from, and architectures held out."""

    pool: NDArray[np.intp]
    held_out: NDArray[np.intp]


def split(count: int, held_out: int, rng: np.random.Generator) -> Split:
    """Split `count` architectures at random."""
    if not 0 < held_out < count:
        raise UsageError(
            f"{held_out} architectures cannot be held out of {count}; at least 1 must be left on each side"
        )
    order = rng.permutation(count)
    return Split(order[held_out:], order[:held_out])


def score(mean: Floats, latency_ms: Floats, standard_deviation: Floats | None = None) -> Score:
    """Compute the errors of predictions (n,) of measured latencies (n,), all ms."""
    error = np.abs(mean - latency_ms)
    covered = np.nan
    if standard_deviation is not None:
        covered = 100.0 * float(np.mean(error <= _SIGMAS_90 * standard_deviation))
    rank = spearman(mean, latency_ms)
    return Score(
        rank if rank is not None else 0.0,
        100.0 * float(np.mean(error / latency_ms)),
        float(np.sqrt(np.mean(error**2))),
        covered,
    )


def median_score(scores: Sequence[Score]) -> Score:
    """Take the median of each figure."""
    columns = np.array([[s.spearman, s.mape_percent, s.rmse_ms, s.coverage_percent] for s in scores])
    return Score(*(float(value) for value in np.median(columns, axis=0)))


def floor_score(data: LatencyData, setting: str, parts: Split) -> Score:
    """Error of a fit to every architecture of the pool, measured on the setting itself: its noise floor."""
    base = hierarchical_prior(data.features[parts.pool], data.groups)
    latency = data.latency_ms[setting]
    fit = fit_device(MeasuredDevice(setting, setting, data.features[parts.pool], latency[parts.pool]), base)
    return score(fit.typical_ms * (data.features[parts.held_out] @ fit.weights), latency[parts.held_out])


def draw_scores(
    method: Method,
    latency_ms: Floats,
    parts: Split,
    samples: int,
    draws: int,
    choice: Choice,
    rng: np.random.Generator,
) -> list[Score]:
    """Measure `samples` architectures of the pool, at random or chosen by the method itself; `draws` times.

    Args:
        method: of the setting.
        latency_ms: measured on the setting, (n,).
        parts: architectures to draw from, and to test on.
        samples: measurements per draw.
        draws: number of draws.
        choice: `own` only for a method that can choose.
        rng: of the draws.
    """
    found = []
    for _ in range(draws):
        if choice == "own" and isinstance(method, PriorMethod):
            chosen = method.suggest(parts.pool, samples, rng)
        else:
            chosen = rng.choice(parts.pool, samples, replace=False)
        mean, deviation = method.predict(chosen, parts.held_out)
        found.append(score(mean, latency_ms[parts.held_out], deviation))
    return found


def leave_family_out(
    data: LatencyData,
    make_method: MethodFactory | None = None,
    *,
    samples: Sequence[int] = (10, 20, 50),
    choices: Sequence[Choice] = ("random", "own"),
    draws: int = 20,
    held_out: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda setting: None,
) -> list[EvaluationRow]:
    """For every setting: learn from all other families, measure a few subnets of it, test on held-out ones.

    The held-out architectures take no part in learning from the other families either.

    Args:
        data: of at least two families.
        make_method: the method; None: the Bayesian predictor with learned priors.
        samples: numbers of measurements of the new setting.
        choices: of these measurements; `own` is left out for methods that cannot choose.
        draws: repetitions, of which medians are taken.
        held_out: architectures to test on, at most half of all.
        seed: of the split and the draws.
        progress: called with each setting's name.

    Raises:
        UsageError: there is only one family, or the number of samples cannot be drawn or is too small.
    """
    if len(set(data.families.values())) < 2:
        raise UsageError(
            f"leaving a family out needs settings of two devices; there is only {', '.join(data.latency_ms)}"
        )
    rng = np.random.default_rng(seed)
    parts = split(len(data.features), min(held_out, len(data.features) // 2), rng)
    if max(samples) > len(parts.pool):
        raise UsageError(f"{max(samples)} samples cannot be drawn from {len(parts.pool)}; ask for fewer")
    make_method = make_method or LearnedPriors()
    rows: list[EvaluationRow] = []
    for setting, latency_ms in data.latency_ms.items():
        progress(setting)
        method = make_method(NewSetting(data, setting, parts.pool, seed))
        if min(samples) < method.least_samples:
            raise UsageError(f"{min(samples)} samples are too few for this method; give {method.least_samples} or more")
        floor = floor_score(data, setting, parts)
        possible: Sequence[Choice] = choices if isinstance(method, PriorMethod) else ("random",)
        for choice in possible:
            for count in samples:
                # The same draws whatever else is evaluated.
                own = np.random.default_rng([seed, count, choice == "own"])
                scores = draw_scores(method, latency_ms, parts, count, draws, choice, own)
                rows.append(EvaluationRow(setting, data.families[setting], count, choice, median_score(scores), floor))
    return rows


def table_lines(rows: Iterable[EvaluationRow]) -> list[str]:
    """Format the rows as a plain table."""
    header = f"{'setting':<18}{'samples':>8}{'choice':>8}{'spearman':>10}{'floor':>8}{'MAPE %':>8}{'floor':>7}"
    lines = [header + f"{'RMSE ms':>9}{'90 % interval':>15}"]
    lines += [
        f"{row.setting:<18}{row.samples:>8}{row.choice:>8}{row.score.spearman:>10.3f}{row.floor.spearman:>8.3f}"
        f"{row.score.mape_percent:>8.2f}{row.floor.mape_percent:>7.2f}{row.score.rmse_ms:>9.3f}"
        f"{_percent(row.score.coverage_percent):>15}"
        for row in rows
    ]
    return lines


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f} %"
