"""The search of a whole campaign: thorough for a few device settings, over one shared archive for many.

A thorough search costs some 0.1 s per question, which a few devices never notice and a thousand could not wait for.
A subnet that is good on one device is rarely bad on another, so a large fleet asks an archive instead: the fronts of
many unlike devices, made once. A question is then one matrix product and a look at the few most accurate candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.candidate_table import CandidateTable
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import SlotTableLatency, TableLatency
from fleetnas.coordinator.search.problem import AccuracyModel, CachedAccuracy, Problem
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: Device settings up to which every one is searched thoroughly.
FEW_SETTINGS = 16
#: Made-up devices whose fronts are the archive, targets on each, and generations of their searches.
_DEVICES, _PROBES, _ROUNDS = 24, 16, 30
#: Size up to which the archive is filled with neighbours, by one gene, of the subnets found.
_ARCHIVE = 6000
_SEED = 0xA2C417E
#: Candidates per target of which the latency is predicted in full, most accurate first; then four times as many.
_LOOKED_AT = 24
#: A margin may be negative: candidates up to this far above a target are looked at.
_REACH = 1.08


class SharedArchive:
    """A `TargetSolver` that all device settings of a campaign share."""

    def __init__(
        self, thorough: BundleTargetSolver, space: DesignSpace, accuracy: AccuracyModel, bounds: Bounds | None = None
    ) -> None:
        """`thorough` keeps the same `bounds`."""
        self._thorough, self._space, self._accuracy, self._bounds = thorough, space, accuracy, bounds or Bounds()
        self._settings, self._making = 0, False
        self._archive: Archive | None = None
        self._lock = threading.Lock()

    def expect(self, settings: int) -> None:
        """Note how many device settings are waited for: for many, the archive is made while they come."""
        if settings > FEW_SETTINGS and not self._making:
            self._making = True
            threading.Thread(target=self._shared, name="fleet-archive", daemon=True).start()

    def join(self) -> None:
        """Count one more device setting. The archive is made while the first subnets are measured, if not before."""
        self._settings += 1
        self.expect(self._settings)

    @property
    def at_once(self) -> bool:
        """Whether a question is answered in a millisecond: by the archive, which is there."""
        return self._settings > FEW_SETTINGS and self._archive is not None

    def __call__(
        self, latency: TableLatency, targets_ms: Sequence[float], start: Genomes, rng: np.random.Generator
    ) -> list[Genome | None]:
        """Return one genome (G,) per ascending target, in the unit of `latency`; None where no subnet meets it.

        `start` are subnets (n, G) to begin from.
        """
        if self._settings <= FEW_SETTINGS:
            return self._thorough(latency, targets_ms, start, rng)
        return self._shared().winners(latency, targets_ms, start)

    def _shared(self) -> Archive:
        with self._lock:
            if self._archive is None:
                with single_threaded_blas():  # it rounds the same in every process
                    self._archive = Archive(self._space, self._accuracy, self._bounds)
            return self._archive


class Archive:
    """Subnets (n, G) that are good on some device, most accurate first. A function of its arguments alone."""

    def __init__(self, space: DesignSpace, accuracy: AccuracyModel, bounds: Bounds) -> None:
        rng = np.random.default_rng(_SEED)
        found = np.concatenate([_front(space, accuracy, bounds, rng) for _ in range(_DEVICES)])
        found = np.unique(found, axis=0)
        near = np.unique(space.mutate(np.repeat(found, 8, axis=0), 1.5 / space.gene_count, rng), axis=0)
        near = near[rng.permutation(len(near))[: max(0, _ARCHIVE - len(found))]]
        genomes = np.unique(np.concatenate([found, near, space.smallest(), space.largest()]), axis=0)
        genomes = genomes[bounds.met(space, genomes)]
        top1 = np.asarray(accuracy.predict(genomes), dtype=np.float64)
        order = np.argsort(-top1, kind="stable")
        self.genomes: Genomes = genomes[order]
        self.top1: Floats = top1[order]
        self._table = CandidateTable(space, self.genomes)
        #: Accuracy of the subnets that searches begin from, which other devices have often measured too.
        self._accuracy = CachedAccuracy(accuracy)

    def winners(self, latency: TableLatency, targets_ms: Sequence[float], start: Genomes) -> list[Genome | None]:
        """Return, per target, the most accurate subnet of the archive and of `start` that is predicted to meet it."""
        rough = latency.predict_additive(self._table)
        found: list[tuple[float, Genome] | None] = [None] * len(targets_ms)
        #: Per target, how many of the archive are more accurate than the best start within it: no other can win.
        better = [len(self.top1)] * len(targets_ms)
        if len(start):
            exact, top1 = latency.predict(start), np.asarray(self._accuracy.predict(start), dtype=np.float64)
            for place, target_ms in enumerate(targets_ms):
                within = np.flatnonzero(exact <= target_ms)
                if len(within):
                    best = within[np.argmax(top1[within])]
                    found[place] = float(top1[best]), start[best]
                    better[place] = int(np.searchsorted(-self.top1, -top1[best]))
        open_, skip, count = list(range(len(targets_ms))), 0, _LOOKED_AT
        reach = [
            np.flatnonzero(rough[:count] <= _REACH * target_ms)
            for count, target_ms in zip(better, targets_ms, strict=True)
        ]
        while open_:
            rows = [reach[place][skip : skip + count] for place in open_]
            wanted = np.unique(np.concatenate(rows))
            if not len(wanted):
                break
            exact = latency.predict_rows(self._table, wanted)
            still = []
            for place, of_target in zip(open_, rows, strict=True):
                within = of_target[exact[np.searchsorted(wanted, of_target)] <= targets_ms[place]]
                if not len(within):
                    still.append(place)
                else:
                    found[place] = float(self.top1[within[0]]), self.genomes[within[0]]
            open_, skip, count = still, skip + count, 4 * count
        return [one[1] if one is not None else None for one in found]


def _front(space: DesignSpace, accuracy: AccuracyModel, bounds: Bounds, rng: np.random.Generator) -> Genomes:
    """Return the most accurate subnets of a made-up device at every speed, (n, G)."""
    features = FeatureMap(space)
    typical = features.features(space.sample(300, rng)).mean(axis=0)
    # Every kind of cost weighs on some devices and not on others; so, less, do the blocks.
    kinds = rng.lognormal(0.0, 1.0, int(features.groups.max()) + 1)
    weights = kinds[features.groups] * rng.uniform(0.5, 1.5, len(features)) / np.maximum(typical, 1e-9)
    weights[typical <= 0] = 0.0
    constant, tables = features.slot_tables(weights)
    latency = SlotTableLatency(space, constant, tables)
    _, fastest = Problem(space, accuracy, latency, bounds).fastest()
    (slowest,) = latency.predict(space.largest())
    targets = np.geomspace(1.02 * fastest, max(slowest, 1.1 * fastest), _PROBES)
    found = search(
        Problem(space, accuracy, latency, bounds), targets.tolist(), rng=rng, engine=GuidedSettings(rounds=_ROUNDS)
    )
    return found.front_genomes
