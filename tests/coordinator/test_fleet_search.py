"""What a large fleet asks instead of a search per device: as good, within bounds, the same for everybody."""

from __future__ import annotations

import numpy as np
import pytest
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, measurement

from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.latency import MeasuredLatency, SlotTableLatency
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.shared_archive import FEW_SETTINGS, Archive, SharedArchive
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver

THOROUGH = BundleTargetSolver(SPACE, ACCURACY, Strategy.BOTTOM_UP, rounds=3)


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive(SPACE, ACCURACY, Bounds())


def device(seed: int) -> SlotTableLatency:
    features = FeatureMap(SPACE)
    weights = np.random.default_rng(seed).uniform(0.2, 2.0, len(features))
    typical = features.features(SPACE.sample(300, np.random.default_rng(0))).mean(axis=0)
    return SlotTableLatency(SPACE, *features.slot_tables(weights / np.maximum(typical * len(features), 1e-9)))


@pytest.mark.parametrize("seed", range(4))
def test_its_winners_meet_their_targets_and_are_as_good_as_a_search_of_the_device(archive: Archive, seed: int) -> None:
    latency = device(seed)
    fastest = float(latency.predict(SPACE.smallest())[0])
    targets = [1.3 * fastest, 2.0 * fastest, 3.0 * fastest]
    nothing = np.zeros((0, SPACE.gene_count), np.int16)
    rng = np.random.default_rng(0)
    found = [
        np.array([g for g in winners if g is not None])
        for winners in (archive.winners(latency, targets, nothing), THOROUGH(latency, targets, nothing, rng))
    ]
    assert len(found[0]) == len(found[1]) == 3
    assert (latency.predict(found[0]) <= targets).all()
    assert ACCURACY.predict(found[0]).mean() >= ACCURACY.predict(found[1]).mean() - 0.002


def test_a_target_that_nothing_meets_has_no_winner_and_hides_no_other(archive: Archive) -> None:
    latency = device(1)
    fastest = float(latency.predict(SPACE.smallest())[0])
    winners = archive.winners(latency, [0.01 * fastest, 2 * fastest], SPACE.smallest())
    assert winners[0] is None
    assert winners[1] is not None


def test_what_was_measured_counts_before_what_is_foretold(archive: Archive) -> None:
    base = device(2)
    fastest = float(base.predict(SPACE.smallest())[0])
    nothing = np.zeros((0, SPACE.gene_count), np.int16)
    (first,) = archive.winners(base, [2 * fastest], nothing)
    assert first is not None
    slower = MeasuredLatency(base, first[None], np.array([2.1 * fastest]))
    (second,) = archive.winners(slower, [2 * fastest], first[None])
    assert second is not None
    assert not np.array_equal(first, second)
    # And one that is better than any of the archive, known only because it was measured, wins.
    largest = SPACE.largest()
    (third,) = archive.winners(MeasuredLatency(base, largest, np.array([fastest])), [2 * fastest], largest)
    assert third is not None
    assert np.array_equal(third, largest[0])


def test_it_keeps_the_bounds() -> None:
    half = float(SPACE.parameters(SPACE.largest())[0]) / 2
    bounded = Archive(SPACE, ACCURACY, Bounds(parameters=half))
    assert (SPACE.parameters(bounded.genomes) <= half).all()
    assert len(bounded.genomes) > 100


def test_few_settings_are_searched_thoroughly_and_many_over_one_archive() -> None:
    search, latency = SharedArchive(THOROUGH, SPACE, ACCURACY), device(3)
    targets = [2 * float(latency.predict(SPACE.smallest())[0])]
    nothing = np.zeros((0, SPACE.gene_count), np.int16)
    for _ in range(FEW_SETTINGS):
        search.join()
    first = search(latency, targets, nothing, np.random.default_rng(5))
    assert np.array_equal(first, THOROUGH(latency, targets, nothing, np.random.default_rng(5)))
    search.join()
    # No randomness is left: all ask the same archive.
    assert np.array_equal(
        search(latency, targets, nothing, np.random.default_rng(6)),
        search(latency, targets, nothing, np.random.default_rng(7)),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_device_of_a_large_fleet_meets_its_targets(archive: Archive, seed: int) -> None:
    search = DeviceTuner(
        InitialDesign(SPACE, count=10, seed=0),
        ACCURACY,
        TargetRequest.parse("auto:4"),
        lambda latency, targets, start, rng: archive.winners(latency, targets, start),
        budget=24,
    )
    hidden, rng = HiddenDevice(seed), np.random.default_rng(seed)
    for _ in range(100):
        asked = search.ask(100)
        for proposal in asked:
            median = hidden.latency_ms(proposal.architecture) * float(np.exp(rng.normal(0, 0.01)))
            search.tell(proposal, measurement(median))
        if search.finished:
            break
    assert [state.status for state in search.targets] == ["met"] * 4
