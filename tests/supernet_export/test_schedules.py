"""The published schedules as phases: what each may activate, and in which order it is freed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.training.__main__ import main
from fleetnas.supernet_export.training.published_schedules import (
    compound_schedule,
    progressive_shrinking,
    published_schedule,
)
from fleetnas.supernet_export.training.schedule import Phase

SPACE = DigitsSpace()
PROGRESSIVE = progressive_shrinking(SPACE, largest=6, kernel=4, opening=1, full=4)
COMPOUND = compound_schedule(SPACE, fixed_kernel=5, largest=6, opening=1, full=3)
TIED = {2: 3, 3: 4, 4: 6}


def drawn(phase: Phase) -> list[Architecture]:
    """Random subnets of a phase, with its largest and its smallest."""
    rng = np.random.default_rng(0)
    extremes = [phase.extreme(SPACE.network, 16, largest=largest) for largest in (True, False)]
    return extremes + [phase.sample(SPACE.network, 16, rng) for _ in range(200)]


def activated(phase: Phase) -> tuple[set[int], set[int], set[float]]:
    """The kernels, depths and expand ratios that turn up in a phase."""
    subnets = drawn(phase)
    return (
        {kernel for subnet in subnets for kernel in subnet.ks},
        {depth for subnet in subnets for depth in subnet.d},
        {expand for subnet in subnets for expand in subnet.e},
    )


def test_progressive_shrinking_frees_kernel_then_depth_then_expand() -> None:
    assert [activated(phase) for phase in PROGRESSIVE] == [
        ({7}, {4}, {6}),
        ({3, 5, 7}, {4}, {6}),
        ({3, 5, 7}, {3, 4}, {6}),
        ({3, 5, 7}, {2, 3, 4}, {6}),
        ({3, 5, 7}, {2, 3, 4}, {4, 6}),
        ({3, 5, 7}, {2, 3, 4}, {3, 4, 6}),
    ]


def test_progressive_shrinking_never_takes_back_what_it_freed() -> None:
    for before, after in pairwise(PROGRESSIVE):
        assert set(before.kernels) <= set(after.kernels)
        assert set(before.depths) <= set(after.depths)
        assert set(before.expands) <= set(after.expands)
        assert before.random_subnets <= after.random_subnets


def test_progressive_shrinking_ends_untied() -> None:
    stage_of = [block.stage for block in SPACE.block_list]
    last = drawn(PROGRESSIVE[-1])
    assert any(e != TIED[subnet.d[s]] for subnet in last for s, e in zip(stage_of, subnet.e, strict=True))
    assert any(len(set(subnet.ks[:4])) > 1 for subnet in last)


def test_compound_phases_tie_expand_to_depth_and_keep_one_kernel() -> None:
    stage_of = [block.stage for block in SPACE.block_list]
    for phase in COMPOUND:
        for subnet in drawn(phase):
            assert set(subnet.ks) == {5}
            assert list(subnet.e) == [TIED[subnet.d[stage]] for stage in stage_of]


def test_compound_phases_reach_every_combination_of_stage_depths() -> None:
    combinations = {tuple(subnet.d) for subnet in drawn(COMPOUND[0])}
    assert combinations == {(4, 4, 4)}
    for phase in COMPOUND[1:]:
        assert len({tuple(subnet.d) for subnet in drawn(phase)}) == len(TIED) ** 3


def test_channels_are_sorted_within_what_was_trained_before() -> None:
    assert [phase.sort_within for phase in PROGRESSIVE] == [(), (), (), (), (6,), (4, 6)]
    for before, after in pairwise(PROGRESSIVE):
        assert not after.sort_within or set(after.sort_within) == set(before.expands)
    assert [phase.sort_within for phase in COMPOUND] == [(), (6,), (6,)]


def test_both_start_with_the_largest_subnet_alone() -> None:
    for schedule in (PROGRESSIVE, COMPOUND):
        assert schedule[0].random_subnets == 0
        assert {len(choices) for choices in (schedule[0].kernels, schedule[0].expands, schedule[0].depths)} == {1}


def test_schedules_by_name_are_scaled_by_the_epochs_of_a_full_phase() -> None:
    assert published_schedule("progressive-shrinking", SPACE, 4) == PROGRESSIVE
    assert published_schedule("compound", SPACE, 4) == COMPOUND


def test_a_published_schedule_does_not_replace_the_supernet_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--schedule", "compound"], "give --out DIR"), (["--epochs", "1"], "2 or more")):
        with pytest.raises(SystemExit) as ended:
            main(["digits", *arguments])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
