"""Schedules of `fleetnas train` over a budget of epochs."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.registry import make_space
from fleetnas.supernet_export.training.run_phases import divided, phases_of

SPACE = make_space("mbconv", {"classes": 3})
TIED = make_space("mbconv", {"classes": 3, "tied": True})


@pytest.mark.parametrize("total", [6, 7, 20, 31, 1000])
def test_parts_add_up_and_none_is_empty(total):
    lengths = divided(total, [12, 8, 1, 8, 1, 8])
    assert sum(lengths) == total
    assert min(lengths) >= 1


def test_long_budgets_are_divided_in_proportion():
    assert divided(380, [12, 8, 1, 8, 1, 8]) == [120, 80, 10, 80, 10, 80]


@pytest.mark.parametrize(("schedule", "space"), [("sandwich", SPACE), ("progressive", SPACE), ("compound", TIED)])
def test_every_schedule_takes_its_budget_and_ends_with_all_choices(schedule, space):
    phases = phases_of(schedule, space, 30, 1e-3, 2)
    assert sum(phase.epochs for phase in phases) == 30
    assert phases[0].random_subnets == 0
    assert (phases[-1].kernels, phases[-1].expands, phases[-1].depths) == (space.kernels, space.expands, space.depths)


def test_one_epoch_is_enough_for_the_sandwich():
    assert [phase.name for phase in phases_of("sandwich", SPACE, 1, 1e-3, 2)] == ["sandwich"]


def test_a_phase_that_frees_nothing_is_left_out():
    space = make_space("mbconv", {"classes": 3, "kernels": [5], "depths": [1, 2]})
    assert [phase.name for phase in phases_of("progressive", space, 10, 1e-3, 2)] == [
        "largest",
        "depth",
        "expand-opening",
        "expand",
    ]


def test_subnets_drawn_are_of_the_space():
    options = {"classes": 3, "tied": True, "stage_kernels": [3, 5, 3], "stages": [{"width": 16, "blocks": 3}] * 3}
    for space in (TIED, make_space("mbconv", options)):
        (_, _, phase) = phases_of("compound", space, 10, 1e-3, 2)
        rng = np.random.default_rng(0)
        drawn = [phase.sample(space.network, 32, rng) for _ in range(20)]
        drawn += [phase.extreme(space.network, 32, largest=largest) for largest in (True, False)]
        space.encode(drawn)  # which refuses others
        assert phase.extreme(space.network, 96, largest=True).d == space.decode(space.largest())[0].d


@pytest.mark.parametrize(
    ("schedule", "space", "epochs", "part"),
    [
        ("progressive", SPACE, 5, "at least 6"),
        ("progressive", TIED, 30, "ties"),
        ("compound", SPACE, 30, "tied"),
    ],
)
def test_impossible_schedules_are_refused(schedule, space, epochs, part):
    with pytest.raises(UsageError, match=part):
        phases_of(schedule, space, epochs, 1e-3, 2)
