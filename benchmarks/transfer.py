"""Transfer between unlike devices: priors learned from one kind of device and tried on another.

FBNet's latencies on phones, servers and GPUs (13 settings, six cases). Measurements of a new setting are drawn at
random or chosen by the predictor itself, first four together and then two at a time, each pair after the ones before
were measured. Beside the product's prior stand the one that it learned before (six hypotheses, all of them
transferred) and the one without any transfer; both choose all measurements at once, as was done before. All three use
the present likelihood. Data in `FLEETNAS_DATA`.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from figures import Figures, parser
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import DeviceFits, fit_devices
from fleetnas.coordinator.predictors.evaluation.dataset import LatencyData, read_latency_data
from fleetnas.coordinator.predictors.evaluation.studies import Score, Split, median_score, score, split
from fleetnas.coordinator.predictors.learned_prior import learn_prior, prior_of_fits
from fleetnas.coordinator.predictors.marginal_likelihood import log_likelihoods
from fleetnas.coordinator.predictors.prior import Hypothesis, Prior, hierarchical_prior

DATA = Path(os.environ.get("FLEETNAS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
FILES = {"fbnet": "fbnet", "ofa": "ofa_mbv3"}
#: Kinds of FBNet's devices, by the beginnings of their settings' names.
KINDS = {
    "phones": ("samsung", "pixel3", "essential"),
    "servers": ("silver", "gold"),
    "gpus": ("1080ti", "titanx"),
}
COUNTS = (10, 20)
CHOICES = ("random", "own")
RULES = ("transfer", "before", "untransferred")
#: Architectures from which measurements are chosen; chosen together at first, and in each later round.
POOL, FIRST, LATER = 500, 4, 2
BEFORE = [(deviation, discrepancy) for deviation in (0.003, 0.1) for discrepancy in (0.005, 0.02, 0.08)]


@dataclass(frozen=True)
class Task:
    """One setting, tried with priors that were learned from the settings of another kind, or of other families."""

    space: str
    setting: str
    source: str  #: a kind, or empty for all other families
    seed: int
    draws: int


@dataclass(frozen=True)
class Result:
    """Median scores of a setting."""

    task: Task
    rule: str
    choice: str
    samples: int
    score: Score


def kind_of(setting: str) -> str:
    """Return the kind of an FBNet setting."""
    return next(kind for kind, names in KINDS.items() if setting.startswith(names))


def baseline_prior_learned_before(fits: DeviceFits) -> Prior:
    """Learn a prior as it was done before: all hypotheses transferred, none with an amplitude of the contrast."""
    narrow = hierarchical_prior(fits.reference, fits.groups, own=0.25).hypotheses[0].covariance

    def hypotheses(kept: DeviceFits) -> list[Hypothesis]:
        apart = kept.weights - kept.weights.mean(axis=0)
        known = (2.0 * apart.T @ apart + kept.covariance(range(len(kept)))) / len(kept)
        covariances = {deviation: known + deviation * narrow for deviation, _ in BEFORE}
        return [Hypothesis(kept.weights.mean(axis=0), covariances[d], discrepancy) for d, discrepancy in BEFORE]

    votes = np.ones(len(BEFORE))
    families = sorted(set(fits.families))
    for family in families if len(families) > 1 else []:
        left = hypotheses(fits.subset([i for i, name in enumerate(fits.families) if name != family]))
        for device in (device for device in fits.devices if device.family == family):
            rows = np.unique(np.linspace(0, len(device.latency_ms) - 1, 30).astype(int))
            logs = log_likelihoods(left, device.features[rows], device.latency_ms[rows])
            likelihood = np.exp(logs - logs.max())
            votes += len(BEFORE) * likelihood / likelihood.sum()
    chances = (votes / votes.sum()).tolist()
    scale = float(np.exp(np.log(fits.typical_ms).mean()))
    return Prior(tuple(replace(h, probability=c) for h, c in zip(hypotheses(fits), chances, strict=True)), scale)


def chosen_in_turn(
    prior: Prior,
    data: LatencyData,
    setting: str,
    pool: NDArray[np.intp],
    rng: np.random.Generator,
    first: int,
    later: int,
) -> NDArray[np.intp]:
    """Let the predictor choose `first` measurements, then rounds of `later` after it learned those before, in order."""
    predictor = BayesianPredictor(prior)
    free = rng.choice(pool, min(POOL, len(pool)), replace=False)
    rows = free[:0]
    while len(rows) < max(COUNTS):
        wanted = later if len(rows) else first
        picks = predictor.suggest(data.features[free], min(wanted, max(COUNTS) - len(rows)), rng)
        predictor.update(data.features[free[picks]], data.latency_ms[setting][free[picks]])
        rows, free = np.concatenate([rows, free[picks]]), np.delete(free, picks)
    return rows


def scored(prior: Prior, data: LatencyData, setting: str, rows: NDArray[np.intp], held_out: NDArray[np.intp]) -> Score:
    """Score the predictor after the measurements `rows` on the architectures `held_out`."""
    predictor = BayesianPredictor(prior)
    predictor.update(data.features[rows], data.latency_ms[setting][rows])
    mean, deviation = predictor.predict(data.features[held_out], include_noise=True)
    return score(mean, data.latency_ms[setting][held_out], deviation)


class Tries:
    """Tries priors on settings; fits and priors are kept from one task to the next."""

    def __init__(self) -> None:
        self._worlds: dict[tuple[str, int], tuple[LatencyData, Split, DeviceFits]] = {}
        self._priors: dict[tuple[str, int, tuple[int, ...]], dict[str, Prior]] = {}

    def run(self, task: Task) -> list[Result]:
        """Return the median scores of a task, by rule, choice and count."""
        data, parts, fits = self._world(task.space, task.seed)
        if task.source:
            places = [i for i, device in enumerate(fits.devices) if kind_of(device.name) == task.source]
        else:
            places = [i for i, family in enumerate(fits.families) if family != data.families[task.setting]]
        found = []
        for rule, prior in self._learned(task, fits, tuple(places)).items():
            for choice in CHOICES:
                rng = np.random.default_rng([task.seed, choice == "own"])
                scores: dict[int, list[Score]] = {count: [] for count in COUNTS}
                for _ in range(task.draws):
                    if choice == "random":
                        rows = rng.choice(parts.pool, max(COUNTS), replace=False)
                    else:
                        first, later = (FIRST, LATER) if rule == "transfer" else (max(COUNTS), 0)
                        rows = chosen_in_turn(prior, data, task.setting, parts.pool, rng, first, later)
                    for count in COUNTS:
                        scores[count].append(scored(prior, data, task.setting, rows[:count], parts.held_out))
                found += [Result(task, rule, choice, n, median_score(some)) for n, some in scores.items()]
        return found

    def _world(self, space: str, seed: int) -> tuple[LatencyData, Split, DeviceFits]:
        if (space, seed) not in self._worlds:
            data = read_latency_data(DATA / FILES[space] / "measured_latency_ms.npz")
            parts = split(len(data.features), 1000, np.random.default_rng(seed))
            self._worlds[space, seed] = data, parts, fit_devices(data.devices(parts.pool), data.groups)
        return self._worlds[space, seed]

    def _learned(self, task: Task, fits: DeviceFits, places: tuple[int, ...]) -> dict[str, Prior]:
        key = task.space, task.seed, places
        if key not in self._priors:
            known = fits.subset(places)
            made = {"transfer": prior_of_fits(known), "before": baseline_prior_learned_before(known)}
            if task.source:
                made["untransferred"] = hierarchical_prior(
                    fits.reference, fits.groups, scale_ms=made["before"].scale_ms
                )
            self._priors[key] = made
        return self._priors[key]


_TRIES = Tries()


def run_task(task: Task) -> list[Result]:
    """Run a task in a worker process."""
    return _TRIES.run(task)


def tasks_of(settings: Sequence[str], draws: int, seeds: int) -> Iterable[Task]:
    """All kind-to-kind tasks of each seed; for the first one also the leave-one-family-out tasks."""
    fbnet = read_latency_data(DATA / FILES["fbnet"] / "measured_latency_ms.npz").latency_ms
    for seed in range(seeds):
        for source in KINDS:
            for setting in fbnet:
                if kind_of(setting) != source and (not settings or setting in settings):
                    yield Task("fbnet", setting, source, seed, draws)
    for space in FILES:
        for setting in read_latency_data(DATA / FILES[space] / "measured_latency_ms.npz").latency_ms:
            if not settings or setting in settings:
                yield Task(space, setting, "", 0, draws)


def add_kinds(figures: Figures, results: Sequence[Result], seed: int) -> None:
    """Kind to kind: means over the six cases, the worst setting, and the coverage."""
    prefix = f"seed_{seed}_"
    mean_bars = {("random", 10): 0.71, ("random", 20): 0.78, ("own", 10): 0.75, ("own", 20): 0.82}
    harm_bars = {10: -0.07, 20: -0.05}
    coverages = []
    for choice in CHOICES:
        for count in COUNTS:
            chosen = [r for r in results if r.task.seed == seed and r.choice == choice and r.samples == count]
            by_rule = {
                rule: {(r.task.source, r.task.setting): r.score for r in chosen if r.rule == rule} for rule in RULES
            }
            means = {rule: mean_of_cases({key: s.spearman for key, s in by_rule[rule].items()}) for rule in RULES}
            best = {
                key: max(by_rule["before"][key].spearman, by_rule["untransferred"][key].spearman)
                for key in by_rule["transfer"]
            }
            name = f"{prefix}{choice}_{count}"
            figures.add(f"{name}_spearman", means["transfer"], f">= {mean_bars[choice, count]}")
            figures.add(f"{name}_spearman_learned_before", means["before"])
            figures.add(f"{name}_spearman_untransferred", means["untransferred"])
            figures.add(f"{name}_spearman_better_of_both", mean_of_cases(best))
            worst = min(by_rule["transfer"][key].spearman - best[key] for key in best)
            figures.add(f"{name}_worst_against_better", worst, f">= {harm_bars[count]}")
            covered = [s.coverage_percent for s in by_rule["transfer"].values()]
            coverages += covered
            figures.add(f"{name}_coverage_percent_mean", statistics.mean(covered))
            outside = sum(not 85.0 <= percent <= 95.0 for percent in covered)
            figures.add(f"{name}_settings_outside_85_to_95", outside)
    figures.add(f"{prefix}coverage_percent_least", min(coverages), ">= 85")
    figures.add(f"{prefix}coverage_percent_most", max(coverages), "<= 95")


def mean_of_cases(of_settings: dict[tuple[str, str], float]) -> float:
    """Mean over the six cases of the means over their settings, given values by source kind and setting."""
    cases: dict[tuple[str, str], list[float]] = {}
    for (source, setting), value in of_settings.items():
        cases.setdefault((source, kind_of(setting)), []).append(value)
    return statistics.mean(statistics.mean(values) for values in cases.values())


def add_families(figures: Figures, results: Sequence[Result]) -> None:
    """Leave one family out, where the known devices are alike: the mean must not fall behind the prior as before."""
    for space in FILES:
        for choice in CHOICES:
            for count in COUNTS:
                chosen = [r for r in results if (r.task.space, r.choice, r.samples) == (space, choice, count)]
                means = {
                    rule: statistics.mean(r.score.spearman for r in chosen if r.rule == rule)
                    for rule in ("transfer", "before")
                }
                name = f"family_left_out_{space}_{choice}_{count}"
                figures.add(f"{name}_spearman", means["transfer"])
                figures.add(f"{name}_spearman_gain", means["transfer"] - means["before"], ">= -0.002")
                covered = [r.score.coverage_percent for r in chosen if r.rule == "transfer"]
                figures.add(f"{name}_coverage_percent_least", min(covered))
                figures.add(f"{name}_coverage_percent_most", max(covered))


def add_time(figures: Figures) -> None:
    """CPU time of a measurement at F = 199 and 50 samples: update, settling and mixture."""
    data = read_latency_data(DATA / FILES["fbnet"] / "measured_latency_ms.npz")
    rng = np.random.default_rng(0)
    prior = learn_prior(data.devices(rng.permutation(len(data.features))[:1000], without="samsung_s7"), data.groups)
    rows = rng.permutation(len(data.features))[:60]
    x, y = data.features[rows], data.latency_ms["samsung_s7"][rows]
    predictor = BayesianPredictor(prior)
    predictor.update(x[:45], y[:45])
    times = []
    for row in range(45, 56):
        start = time.process_time()
        predictor.update(x[row], y[row])
        predictor.predict(x[:1])
        times.append(1000.0 * (time.process_time() - start))
    figures.add("update_settle_mixture_ms", statistics.median(times), "<= 10")


def main() -> int:
    """Run everything on at most two processes."""
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=20)
    arguments.add_argument("--seeds", type=int, default=2, help="seeds of the split and the draws")
    arguments.add_argument("--settings", default="", help="names, with commas; empty: all")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--kinds-only", action="store_true", help="leave the leave-one-family-out figures out")
    options = arguments.parse_args()
    settings = [name for name in options.settings.split(",") if name]
    tasks = [task for task in tasks_of(settings, options.draws, options.seeds) if task.source or not options.kinds_only]
    figures = Figures()
    add_time(figures)
    results: list[Result] = []
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for done, found in enumerate(pool.imap(run_task, tasks), 1):
            results += found
            print(f"{done}/{len(tasks)} {found[0].task}", file=sys.stderr)
    for seed in range(options.seeds):
        add_kinds(figures, [result for result in results if result.task.source], seed)
    if not options.kinds_only:
        add_families(figures, [result for result in results if not result.task.source])
    if not options.json:
        for result in results:
            if result.rule == "transfer":
                medians = result.score
                print(
                    f"{result.task.source or 'families':<9}{result.task.setting:<16} seed {result.task.seed} "
                    f"{result.choice:<7}{result.samples:>3} {medians.spearman:.3f} {medians.coverage_percent:.0f} %"
                )
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
