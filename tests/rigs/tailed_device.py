"""A simulated device whose run times have tails, and which draws power: its true percentiles and energies are known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.task_protocol import task_protocol
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Measurement, MeasurementProtocol
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.percentiles import percentile_times
from rigs.simulated_fleet import SPACE, HiddenDevice, file_sha256, measurement

Floats = NDArray[np.float64]

DEADLINE_S = 180.0
#: Run times of which a truth is taken.
_MANY = 200_000


class TailedDevice(HiddenDevice):
    """Run times are lognormal around the median; some are stalled, by a fixed time and by a share of the latency."""

    def __init__(
        self,
        seed: int,
        *,
        stalled: float = 0.04,
        stall_ms: float = 0.2,
        share: float = 0.25,
        spread: float = 0.03,
        reports: bool = True,
        power_mw: tuple[float, float] | None = (1500.0, 40.0),
    ) -> None:
        """`reports` False: as agents of minor version 1. `power_mw`: at rest, and what a millisecond adds."""
        super().__init__(seed, noise=0.003)
        self._stalled, self._stall_ms, self._share, self._spread = stalled, stall_ms, share, spread
        self._reports, self._power_mw = reports, power_mw
        self.power_mw = power_mw or (0.0, 0.0)
        self._draws = np.random.default_rng([seed, 77])

    def run_times_ms(self, architecture: Architecture, count: int, rng: np.random.Generator) -> Floats:
        """Draw run times of single inferences, ms, (count,); half of them are at most the latency."""
        latency_ms = self.latency_ms(architecture)
        times = latency_ms * np.exp(rng.normal(0.0, self._spread, count))
        late = rng.random(count) < self._stalled
        times[late] += self._stall_ms * rng.exponential(1.0, late.sum()) + self._share * latency_ms
        return times

    def true_percentile_ms(self, architecture: Architecture, percentile: float) -> float:
        return float(np.percentile(self.run_times_ms(architecture, _MANY, np.random.default_rng(5)), percentile))

    def true_mean_ms(self, architecture: Architecture) -> float:
        return float(self.run_times_ms(architecture, _MANY, np.random.default_rng(5)).mean())

    def true_energy_mj(self, architecture: Architecture) -> float:
        assert self._power_mw is not None
        latency_ms = self.latency_ms(architecture)
        rest, more = self._power_mw
        return (rest + more * latency_ms) * latency_ms / 1000.0

    def true_share(self, target: Target | None, target_ms: float, architecture: Architecture) -> float:
        """The true latency or other cost of a subnet as a share of what a target allows."""
        if target is None:
            return self.latency_ms(architecture) / target_ms
        if target.kind is TargetKind.PERCENTILE:
            return self.true_percentile_ms(architecture, target.percentile) / target.value
        if target.kind is TargetKind.RATE:
            return self.true_mean_ms(architecture) * target.value / 1000.0
        return self.true_energy_mj(architecture) / target.value

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        return self.measured(
            task.architecture, task.protocol, file_sha256(task.architecture, task.calibration), finished_unix_s
        )

    def measured(
        self, architecture: Architecture, protocol: MeasurementProtocol, sha256: str, finished_unix_s: float = 1.0
    ) -> Measurement:
        runs = max(protocol.min_runs, 8)
        times = self.run_times_ms(architecture, runs, self._draws)
        median_ms = float(np.median(times))
        energy = None
        if self._power_mw is not None:
            energy = self.true_energy_mj(architecture) * math.exp(self._draws.normal(0.0, 0.01))
        told = {"mean_ms": float(times.mean()), "percentiles": percentile_times(times.tolist(), protocol.percentiles)}
        return measurement(
            median_ms,
            sha256,
            finished_unix_s,
            runs=runs,
            times_us=tuple(1000.0 * times[:20]),
            energy_mj=energy,
            **(told if self._reports else {}),
        )

    def answer(self, proposal: Proposal) -> Measurement:
        """Measure a proposal as a campaign's task would be measured."""
        record = TaskRecord(
            "t.1",
            "run",
            "pi",
            "any",
            proposal.purpose,
            proposal.architecture,
            proposal.target_ms,
            proposal.predicted_ms,
            target=proposal.target,
            asked_percentiles=proposal.percentiles or None,
        )
        protocol = task_protocol(MeasurementProtocol(), record, DEADLINE_S)
        return self.measured(proposal.architecture, protocol, file_sha256(proposal.architecture, None))


def targets_of_kinds(device: TailedDevice) -> list[str]:
    """Targets of every kind that a device's subnets of medium size can meet."""
    smallest, largest = SPACE.decode(np.concatenate([SPACE.smallest(), SPACE.largest()]))
    middle_ms = device.latency_ms(smallest) ** 0.7 * device.latency_ms(largest) ** 0.3
    rest, more = device.power_mw
    energy = (rest + more * middle_ms) * middle_ms / 1000.0
    return [
        f"{middle_ms:.4g}",
        f"p95:{1.4 * middle_ms:.4g}",
        f"p99:{1.8 * middle_ms:.4g}",
        f"fps:{1000.0 / middle_ms:.4g}",
        f"energy:{energy:.4g}mJ",
        "accuracy:90",
    ]
