"""Typical speed of a device setting, and the latencies and bounds of its subnets, derived from all measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.tuning.session_noise import between_sessions, noise_of
from fleetnas.coordinator.tuning.subnet_observations import Run, SubnetObservations
from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed, median

Floats = NDArray[np.float64]

#: A latency as it ran bounds the typical one where the device was slower than typically by more than this.
_CLEARLY_SLOWER = 1.05
#: A lasting speed is another one where it differs by more than this factor.
_ANOTHER_SPEED = 1.05
#: Measurements of the present regime from which its typical speed is taken; of fewer, all measurements count.
_LEAST_OF_REGIME = 3
#: A run stands for at most this many times the usual time between two runs, and at least for that part of it: so much
#: longer may a fine measurement take than a coarse one.
_MOST_UNUSUAL = 10.0
#: Subnets of known speed from which on the others' latencies as they ran are only bounds.
_LEAST_KNOWN = 3


class DerivedLatencies:
    """Values derived from all measurements of a device setting together, computed once."""

    def __init__(
        self,
        subnets: Iterable[SubnetObservations],
        regime_unix_s: float,
        undisturbed_ms: Callable[[Run], float | None],
    ) -> None:
        """`subnets` come in the order of their genomes; `regime_unix_s` is the start of the present lasting speed.

        `undisturbed_ms` restates a run's latency at undisturbed speed.
        """
        #: Measured subnets in the order of their genomes, and the place of each genome among them.
        self.subnets = [subnet for subnet in subnets if subnet.runs]
        self.places = {subnet.genome.tobytes(): place for place, subnet in enumerate(self.subnets)}
        #: Standard deviation between runtime sessions, relative.
        self.session_scatter = between_sessions(self.subnets, undisturbed_ms)
        # Sorted within each subnet: not even rounding depends on the order of arrival.
        runs = [
            (place, undisturbed_ms(run) or math.nan, run.median_ms, noise_of(run, self.session_scatter), run)
            for place, subnet in enumerate(self.subnets)
            for run in subnet.runs
        ]
        runs.sort(key=lambda run: (run[0], math.isnan(run[1]), run[1:4]))
        place = np.array([run[0] for run in runs], dtype=np.intp)
        undisturbed, medians = np.array([run[1:3] for run in runs], dtype=np.float64).reshape(-1, 2).T
        known = ~np.isnan(undisturbed)
        of_known = [(run[3], run[4].sessions) for run in runs if run[1] == run[1]]
        #: Noise of each run of one session whose speed is known, relative, ascending; of all runs where none is.
        self.noise = sorted(noise for noise, sessions in of_known if sessions == 1) or sorted(n for n, _ in of_known)
        self.knows_speeds = len(set(place[known].tolist())) >= _LEAST_KNOWN
        ended = np.array([run[4].finished_unix_s for run in runs], dtype=np.float64)
        in_regime = ended >= regime_unix_s
        #: Start of the time from which the typical speed is taken; 0 where all measurements count.
        self.speed_since_unix_s = regime_unix_s
        if np.count_nonzero(known & in_regime) < _LEAST_OF_REGIME:
            in_regime, self.speed_since_unix_s = np.ones(len(ended), dtype=np.bool_), 0.0
        present = known & in_regime
        self.changed_for_good = _changed(
            medians / undisturbed, known & (ended < regime_unix_s), known & (ended >= regime_unix_s)
        )
        awaited = {id(run) for subnet in self.subnets for run in subnet.awaited}
        unbiased = present & np.array([id(run[4]) not in awaited for run in runs], dtype=np.bool_)
        present = next((chosen for chosen in (unbiased, present) if chosen.any()), known)
        durations = _durations(ended)
        self.speed = TypicalSpeed.of(
            undisturbed[present],
            medians[present] / undisturbed[present],
            ended[present],
            durations[present],
            float(durations[present].sum() / durations[in_regime].sum()) if present.any() else 1.0,
        )
        precision = np.where(known, np.array([run[3] for run in runs], dtype=np.float64), 1.0) ** -2
        #: Least latency of each subnet on a device slower than typically, or at unknown speed, ms; else infinite.
        self.bound_ms = np.full(len(self.subnets), np.inf)
        #: Latency of each subnet at the run's typical speed, ms.
        self.typical_ms: Floats = self._typical_latencies(place, undisturbed, medians, precision)
        for row, subnet in enumerate(self.subnets):
            for run in subnet.missed:
                missed_ms = undisturbed_ms(run)
                showed = run.median_ms if missed_ms is None else missed_ms * self.speed.slowdown(missed_ms)
                self.typical_ms[row] = max(self.typical_ms[row], showed)

    def _typical_latencies(
        self, place: NDArray[np.intp], undisturbed: Floats, medians: Floats, precision: Floats
    ) -> Floats:
        """Return each subnet's latency at the typical speed, ms, from its runs (n,), and set its bounds."""
        known = ~np.isnan(undisturbed)
        sums = np.zeros((2, len(self.subnets)))
        np.add.at(sums[0], place[known], (undisturbed * precision)[known])
        np.add.at(sums[1], place[known], precision[known])
        typical = np.full(len(self.subnets), np.inf)
        some = sums[1] > 0
        typical[some] = self.speed.typical_ms(sums[0, some] / sums[1, some])
        at_typical = np.where(known, self.speed.typical_ms(np.where(known, undisturbed, 1.0)), np.nan)
        bounds = ~known | (medians > _CLEARLY_SLOWER * np.where(known, at_typical, 0.0))
        np.minimum.at(self.bound_ms, place[bounds], medians[bounds])
        found: Floats = np.minimum(typical, self.bound_ms)
        return found


def _changed(slowdown: Floats, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> bool:
    """Whether median slow-downs before and after the present regime began differ by more than a few percent."""
    if not before.any() or not after.any():
        return False
    was, now = median(slowdown[before]), median(slowdown[after])
    return max(was, now) > _ANOTHER_SPEED * min(was, now)


def _durations(ended: Floats) -> Floats:
    """Return the time that each run stands for, seconds (n,): from the end of the run before to its own, within bounds.

    A slow device measures less often, and would be seen too rarely otherwise.
    """
    order = np.argsort(ended, kind="stable")
    in_order = ended[order]
    gaps = np.zeros(len(ended))
    np.subtract(in_order[1:], in_order[:-1], out=gaps[1:])
    usual = median(gaps[1:]) if len(gaps) > 1 else 0.0
    if usual <= 0.0:
        return np.ones(len(ended))
    gaps[0] = usual
    found = np.empty(len(ended))
    found[order] = np.clip(gaps, usual / _MOST_UNUSUAL, usual * _MOST_UNUSUAL)
    return found
