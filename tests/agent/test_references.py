"""Which subnets are references, how many of them are loaded, and how their levels go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.messages import RUNGS, ReferenceOrder
from fleetnas.agent.measuring.references import DRIVEN_RUNGS, References, ladder
from fleetnas.agent.runtimes.base import LoadedModel, OnBlock, Runtime, TimedModel
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
SHORT = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0.001)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("references") / "digits.supernet", SPACE)


class Shelf(Runtime):
    """A runtime that counts what it has loaded and closed; models larger than `largest_bytes` are refused."""

    name = "onnxruntime"

    def __init__(self, largest_bytes: float = math.inf, on_load: Callable[[], None] = lambda: None) -> None:
        self.largest_bytes, self.on_load = largest_bytes, on_load
        self.loaded: list[int] = []
        self.open = 0

    def version(self) -> str:
        return "1"

    def providers(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, model: bytes, setting: RuntimeSetting) -> TimedModel:
        self.on_load()
        if len(model) > self.largest_bytes:
            raise RuntimeUnavailableError("too large")
        self.loaded.append(len(model))
        self.open += 1
        return Driven(self) if setting.runtime == "adb" else Loaded(self)


class Loaded(LoadedModel):
    inputs = ()

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        return lambda: None

    def outputs(self) -> list[NDArray[Any]]:
        return []

    def close(self) -> None:
        self._shelf.open -= 1


class Driven(TimedModel):
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        raise AssertionError("not timed here")

    def close(self) -> None:
        self._shelf.open -= 1


def model_bytes(bundle: SupernetBundle) -> list[int]:
    """Sizes of the ladder's models, ascending in MACs."""
    shelf = Shelf()
    references = References(lambda: math.inf)
    sizes = {each.rung.macs: each.bytes for each in references.get(bundle, RuntimeSetting(), shelf).rungs}
    return [sizes[macs] for macs in sorted(sizes)]


@pytest.mark.parametrize("name", ["digits", "ofa-mbv3", "ofa-proxyless", "ofa-resnet50", "compofa", "compofa-elastic"])
def test_the_ladder_goes_from_the_smallest_to_the_largest_in_even_steps(name: str) -> None:
    space = make_space(name)
    rungs = ladder(space)
    ends = space.decode(np.concatenate([space.smallest(), space.largest()]))
    assert (rungs[0].architecture, rungs[-1].architecture) == (ends[0], ends[1])
    assert [rung.fingerprint for rung in rungs] == [rung.fingerprint for rung in ladder(space)]
    assert len({rung.fingerprint for rung in rungs}) == len(rungs) == RUNGS
    steps = np.diff(np.log([rung.macs for rung in rungs]))
    assert (steps > 0).all()
    assert steps.max() < 1.35 * steps.mean()
    for rung in rungs:
        assert rung.macs == space.macs(space.encode([rung.architecture]))[0]


def test_a_single_rung_is_the_smallest_and_two_are_the_ends() -> None:
    assert [rung.macs for rung in ladder(SPACE, 1)] == [SPACE.macs(SPACE.smallest())[0]]
    assert [rung.macs for rung in ladder(SPACE, 2)] == [
        SPACE.macs(SPACE.smallest())[0],
        SPACE.macs(SPACE.largest())[0],
    ]


def test_references_of_a_setting_are_loaded_once_and_the_latest_settings_stay(bundle: SupernetBundle) -> None:
    shelf, references = Shelf(), References(lambda: math.inf)
    settings = [RuntimeSetting(threads=threads) for threads in range(1, 6)]
    for setting in settings:
        references.get(bundle, setting, shelf)
    assert len(shelf.loaded) == 5 * RUNGS
    references.get(bundle, settings[-1], shelf)
    assert len(shelf.loaded) == 5 * RUNGS
    assert shelf.open == 4 * RUNGS
    references.get(bundle, settings[0], shelf)
    assert len(shelf.loaded) == 6 * RUNGS
    references.close()
    assert shelf.open == 0


def test_little_memory_evicts_other_settings_then_rungs_but_never_the_smallest(
    bundle: SupernetBundle,
) -> None:
    sizes = model_bytes(bundle)
    shelf = Shelf()
    memory = 4.0 * 1.5 * sum(sizes)  # a quarter of it holds one setting's references and half of another's
    references = References(lambda: memory)
    references.get(bundle, RuntimeSetting(), shelf)
    references.get(bundle, RuntimeSetting(threads=2), shelf)
    assert shelf.open <= 2 * RUNGS
    scarce = References(lambda: 4.0 * (sizes[0] + sizes[1] + 1))
    few = scarce.get(bundle, RuntimeSetting(), Shelf())
    assert few.rungs[0].rung.macs == SPACE.macs(SPACE.smallest())[0]
    assert len(few.rungs) < RUNGS
    none = References(lambda: 0.0).get(bundle, RuntimeSetting(), Shelf())
    assert len(none.rungs) == 1


def test_rungs_that_the_runtime_refuses_are_left_out(bundle: SupernetBundle) -> None:
    sizes = model_bytes(bundle)
    references = References(lambda: math.inf)
    found = references.get(bundle, RuntimeSetting(), Shelf(largest_bytes=sizes[2] / 3.0))
    assert [each.bytes for each in found.rungs] == [size for size in sizes if size <= sizes[2]]
    with pytest.raises(RuntimeUnavailableError):
        References(lambda: math.inf).get(bundle, RuntimeSetting(), Shelf(largest_bytes=0))


def test_an_accelerator_that_compiles_for_long_gets_the_ends_first(bundle: SupernetBundle) -> None:
    now = 0.0

    def compile_model() -> None:
        nonlocal now
        now += 20.0

    references = References(lambda: math.inf, clock=lambda: now)
    found = references.get(bundle, RuntimeSetting(), Shelf(on_load=compile_model))
    assert [each.rung.macs for each in found.rungs] == [
        SPACE.macs(SPACE.smallest())[0],
        SPACE.macs(SPACE.largest())[0],
    ]


def test_a_program_of_its_own_gets_fewer_rungs(bundle: SupernetBundle) -> None:
    found = References(lambda: math.inf).get(bundle, RuntimeSetting(runtime="adb"), Shelf())
    assert len(found.rungs) == DRIVEN_RUNGS
    assert all(each.run is None for each in found.rungs)


def test_the_nearest_is_by_ratio_and_the_second_is_the_end_farther_away(bundle: SupernetBundle) -> None:
    found = References(lambda: math.inf).get(bundle, RuntimeSetting(), Shelf())
    sizes = [each.rung.macs for each in found.rungs]
    near, far = found.nearest(1.1 * sizes[2])
    assert far is not None
    assert (near.rung.macs, far.rung.macs) == (sizes[2], sizes[0])
    near, far = found.nearest(0.5 * sizes[0])
    assert far is not None
    assert (near.rung.macs, far.rung.macs) == (sizes[0], sizes[-1])


def test_known_levels_are_taken_over_and_new_sessions_are_read(bundle: SupernetBundle, tmp_path: Path) -> None:
    found = References(lambda: math.inf).get(bundle, RuntimeSetting(), Shelf())
    assert found.calibrate(ReferenceOrder(), SHORT) > 0
    first = dict(found.levels_ms)
    assert first.keys() == {each.rung.fingerprint for each in found.rungs}
    other = {name: 3.0 * level for name, level in first.items()}
    assert found.calibrate(ReferenceOrder(levels_ms=other), SHORT) == 0.0
    assert found.levels_ms == other
    # Sessions whose levels are doubtful are read again, and only ever lowered.
    found.state = "doubtful"
    assert found.calibrate(ReferenceOrder(levels_ms=dict.fromkeys(first, 1e-12)), SHORT) > 0
    assert set(found.levels_ms.values()) == {1e-12}
