"""Latency predictors on this machine: settings that differ by runtime and threads, measured as the agent measures.

Two questions. Do ten measurements predict a setting as well as a complete block table measured on it, which costs
hundreds? And how well is a setting predicted before its first measurement, from the other settings and from
hardware parameters (threads and micro-benchmarks)? The supernet is `ofa-mbv3` with random weights at one resolution,
so that rankings cannot live off the resolution. Needs torch and the `ofa` package; a busy machine spoils it:
`load_average_before` says whether it was. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import Figures, parser
from fleet_search import export

from fleetnas.agent.measuring.micro_benchmarks import run_micro_benchmarks
from fleetnas.agent.runtimes.registry import make_runtime
from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import MeasuredDevice, fit_devices
from fleetnas.coordinator.predictors.evaluation.baselines import BlockTable, MacsLine, block_table_genomes
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.hardware_transfer import HardwareTransfer, Parameters, profile_parameters
from fleetnas.coordinator.predictors.metrics import spearman
from fleetnas.coordinator.predictors.prior import Floats, hierarchical_prior
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.base import Genomes

RESOLUTION = 192
SETTINGS = {
    "onnxruntime_1": RuntimeSetting(runtime="onnxruntime", threads=1),
    "onnxruntime_2": RuntimeSetting(runtime="onnxruntime", threads=2),
    "litert_1": RuntimeSetting(runtime="litert", threads=1),
    "litert_2": RuntimeSetting(runtime="litert", threads=2),
}
TABLED = "onnxruntime_1"
SAMPLES = 10
#: Relative standard deviation of one measurement, as the campaign takes it.
NOISE = 0.01
#: Quantile of a session's times that its latency is.
LOW_QUANTILE = 0.2


@dataclass(frozen=True)
class Machine:
    """This machine, as the agent's measuring child sees it."""

    bundle: SupernetBundle
    protocol: MeasurementProtocol
    sessions: int

    def measure(self, genomes: Genomes, names: Sequence[str]) -> dict[str, Floats]:
        """Latency of each subnet on each setting, ms, (n,).

        Every session loads the model anew, and settings and subnets take turns in random order, so that whatever
        disturbs the machine for a while disturbs no setting and no size of subnets more than another. A session counts
        by a low quantile of its times, because other processes only add time; a latency is the median over sessions.
        """
        rng = np.random.default_rng(3)
        runtimes = {name: make_runtime(SETTINGS[name].runtime) for name in names}
        architectures = self.bundle.space.decode(genomes)
        found = {name: np.zeros((self.sessions, len(genomes))) for name in names}
        for session in range(self.sessions):
            for number, place in enumerate(rng.permutation(len(genomes)).tolist()):
                if number % 20 == 0:
                    print(f"session {session + 1}: {number} of {len(genomes)} measured", file=sys.stderr)
                for name in rng.permutation(list(names)).tolist():
                    setting = SETTINGS[name]
                    model = build_model(self.bundle, architectures[place], None, setting)
                    loaded = runtimes[name].load(model, setting)
                    times_us = loaded.time(self.protocol).times_us
                    loaded.close()
                    found[name][session, place] = np.quantile(times_us, LOW_QUANTILE) / 1000.0
        return {name: np.median(latency, axis=0) for name, latency in found.items()}

    def parameters(self, name: str) -> Parameters:
        """Hardware parameters of one setting."""
        setting = SETTINGS[name]
        benches, _ = run_micro_benchmarks(make_runtime(setting.runtime), setting)
        profile = DeviceProfile(model=name, machine="x86_64", cores=os.cpu_count() or 1, micro_benchmarks=benches)
        return profile_parameters(profile, setting)


def mape_percent(predicted: Floats, measured: Floats) -> float:
    """Mean absolute error, relative to what was measured."""
    return 100.0 * float(np.mean(np.abs(predicted / measured - 1.0)))


def against_block_table(figures: Figures, machine: Machine, held_out: Genomes, measured: Floats) -> None:
    """Ten measurements of the predictor's own choice against a complete block table, on held-out subnets."""
    space, rng = machine.bundle.space, np.random.default_rng(2)
    features = FeatureMap(space)
    plan = block_table_genomes(space, space.largest())
    table = BlockTable(space, plan, machine.measure(plan, [TABLED])[TABLED])
    pool = space.sample(2000, rng)
    predictor = BayesianPredictor(hierarchical_prior(features.features(pool[:500]), features.groups))
    ends = np.concatenate([space.smallest(), space.largest()])
    chosen = predictor.suggest(features.features(pool), SAMPLES - len(ends), rng)
    asked = np.concatenate([ends, pool[chosen]])
    latency = machine.measure(asked, [TABLED])[TABLED]
    predictor.update(features.features(asked), latency, NOISE * latency)
    line = MacsLine(space.macs(asked), latency)
    ours, _ = predictor.predict(features.features(held_out))
    tabled = table.predict(held_out)
    ours_percent, tabled_percent = mape_percent(ours, measured), mape_percent(tabled, measured)
    figures.add("block_table_measurements", len(plan))
    figures.add("block_table_mape_percent", tabled_percent)
    figures.add("ten_samples_mape_percent", ours_percent)
    figures.add("macs_line_mape_percent", mape_percent(line.predict(space.macs(held_out)), measured))
    figures.add("block_table_spearman", spearman(tabled, measured) or 0.0)
    figures.add("ten_samples_spearman", spearman(ours, measured) or 0.0)
    figures.add("error_over_block_tables", ours_percent / tabled_percent, "<= 1")


def before_the_first_measurement(
    figures: Figures, machine: Machine, known: Genomes, held_out: Genomes, latency: dict[str, Floats]
) -> None:
    """Each setting predicted from the others and hardware parameters alone; `latency` of known and held-out subnets.

    The yardstick is ten measurements of the setting itself, chosen by the predictor among the known subnets, without
    what the other settings know: what a user would have to measure instead.
    """
    features = FeatureMap(machine.bundle.space)
    x = features.features(known)
    parameters = {name: machine.parameters(name) for name in SETTINGS}
    test = features.features(held_out)
    fits = fit_devices(
        [MeasuredDevice(name, name, x, ms[: len(known)]) for name, ms in latency.items()], features.groups
    )
    default = hierarchical_prior(x, features.groups)
    zero, ten = [], []
    for place, name in enumerate(SETTINGS):
        measured = latency[name][len(known) :]
        transfer = HardwareTransfer(fits.subset([other for other in range(len(fits)) if other != place]), parameters)
        informed = BayesianPredictor(transfer.prior(parameters[name]))
        predicted, _ = informed.predict(test)
        zero.append(spearman(predicted, measured) or 0.0)
        figures.add(f"{name}_zero_measurements_spearman", zero[-1])
        average, _ = BayesianPredictor(transfer.average).predict(test)
        figures.add(f"{name}_average_of_others_spearman", spearman(average, measured) or 0.0)
        figures.add(f"{name}_zero_measurements_mape_percent", mape_percent(predicted, measured))
        own = BayesianPredictor(default)
        chosen = own.suggest(x, SAMPLES, np.random.default_rng(2))
        for predictor in (own, informed):
            predictor.update(x[chosen], latency[name][chosen], NOISE * latency[name][chosen])
        ten.append(spearman(own.predict(test)[0], measured) or 0.0)
        figures.add(f"{name}_ten_samples_spearman", ten[-1])
        figures.add(f"{name}_ten_samples_and_others_spearman", spearman(informed.predict(test)[0], measured) or 0.0)
    figures.add("zero_measurements_spearman_mean", statistics.mean(zero))
    figures.add("ten_samples_spearman_mean", statistics.mean(ten))
    figures.add("zero_measurements_over_ten_samples", statistics.mean(zero) / statistics.mean(ten), ">= 0.95")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--known", type=int, default=40, help="subnets measured on every setting")
    arguments.add_argument("--held-out", type=int, default=60, help="subnets that errors are taken on")
    arguments.add_argument("--sessions", type=int, default=3, help="fresh sessions that a latency is the median of")
    arguments.add_argument("--min-time", type=float, default=0.1, help="seconds timed per session, at least")
    options = arguments.parse_args()
    protocol = MeasurementProtocol(
        warmup_runs=3, warmup_s=0.05, min_runs=15, min_s=options.min_time, max_s=4.0, half_width_percent=3.0
    )
    figures = Figures()
    figures.add("load_average_before", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as temporary:
        bundle = SupernetBundle.open(export(Path(temporary), (RESOLUTION,)))
        machine = Machine(bundle, protocol, options.sessions)
        rng = np.random.default_rng(1)
        genomes = np.unique(bundle.space.sample(2 * (options.known + options.held_out), rng), axis=0)
        genomes = rng.permutation(genomes)[: options.known + options.held_out]
        known, held_out = genomes[: options.known], genomes[options.known :]
        latency = machine.measure(genomes, list(SETTINGS))
        before_the_first_measurement(figures, machine, known, held_out, latency)
        against_block_table(figures, machine, held_out, latency[TABLED][len(known) :])
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
