"""Choose reference subnets, load them once per bundle and setting, and read their levels."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fleetnas.agent.host.limits import free_memory_bytes
from fleetnas.agent.measuring.levels import continued_levels
from fleetnas.agent.measuring.messages import RUNGS, ReferenceOrder
from fleetnas.agent.measuring.paired import Reference, read_levels, reference_turn_s
from fleetnas.agent.runtimes.base import LoadedModel, Runtime, TimedModel, random_tensors
from fleetnas.agent.runtimes.settings import IN_PROCESS
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes

#: Rungs of the ladder for a runtime that this process only drives: each of its readings costs seconds.
DRIVEN_RUNGS = 3
#: Seed of the subnets between the smallest and the largest: the same on every device.
_SEED = 20_200_427
#: Candidates per share of genes taken from the largest, and how near to a rung's size one has to be.
_CANDIDATES, _NEAR = 200, 0.05
#: An accelerator may compile for minutes: no further rung is loaded after this long.
_LOADING_S = 30.0
#: Share of the free memory that references may take, and a session's size in model files.
_MEMORY_SHARE, _SESSION_FILES = 0.25, 3.0
#: Settings whose references stay loaded.
_KEPT_SETTINGS = 4


@dataclass(frozen=True, slots=True)
class Rung:
    """One reference subnet of a space."""

    architecture: Architecture
    fingerprint: str
    macs: float


def ladder(space: DesignSpace, rungs: int = RUNGS) -> list[Rung]:
    """Return the smallest and the largest subnet and, between them, subnets at equal ratios of MACs; smallest first.

    Deterministic. Between the ends, random subnets are mixed with either end; of those near a rung's size the one that
    moves a typical number of bytes is taken. A space that is too small for `rungs` distinct ones gives fewer.
    """
    ends = np.concatenate([space.smallest(), space.largest()])
    low, high = space.macs(ends)
    pool = _mixtures(space)
    macs = space.macs(pool)
    moved = space.costs(pool)[:, :, COST_NAMES.index("bytes_moved")].sum(axis=1)
    chosen = [ends[0]]
    for target in np.geomspace(low, high, max(2, rungs))[1:-1]:
        distance = np.abs(np.log(macs / target))
        near = np.flatnonzero(distance <= max(_NEAR, distance.min()))
        chosen.append(pool[near[np.argsort(moved[near], kind="stable")[len(near) // 2]]])
    genomes = np.array([*chosen, ends[1]]) if rungs > 1 else ends[:1]
    found: dict[str, Rung] = {}
    for architecture, size in zip(space.decode(genomes), space.macs(genomes), strict=True):
        found.setdefault(architecture.fingerprint, Rung(architecture, architecture.fingerprint, float(size)))
    return sorted(found.values(), key=lambda rung: rung.macs)


def _mixtures(space: DesignSpace) -> Genomes:
    rng = np.random.default_rng(_SEED)
    shares = np.repeat(np.linspace(0.05, 0.95, 19), _CANDIDATES)[:, None]
    mixed = [
        np.where(rng.random((len(shares), space.gene_count)) < shares, end, space.sample(len(shares), rng))
        for end in (space.smallest(), space.largest())
    ]
    return space.canonical(np.concatenate(mixed))


@dataclass
class LoadedRung:
    """A reference subnet and its session."""

    rung: Rung
    model: TimedModel
    #: One inference; None where another program runs the model.
    run: Callable[[], object] | None
    bytes: int
    #: The last reading, if another program runs the model, and its time, monotonic seconds.
    _reading: tuple[Timing, float] | None = None

    def note_reading(self, reading: Timing, now: float) -> None:
        """Keep a reading for the next measurement."""
        self._reading = reading, now

    def reading_since(self, earliest: float) -> Timing | None:
        """Return the last reading unless it was made before `earliest`."""
        return self._reading[0] if self._reading is not None and self._reading[1] >= earliest else None


@dataclass
class LoadedReferences:
    """The references of one bundle and setting, by size, ascending."""

    rungs: list[LoadedRung] = field(default_factory=list)
    #: `fresh`: these sessions have never been read; `doubtful`: one of their levels turned out to be too high.
    state: Literal["fresh", "doubtful", "known"] = "fresh"
    levels_ms: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of the sessions, in bytes, estimated."""
        return sum(each.bytes for each in self.rungs)

    def nearest(self, macs: float) -> tuple[LoadedRung, LoadedRung | None]:
        """Return the rung nearest in size, and the end of the ladder that is farther from it."""
        near = min(self.rungs, key=lambda each: abs(np.log(each.rung.macs / macs)))
        far = self.rungs[0] if near is not self.rungs[0] else self.rungs[-1]
        return near, far if far is not near else None

    def reference(self, each: LoadedRung, normals: Mapping[str, float]) -> Reference:
        """Return a rung in the form that a paired measurement takes."""
        assert each.run is not None
        name = each.rung.fingerprint
        return Reference(name, each.rung.macs, each.run, self.levels_ms[name], normals.get(name, 1.0))

    def calibrate(self, order: ReferenceOrder, protocol: MeasurementProtocol) -> float:
        """Learn the levels, reading all references if one is not known; return the time inside inference, in s."""
        old_ms = {name: level for name, level in order.levels_ms.items() if name in self._names}
        if self.state == "known" and len(old_ms) == len(self.rungs):
            self.levels_ms = old_ms
            return 0.0
        read_ms, spent_s = self._read(protocol)
        if self.state == "doubtful":  # the same sessions: a disturbance only adds to their time
            self.levels_ms = {name: min(level, old_ms.get(name, level)) for name, level in read_ms.items()}
        else:
            self.levels_ms = continued_levels(read_ms, old_ms)
        self.state = "known"
        return spent_s

    @property
    def _names(self) -> list[str]:
        return [each.rung.fingerprint for each in self.rungs]

    def lower_level(self, fingerprint: str, level_ms: float) -> None:
        """Use a lower level of one reference; the next order reads all of them again."""
        self.levels_ms[fingerprint] = level_ms
        self.state = "doubtful"

    def close(self) -> None:
        """Free the sessions."""
        for each in self.rungs:
            each.model.close()

    def _read(self, protocol: MeasurementProtocol) -> tuple[dict[str, float], float]:
        names = self._names
        runs = [each.run for each in self.rungs if each.run is not None]
        if len(runs) < len(names):
            timings = [each.model.time(reading_protocol(protocol, first=True)) for each in self.rungs]
            found = {name: timing.median_ms for name, timing in zip(names, timings, strict=True)}
            return found, sum(timing.inference_s for timing in timings)
        about = []
        for run in runs:
            run()
            begin = time.perf_counter_ns()
            run()
            about.append(max(1, time.perf_counter_ns() - begin) / 1e6)
        levels, spent_s = read_levels(list(zip(runs, about, strict=True)), reference_turn_s(protocol))
        return dict(zip(names, levels, strict=True)), spent_s + 2 * sum(about) / 1000


def reading_protocol(protocol: MeasurementProtocol, *, first: bool = False) -> MeasurementProtocol:
    """Return how to time a reference that another program runs: longer the first time, which sets its level."""
    budget_s = max(0.02, 0.04 * (protocol.warmup_s + protocol.min_s))
    return MeasurementProtocol(
        warmup_runs=2 if first else 1,
        warmup_s=budget_s / 10,
        min_runs=5,
        min_s=budget_s * (4 if first else 1),
        max_s=protocol.max_s,
        blocks=1,
        half_width_percent=1000.0,
    )


class References:
    """Keeps the references of the latest bundles and settings; the least recently used are removed first."""

    def __init__(self, free_bytes: Callable[[], float] | None = None, clock: Callable[[], float] = time.monotonic):
        self._free_bytes = free_bytes or _free_bytes
        self._clock = clock
        self._loaded: OrderedDict[tuple[str, RuntimeSetting, int], LoadedReferences] = OrderedDict()

    def get(
        self, bundle: SupernetBundle, setting: RuntimeSetting, runtime: Runtime, at_most: int = RUNGS
    ) -> LoadedReferences:
        """Return `at_most` references of a bundle and setting; they are loaded if they are not yet."""
        key = (bundle.sha256, setting, at_most)
        if key not in self._loaded:
            for other in [other for other in self._loaded if other[:2] == key[:2] or other[0] != bundle.sha256]:
                self._loaded.pop(other).close()
            while len(self._loaded) >= _KEPT_SETTINGS:
                self._loaded.popitem(last=False)[1].close()
            self._loaded[key] = self._load(bundle, setting, runtime, at_most)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def close(self) -> None:
        """Free all sessions."""
        while self._loaded:
            self._loaded.popitem()[1].close()

    def _load(
        self, bundle: SupernetBundle, setting: RuntimeSetting, runtime: Runtime, at_most: int
    ) -> LoadedReferences:
        found = LoadedReferences()
        try:
            for rung in self._in_order_of_worth(ladder(bundle.space, at_most), setting):
                model = build_model(bundle, rung.architecture, None, setting)
                needed = int(_SESSION_FILES * len(model))
                if found.rungs and not self._fits(found.bytes + needed):
                    continue
                try:
                    loaded = runtime.load(model, setting)
                except (RuntimeUnavailableError, MemoryError):
                    if not found.rungs:
                        raise
                    continue  # the smallest alone will do
                run = loaded.bind(random_tensors(loaded.inputs)) if isinstance(loaded, LoadedModel) else None
                found.rungs.append(LoadedRung(rung, loaded, run, needed))
        except BaseException:
            found.close()
            raise
        found.rungs.sort(key=lambda each: each.rung.macs)
        return found

    def _in_order_of_worth(self, rungs: list[Rung], setting: RuntimeSetting) -> Iterator[Rung]:
        """Yield the smallest, the largest, the middle, the others, until loading has taken too long."""
        driven = setting.runtime not in IN_PROCESS
        middle = (len(rungs) - 1) / 2
        ordered = [
            *rungs[:1],
            *rungs[:0:-1][:1],
            *sorted(rungs[1:-1], key=lambda rung: abs(rungs.index(rung) - middle)),
        ]
        begin = self._clock()
        for rung in ordered[:DRIVEN_RUNGS] if driven else ordered:
            if rung is not ordered[0] and self._clock() - begin > _LOADING_S:
                return
            yield rung

    def _fits(self, needed_bytes: float) -> bool:
        """Make room by closing other settings' references; return whether the bytes fit then."""
        while True:
            kept = sum(each.bytes for each in self._loaded.values())
            if kept + needed_bytes <= _MEMORY_SHARE * (self._free_bytes() + kept):
                return True
            if not self._loaded:
                return False
            self._loaded.popitem(last=False)[1].close()


def _free_bytes() -> float:
    """Memory that this process may still take, in bytes; infinite if the system does not tell."""
    free = free_memory_bytes()
    return float("inf") if free is None else free
