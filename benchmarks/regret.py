"""What predicted latencies cost: accuracy lost against a search that knows every latency of a device.

The design space is a table: 5,000 OFA-MobileNetV3 subnets that were measured on nine GPU settings
(`ofa_mbv3/measured_latency_ms.npz` under `FLEETNAS_DATA`), with OFA's accuracy predictor. The search is the product's
ask and tell of one device setting, whose solver takes the best subnet of the table. The device answers with the latency
that was measured there, times a noise of 1 %. Targets are those of `auto:N` for the true range, so that every method
gets the same ones; budgets are 10 measurements that cover the table and 2 or 4 per target. The prior is learned from
the two other families of GPUs, or from none.

The oracle takes the most accurate subnet that is truly within each target. *Lost* is its accuracy less the winner's, in
points of top-1. Beside ours, four predictors drive a plain search with as many measurements (`plain_search`): a fit to
the latencies of all other 4,999 subnets, the Note10's block table rescaled, a line in MACs, and the fine-tuned network
of arXiv 2101.00732. A winner that passed its re-measurement by luck, and is truly beyond its target, counts as the most
accurate subnet that its search measured and that is truly within it. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rigs.simulated_fleet import measurement

from fleetnas.coordinator.predictors.evaluation.baselines import MacsLine, RescaledTable
from fleetnas.coordinator.predictors.evaluation.dataset import LatencyData, read_latency_data
from fleetnas.coordinator.predictors.evaluation.fine_tuned import FineTunedNetwork
from fleetnas.coordinator.predictors.learned_prior import learn_prior
from fleetnas.coordinator.predictors.metrics import spearman
from fleetnas.coordinator.predictors.prior import Prior
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.block_table import read_block_table
from fleetnas.coordinator.search.problem import TabularAccuracy
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.target_solver import ListTargetSolver
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes
from fleetnas.supernet_export.spaces.registry import make_space

Floats = NDArray[np.float64]

DATA = Path(os.environ.get("FLEETNAS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
THROUGHPUT_BOUND = ("2080ti_64", "titan_xp_64", "v100_64")
TARGETS, PER_TARGET, DESIGN = (4, 10), (2, 4), 10
PRIORS = ("learned", "none")
#: Relative standard deviation of a measurement, and the 95 % half-width of its median that goes with the result.
NOISE, HALF_WIDTH_PERCENT = 0.01, 0.5
#: Resolutions that the accuracy predictor tells apart, and those of the known devices' subnets that priors learn from.
_STEP, _FIRST = 16, 112
_KNOWN_ROWS = 1000
#: A subnet within this of the best accuracy is as good (a fraction), and the room that the last target leaves above.
_SAME_ACCURACY, _ROOM_ABOVE = 0.001, 1.08
#: Re-measurements of one target, as the product has it.
_VERIFICATIONS = 6


@dataclass(frozen=True)
class Table:
    """The subnets that there are: latencies in ms, accuracies as fractions, each (n,)."""

    data: LatencyData
    space: DesignSpace
    genomes: Genomes
    top1: Floats
    foreign_ms: Floats
    """By the Note10's block table."""

    def row(self, genome: Sequence[int]) -> int:
        """Place of a subnet."""
        return _rows()[np.asarray(genome, dtype=np.int16).tobytes()]

    def targets_ms(self, setting: str, count: int) -> tuple[float, ...]:
        """Targets as `auto:N` places them, where the range is known exactly."""
        true_ms = self.data.latency_ms[setting]
        useful_ms = float(true_ms[self.top1 >= self.top1.max() - _SAME_ACCURACY].min())
        slowest_ms = min(float(true_ms.max()), _ROOM_ABOVE * useful_ms)
        return TargetRequest(automatic=count).resolve(float(true_ms.min()), slowest_ms).targets_ms

    def oracle(self, setting: str, target_ms: float) -> float:
        """Accuracy of the best subnet that is truly within a target."""
        return float(self.top1[self.data.latency_ms[setting] <= target_ms].max())


@cache
def table() -> Table:
    """Read the data, each subnet once."""
    found = read_latency_data(DATA / "ofa_mbv3" / "measured_latency_ms.npz")
    assert found.space is not None
    assert found.genomes is not None
    assert found.macs is not None
    _, kept = np.unique(found.genomes, axis=0, return_index=True)
    kept.sort()
    data = LatencyData(
        found.features[kept],
        found.groups,
        {name: latency[kept] for name, latency in found.latency_ms.items()},
        found.families,
        found.macs[kept],
        found.space,
        found.genomes[kept],
    )
    genomes = found.genomes[kept]
    architectures = found.space.decode(genomes)
    # The predictor knows resolutions in steps of 16 pixels, and takes others for the step below.
    known = make_space("ofa-mbv3", {"resolutions": [_FIRST + _STEP * step for step in range(8)]})
    stepped = known.encode(
        [a.model_copy(update={"r": _FIRST + (a.r - _FIRST) // _STEP * _STEP}) for a in architectures]
    )
    predictor = AccuracyPredictor.from_pth(DATA / "ofa_mbv3" / "acc_predictor.pth")
    top1 = np.asarray(predictor.predict(known.one_hot(stepped)), dtype=np.float64)
    folder = DATA / "ofa_mbv3" / "note10_lut"
    covered = np.array(sorted(int(file.name.split("_")[0]) for file in folder.glob("*_lookup_table.yaml")))
    # The published tables are of the network of width 1.2; the blocks' positions are the same. A resolution without a
    # table takes the nearest one's, in proportion to the pixels.
    wide = make_space("ofa-mbv3", {"width": 1.2, "resolutions": covered.tolist()})
    resolutions = np.array([a.r for a in architectures])
    nearest = covered[np.abs(resolutions[:, None] - covered).argmin(axis=1)]
    moved = [a.model_copy(update={"r": int(r)}) for a, r in zip(architectures, nearest, strict=True)]
    foreign_ms = read_block_table(folder, wide).predict(wide.encode(moved)) * (resolutions / nearest) ** 2
    return Table(data, found.space, genomes, top1, foreign_ms)


@cache
def _rows() -> dict[bytes, int]:
    return {genome.tobytes(): row for row, genome in enumerate(table().genomes)}


class Device:
    """One device setting: answers with its measured latency times a noise that depends on what was measured before."""

    def __init__(self, setting: str, seed: int) -> None:
        self.true_ms, self._seed = table().data.latency_ms[setting], seed
        self.measured: dict[int, list[float]] = {}

    def measure(self, row: int) -> float:
        """Measure a subnet once more, ms. The n-th measurement of a subnet is the same for every method."""
        runs = self.measured.setdefault(row, [])
        noise = np.random.default_rng([self._seed, row, len(runs)]).normal(0.0, NOISE)
        runs.append(float(self.true_ms[row] * np.exp(noise)))
        return runs[-1]

    @property
    def measurements(self) -> int:
        """Number of measurements so far."""
        return sum(map(len, self.measured.values()))


@dataclass(frozen=True)
class Row:
    """One method on one device setting, with one number of targets and one budget."""

    setting: str
    method: str
    targets: int
    per_target: int
    lost: tuple[float, ...]
    """Per target, points of top-1."""
    truly_within: tuple[bool, ...]
    """Per target, whether the winner is truly within it; False where there is none."""
    slack: tuple[float, ...]
    """Per target, how far the winner is truly below it, relative."""
    measurements: int
    slowest_ask_s: float = 0.0
    """Processor time."""


def ended(
    setting: str, method: str, per_target: int, device: Device, winners: dict[float, int | None], ask_s: float = 0.0
) -> Row:
    """Compare the winners, rows of the table, with the oracle."""
    known, true_ms = table(), device.true_ms
    lost, within, slack = [], [], []
    for target_ms, winner in winners.items():
        within.append(winner is not None and bool(true_ms[winner] <= target_ms))
        seen = [row for row in device.measured if true_ms[row] <= target_ms]
        if not within[-1]:
            winner = max(seen, key=lambda row: known.top1[row], default=None)
        worst = float(known.top1[true_ms <= target_ms].min())
        accuracy = worst if winner is None else float(known.top1[winner])
        lost.append(100.0 * (known.oracle(setting, target_ms) - accuracy))
        slack.append(1.0 if winner is None else 1.0 - float(true_ms[winner]) / target_ms)
    return Row(
        setting,
        method,
        len(winners),
        per_target,
        tuple(lost),
        tuple(within),
        tuple(slack),
        device.measurements,
        ask_s,
    )


# -- ours ------------------------------------------------------------------------------------------------------


@cache
def learned(family: str) -> Prior:
    """The prior of all settings of other families."""
    data = table().data
    rows = np.sort(np.random.default_rng(0).permutation(len(data.features))[:_KNOWN_ROWS])
    return learn_prior(data.devices(rows, without=family), data.groups)


@cache
def design(family: str, seed: int) -> InitialDesign:
    """The initial design of a family left out; of none, with the default prior."""
    known = table()
    prior = learned(family) if family else None
    return InitialDesign(known.space, count=DESIGN, seed=seed, prior=prior, candidates=known.genomes)


@cache
def solver() -> tuple[TabularAccuracy, ListTargetSolver]:
    """Accuracy of the table's subnets, and the choice among them."""
    known = table()
    accuracy = TabularAccuracy(known.genomes, known.top1)
    return accuracy, ListTargetSolver(known.space, accuracy, known.genomes)


def campaign(setting: str, prior: str, targets: int, per_target: int, seed: int) -> Row:
    """Run the product's search to its end."""
    known, device = table(), Device(setting, seed)
    accuracy, solve = solver()
    of = design(known.data.families[setting] if prior == "learned" else "", seed)
    targets_ms = known.targets_ms(setting, targets)
    tuner = DeviceTuner(
        of, accuracy, TargetRequest(fixed_ms=targets_ms), solve, budget=DESIGN + per_target * len(targets_ms)
    )
    slowest_s, clock_s = 0.0, 0.0
    while True:
        before_s = time.process_time()
        asked = tuner.ask(1)
        slowest_s = max(slowest_s, time.process_time() - before_s)
        if not asked:
            break
        (proposal,) = asked
        latency_ms = device.measure(known.row(proposal.genome))
        clock_s += 1.0
        half_width = {"half_width_percent": HALF_WIDTH_PERCENT, "undisturbed_half_width_percent": HALF_WIDTH_PERCENT}
        tuner.tell(proposal, measurement(latency_ms, finished_unix_s=clock_s, **half_width))
    winners = {
        state.target_ms: known.row(state.genome.tolist()) if state.met and state.genome is not None else None
        for state in tuner.targets
    }
    return ended(setting, f"ours_{prior}", per_target, device, winners, slowest_s)


# -- other predictors ------------------------------------------------------------------------------------------


class Predictor(Protocol):
    """Predicts all subnets of the table from some measured ones."""

    def __call__(self, rows: NDArray[np.intp], latency_ms: Floats) -> Floats:
        """Return ms, (n,), from measurements (k,) of rows (k,)."""


def others_fit(setting: str) -> Predictor:
    """Every subnet predicted by a fit to all the others' true latencies: what no search has.

    Least squares of relative errors, Student-t weights (4 degrees of freedom) as measurements have long tails.
    """
    data = table().data
    latency = data.latency_ms[setting]
    x = data.features / latency[:, None]
    scale = np.sqrt(np.mean(x**2, axis=0))
    x = x[:, scale > 0] / scale[scale > 0]
    weights = np.ones(len(x))
    for _ in range(10):
        system = (x * weights[:, None]).T @ x + 1e-6 * len(x) * np.eye(x.shape[1])
        error = 1.0 - x @ np.linalg.solve(system, x.T @ weights)
        deviation = 1.4826 * float(np.median(np.abs(error)))
        weights = 5.0 / (4.0 + (error / deviation) ** 2)
    system = (x * weights[:, None]).T @ x + 1e-6 * len(x) * np.eye(x.shape[1])
    leverage = weights * np.einsum("ij,ji->i", x, np.linalg.solve(system, x.T))
    error = (1.0 - x @ np.linalg.solve(system, x.T @ weights)) / (1.0 - leverage)
    predicted: Floats = latency * (1.0 - error)
    return lambda rows, latency_ms: predicted


def rescaled_table(setting: str) -> Predictor:
    """The Note10's block table times one factor."""
    del setting
    foreign = table().foreign_ms
    return lambda rows, latency_ms: RescaledTable(foreign[rows], latency_ms).predict(foreign)


def macs_line(setting: str) -> Predictor:
    """A straight line in MACs."""
    del setting
    macs = table().data.macs
    assert macs is not None
    return lambda rows, latency_ms: MacsLine(macs[rows], latency_ms).predict(macs)


@cache
def _base_network(base: str) -> FineTunedNetwork:
    data = table().data
    return FineTunedNetwork(data.features, data.latency_ms[base], np.random.default_rng(0))


def tuned_network(setting: str) -> Predictor:
    """A network of the device of another family that ranks the measured subnets best, fine-tuned on them."""
    data = table().data
    bases = [name for name in data.latency_ms if data.families[name] != data.families[setting]]

    def predict(rows: NDArray[np.intp], latency_ms: Floats) -> Floats:
        base = max(bases, key=lambda name: spearman(data.latency_ms[name][rows], latency_ms) or 0.0)
        network = copy.deepcopy(_base_network(base))
        network.fine_tune(data.features[rows], latency_ms, np.random.default_rng(len(rows)))
        return network.predict(data.features)

    return predict


METHODS: dict[str, Callable[[str], Predictor]] = {
    "all_others_fit": others_fit,
    "rescaled_note10": rescaled_table,
    "macs_line": macs_line,
    "fine_tuned_network": tuned_network,
}


def plain_search(setting: str, method: str, targets: int, per_target: int, seed: int) -> Row:
    """The same search with another predictor, which is fitted again after every round.

    The initial design is that without a prior. Then, as long as the budget lasts, each target's most accurate subnet by
    prediction, and by measurement where there is one, is measured; then each target's most accurate measured subnet is
    measured again, and where it misses the next one takes its place, up to six times, as in ours.
    """
    known, device = table(), Device(setting, seed)
    predictor = METHODS[method](setting)
    targets_ms = known.targets_ms(setting, targets)
    for genome in design("", seed).subnets:
        device.measure(known.row(genome.tolist()))
    left = per_target * len(targets_ms)
    while left:
        predicted = _with_measured(predictor, device)
        winners = (_best(predicted <= target_ms) for target_ms in targets_ms)
        new = dict.fromkeys(row for row in winners if row is not None and row not in device.measured)
        if not new:
            break
        for row in itertools.islice(new, left):
            device.measure(row)
            left -= 1
    found: dict[float, int | None] = {}
    for target_ms in targets_ms:
        found[target_ms] = None
        ruled_out: set[int] = set()
        for _ in range(_VERIFICATIONS):
            fits = {row for row, runs in device.measured.items() if statistics.mean(runs) <= target_ms} - ruled_out
            if not fits:
                break
            best = max(fits, key=lambda row: known.top1[row])
            if device.measure(best) <= target_ms:
                found[target_ms] = best
                break
            ruled_out.add(best)
    return ended(setting, method, per_target, device, found)


def _with_measured(predictor: Predictor, device: Device) -> Floats:
    rows = np.array(list(device.measured), dtype=np.intp)
    latency = np.array([statistics.mean(runs) for runs in device.measured.values()])
    predicted = predictor(rows, latency).copy()
    predicted[rows] = latency
    return predicted


def _best(within: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(np.where(within, table().top1, -np.inf))) if within.any() else None


# -- the whole comparison --------------------------------------------------------------------------------------


def run_setting(setting: str, seeds: Sequence[int], methods: Sequence[str]) -> list[Row]:
    """All searches of one device setting."""
    with single_threaded_blas():
        return list(_searches(setting, seeds, methods))


def _searches(setting: str, seeds: Sequence[int], methods: Sequence[str]) -> Iterator[Row]:
    for seed, targets, per_target in itertools.product(seeds, TARGETS, PER_TARGET):
        for prior in PRIORS:
            yield campaign(setting, prior, targets, per_target, seed)
        for method in methods:
            yield plain_search(setting, method, targets, per_target, seed)


def add_figures(figures: Figures, rows: Sequence[Row], methods: Sequence[str]) -> None:
    """Losses of every method, with the bars of ours."""
    ours = [f"ours_{prior}" for prior in PRIORS]
    for method in (*ours, *methods):
        chosen = [row for row in rows if row.method == method]
        bound = [row for row in chosen if row.setting in THROUGHPUT_BOUND]
        barred = method == "ours_learned"
        if bound:
            lost = [value for row in bound for value in row.lost]
            figures.add(f"{method}_throughput_bound_points_mean", statistics.mean(lost), "<= 0.05" if barred else "")
            figures.add(f"{method}_throughput_bound_points_worst", max(lost), "<= 0.2" if barred else "")
        lost = [value for row in chosen for value in row.lost]
        figures.add(f"{method}_points_mean", statistics.mean(lost), "<= 0.15" if barred else "")
        figures.add(f"{method}_points_worst", max(lost))
        within = [value for row in chosen for value in row.truly_within]
        figures.add(f"{method}_winners_truly_within_percent", 100.0 * statistics.mean(within))
        slack = [value for row in chosen for value in row.slack]
        figures.add(f"{method}_slack_percent_median", 100.0 * statistics.median(slack))
        figures.add(f"{method}_measurements_per_search", statistics.mean(row.measurements for row in chosen))
        for targets, per_target in itertools.product(TARGETS, PER_TARGET):
            part = [
                value for row in chosen if row.targets == targets and row.per_target == per_target for value in row.lost
            ]
            if part:
                figures.add(f"{method}_points_mean_{targets}_targets_{per_target}_each", statistics.mean(part))
    if "all_others_fit" in methods:
        means = [
            statistics.mean(value for row in rows if row.method == method for value in row.lost)
            for method in ("ours_learned", "all_others_fit")
        ]
        figures.add("ours_learned_worse_than_all_others_fit_points", means[0] - means[1], "<= 0.03")
    figures.add("slowest_ask_cpu_s", max(row.slowest_ask_s for row in rows))


def lines(rows: Sequence[Row]) -> list[str]:
    """Mean loss and mean number of measurements by setting and method."""
    found = []
    for setting, method in dict.fromkeys((row.setting, row.method) for row in rows):
        chosen = [row for row in rows if (row.setting, row.method) == (setting, method)]
        lost = [value for row in chosen for value in row.lost]
        count = statistics.mean(row.measurements for row in chosen)
        found.append(
            f"{setting:<12} {method:<20} lost {statistics.mean(lost):6.3f} points, at worst {max(lost):6.3f}, "
            f"slack {100 * statistics.median(v for row in chosen for v in row.slack):5.2f} %, {count:.1f} measurements"
        )
    return found


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--first-seed", type=int, default=0, help="of that many in a row")
    arguments.add_argument("--settings", default="", help="some of the nine, separated by commas")
    arguments.add_argument("--ours-only", action="store_true", help="leave the other predictors out")
    arguments.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    options = arguments.parse_args()
    began_s = time.monotonic()
    settings = options.settings.split(",") if options.settings else list(table().data.latency_ms)
    unknown = set(settings) - table().data.latency_ms.keys()
    if unknown:
        arguments.error(f"there is no setting {', '.join(sorted(unknown))}")
    methods = () if options.ours_only else tuple(METHODS)
    rows: list[Row] = []
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        running = [pool.submit(run_setting, setting, seeds, methods) for setting in settings]
        for done, finished in enumerate(as_completed(running), start=1):
            rows += finished.result()
            took_s = time.monotonic() - began_s
            print(f"{done} of {len(settings)} device settings after {took_s:.0f} s", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (settings.index(row.setting), row.method))
    print("\n".join(lines(rows)), file=sys.stderr if options.json else sys.stdout)
    figures = Figures()
    add_figures(figures, rows, methods)
    figures.add("benchmark_s", time.monotonic() - began_s)
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
