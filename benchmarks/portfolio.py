"""Few subnets for many devices: against the exact optimum, and against simpler rules.

The public latencies of OFA's and FBNet's spaces (`ofa_mbv3/`, `fbnet/` under `FLEETNAS_DATA`) are the device settings,
and the 5,000 measured architectures of each are the space: what a device takes is known. OFA's predictor gives
accuracies; of FBNet's space no accuracies are public, so a proxy that grows with the operations stands in for them.
Fifty simulated devices with four targets each choose among the candidates of a fleet's search in `ofa-mbv3`.

Greedy choice with swaps is compared with integer programming wherever that ends in `--exact-seconds`, and with three
rules: one model for all; devices clustered by their latencies, a model per cluster and place among its targets; the
winners of randomly drawn targets.

Targets for percentiles: the interval of a percentile is taken of the run times of 1,000 distributions whose percentiles
are known, and simulated devices with tails search for targets of every kind, whose winners' truths are known as well.
Last come equal boards that are searched as one device (`equal_boards.py`).
The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from equal_boards import add_slow, add_times
from figures import Figures, parser
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.evaluation.dataset import read_latency_data
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.search.exact_portfolio import exact_portfolio
from fleetnas.coordinator.search.portfolio import Demands, choose_portfolio, portfolio_curve
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.tuning.shared_archive import Archive
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from rigs.synthetic_times import coverage_of
from rigs.tailed_device import TailedDevice, targets_of_kinds
from rigs.tuners import make, run

Floats = NDArray[np.float64]

PARTS = ("ofa", "fbnet", "simulated", "percentiles", "kinds", "boards")
#: Distributions of which percentiles are known, and simulated devices with tails.
DISTRIBUTIONS, DEVICES = 1000, 40
DATA = Path(os.environ.get("FLEETNAS_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
#: Resolutions that OFA's accuracy predictor knows.
RESOLUTIONS = list(range(112, 225, 16))
#: Multiply-accumulates of FBNet's operations, relative: expansion times kernel and pointwise work, halved by groups.
FBNET_WORK = {"k3_e1": 1.1, "k3_e1_g2": 0.6, "k3_e3": 3.2, "k3_e6": 6.3, "k5_e1": 1.3, "k5_e1_g2": 0.8, "k5_e3": 3.5}
FBNET_WORK |= {"k5_e6": 6.9, "skip": 0.0}
SIZES = (1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class Fleet:
    """Candidates, devices and their targets."""

    name: str
    accuracy: Floats  #: (n,)
    latency_ms: Floats  #: (n, devices)
    targets_ms: Floats  #: (devices, T), ascending

    @property
    def demands(self) -> Demands:
        """Every target of every device, device by device."""
        meets = self.latency_ms[:, :, None] <= self.targets_ms[None]
        return Demands(self.accuracy, meets.reshape(len(self.accuracy), -1))


def targets_of(latency_ms: Floats, count: int) -> Floats:
    """Return targets from the fastest 2 % of the subnets to the slowest 10 %, (devices, count)."""
    low, high = np.quantile(latency_ms, [0.02, 0.9], axis=0)
    return np.geomspace(low, high, count, axis=1)


def accuracy_model(space: DesignSpace) -> PredictedAccuracy:
    return PredictedAccuracy(space, AccuracyPredictor.from_pth(DATA / "ofa_mbv3" / "acc_predictor.pth"))


def ofa_fleet(targets: int) -> Fleet:
    data = read_latency_data(DATA / "ofa_mbv3" / "measured_latency_ms.npz")
    assert data.space is not None
    assert data.genomes is not None
    space = make_space("ofa-mbv3", {"resolutions": RESOLUTIONS})
    nearest = [min(RESOLUTIONS, key=lambda known: abs(known - a.r)) for a in data.space.decode(data.genomes)]
    known = [
        architecture.model_copy(update={"r": r})
        for architecture, r in zip(data.space.decode(data.genomes), nearest, strict=True)
    ]
    accuracy = np.asarray(accuracy_model(space).predict(space.encode(known)), dtype=np.float64)
    latency = np.stack(list(data.latency_ms.values()), axis=1)
    return Fleet("ofa", accuracy, latency, targets_of(latency, targets))


def fbnet_fleet(targets: int) -> Fleet:
    with np.load(DATA / "fbnet" / "measured_latency_ms.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = json.loads((DATA / "fbnet" / "ops.json").read_text())
    work = np.array([FBNET_WORK[names[str(index)]] for index in range(len(names))])[arrays["ops"]].sum(axis=1)
    latency = np.stack([value for name, value in arrays.items() if name.startswith("latency_")], axis=1)
    # Of the shape of accuracy over operations: ten points between the lightest and the heaviest, ever flatter.
    place = (work - work.min()) / np.ptp(work)
    accuracy = 0.66 + 0.1 * place**0.5
    return Fleet("fbnet", accuracy, latency.astype(np.float64), targets_of(latency.astype(np.float64), targets))


def simulated_fleet(devices: int, targets: int, seed: int = 0) -> Fleet:
    """Devices that differ in the weight of every kind of cost, less of every block, and the candidates of a search."""
    space = make_space("ofa-mbv3", {"resolutions": RESOLUTIONS})
    model = accuracy_model(space)
    genomes = Archive(space, model, Bounds()).genomes
    features = FeatureMap(space)
    typical = features.features(space.sample(300, np.random.default_rng(1))).mean(axis=0)
    rng = np.random.default_rng([seed, 7])
    kinds = rng.lognormal(0.0, 1.0, (devices, int(features.groups.max()) + 1))
    weights = kinds[:, features.groups] * rng.uniform(0.5, 1.5, (devices, len(features))) / np.maximum(typical, 1e-9)
    weights[:, typical <= 0] = 0.0
    latency = features.features(genomes) @ weights.T
    low = latency.min(axis=0)
    wanted = np.geomspace(1.1 * low, latency.max(axis=0), targets + 1, axis=1)[:, :-1]
    return Fleet("simulated", np.asarray(model.predict(genomes), dtype=np.float64), latency, wanted)


# -- simpler rules -----------------------------------------------------------------------------------------------------


def one_for_all(fleet: Fleet) -> list[int]:
    demands = fleet.demands
    return [int(demands.worth.sum(axis=1).argmax())]


def clustered(fleet: Fleet, models: int, rng: np.random.Generator) -> list[int]:
    """Cluster devices by their latencies relative to their mean; of each cluster, one model per target place."""
    devices, places = fleet.targets_ms.shape
    clusters = max(1, min(devices, models // places))
    profile = np.log(fleet.latency_ms.T)
    profile -= profile.mean(axis=1, keepdims=True)
    centres = profile[rng.choice(devices, clusters, replace=False)]
    for _ in range(50):
        mine = np.linalg.norm(profile[:, None] - centres[None], axis=2).argmin(axis=1)
        centres = np.stack(
            [profile[mine == c].mean(axis=0) if (mine == c).any() else centres[c] for c in range(clusters)]
        )
    chosen: list[int] = []
    for cluster in range(clusters):
        members = np.flatnonzero(mine == cluster)
        for place in range(places if len(members) else 0):
            within = (fleet.latency_ms[:, members] <= fleet.targets_ms[members, place]).all(axis=1)
            if within.any():
                chosen.append(int(np.where(within, fleet.accuracy, -1.0).argmax()))
    return list(dict.fromkeys(chosen))[:models]


def random_winners(fleet: Fleet, models: int, rng: np.random.Generator) -> list[int]:
    """Return the winners of randomly drawn device targets."""
    demands = fleet.demands
    drawn = rng.permutation(np.flatnonzero(demands.can_be_served))[:models]
    return [int(np.where(demands.meets[:, demand], fleet.accuracy, -1.0).argmax()) for demand in drawn]


def best_simple_value(fleet: Fleet, models: int, draws: int) -> float:
    rng = np.random.default_rng(models)
    tried: list[Sequence[int]] = [one_for_all(fleet), *(clustered(fleet, models, rng) for _ in range(5))]
    tried += [random_winners(fleet, models, rng) for _ in range(draws)]
    return max(fleet.demands.value(chosen) for chosen in tried if chosen)


# -- figures -----------------------------------------------------------------------------------------------------------


def add_fleet(figures: Figures, fleet: Fleet, exact_s: float) -> None:
    demands = fleet.demands
    name = f"{fleet.name}_{fleet.targets_ms.shape[0]}x{fleet.targets_ms.shape[1]}"
    begin = time.perf_counter()
    chosen = choose_portfolio(demands, 8)
    seconds = time.perf_counter() - begin
    figures.add(f"{name}_choose_8_s", seconds, "<= 10")
    curve = portfolio_curve(demands, demands.meets.shape[1])
    all_models = curve[-1].mean_accuracy
    figures.add(f"{name}_models_in_all", len(curve))
    figures.add(f"{name}_loss_of_8_points", 100 * (all_models - chosen.mean_accuracy), "<= 0.5")
    gaps, behind, proved = [], [], 0
    for size in SIZES:
        if size > len(curve):
            break
        print(f"{name}: {size} models", file=sys.stderr)
        point = curve[size - 1]
        figures.add(f"{name}_loss_of_{size}_models_points", 100 * (all_models - point.mean_accuracy))
        figures.add(f"{name}_greatest_loss_of_{size}_models_points", 100 * point.greatest_loss)
        exact = exact_portfolio(demands, size, time_limit_s=exact_s)
        if exact.proved and exact.portfolio is not None:
            proved += 1
            gaps.append(100 * (exact.portfolio.mean_accuracy - point.mean_accuracy))
        behind.append(demands.value(point.chosen) - best_simple_value(fleet, size, draws=200))
    figures.add(f"{name}_proved_sizes", proved)
    figures.add(f"{name}_greatest_gap_to_optimum_points", max(gaps, default=0.0), "<= 0.1")
    figures.add(f"{name}_least_advantage_over_simple_rules", min(behind), ">= -1e-9")


def add_percentiles(figures: Figures) -> None:
    """Add how often intervals cover the truth, one per distribution, and how often one is wholly below it."""
    for percentile in (50.0, 90.0, 95.0, 99.0, 99.9):
        found = coverage_of(percentile, DISTRIBUTIONS)
        name = f"p{percentile:g}"
        figures.add(f"{name}_covered_percent", found.covered, ">= 93")
        figures.add(f"{name}_covered_percent_at_most", found.covered, "<= 97")
        figures.add(f"{name}_above_interval_percent", found.above)


def add_kinds(figures: Figures) -> None:
    """Add how the winners of simulated devices keep targets of every kind, by the truth."""
    met: dict[str, list[bool]] = {}
    kept: dict[str, list[bool]] = {}
    filled: dict[str, list[float]] = {}
    for seed in range(DEVICES):
        device = TailedDevice(seed, stalled=(0.02, 0.04, 0.08)[seed % 3])
        tuner = make(",".join(targets_of_kinds(device)), budget=20, seed=seed)
        run(tuner, device.answer)
        for state in tuner.targets:
            kind = "latency" if state.target is None else str(state.target.kind)
            met.setdefault(kind, []).append(state.met is True)
            if state.met and state.architecture is not None and kind != "accuracy":
                share = device.true_share(state.target, state.target_ms, state.architecture)
                kept.setdefault(kind, []).append(share <= 1.0)
                filled.setdefault(kind, []).append(share)
    for kind, found in met.items():
        figures.add(f"{kind}_targets_met_percent", 100.0 * float(np.mean(found)), ">= 95")
    for kind, truths in kept.items():
        figures.add(f"{kind}_winners_truly_within_percent", 100.0 * float(np.mean(truths)), ">= 95")
        figures.add(f"{kind}_target_used_mean_percent", 100.0 * float(np.mean(filled[kind])))


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--exact-seconds", type=float, default=60.0, help="limit of each integer program")
    arguments.add_argument("--only", choices=PARTS, action="append")
    arguments.add_argument("--seeds", type=int, default=50, help="classes of equal boards with a slow one")
    given = arguments.parse_args()
    figures = Figures()
    only = given.only or PARTS
    if "ofa" in only:
        add_fleet(figures, ofa_fleet(4), given.exact_seconds)
    if "fbnet" in only:
        add_fleet(figures, fbnet_fleet(4), given.exact_seconds)
    if "simulated" in only:
        add_fleet(figures, simulated_fleet(50, 4), given.exact_seconds)
    if "percentiles" in only:
        add_percentiles(figures)
    if "kinds" in only:
        add_kinds(figures)
    if "boards" in only:
        space = make_space("ofa-mbv3", {"resolutions": RESOLUTIONS})
        add_times(figures, space, accuracy_model(space), max(1, given.seeds // 10))
        add_slow(figures, space, accuracy_model(space), given.seeds)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    raise SystemExit(main())
