"""Speeds of equal boards, and the share of them that meets a target."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fleetnas.coordinator.records.board_share import BoardShare
from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds, ClassSpeeds, SeenLatency

NOISE = 0.01


def seen(factors: list[float], subnets: int, seed: int = 0, noise: float = NOISE) -> list[SeenLatency]:
    """Every board measures every subnet once."""
    rng = np.random.default_rng(seed)
    return [
        SeenLatency(bytes([subnet]), f"b{board:02}", math.log(factor * (subnet + 1)) + rng.normal(0.0, noise), noise)
        for subnet in range(subnets)
        for board, factor in enumerate(factors)
    ]


def names(count: int) -> list[str]:
    return [f"b{board:02}" for board in range(count)]


def test_a_slow_board_is_found_in_every_one_of_50_seeds_and_hardly_another_one() -> None:
    wrong = 0
    for seed in range(50):
        factors = np.exp(np.random.default_rng([seed, 9]).normal(0.0, 0.03, 20)).tolist()
        factors[7] = 1.15
        found = ClassSpeeds.of(names(20), seen(factors, 2, seed))
        slow = {name for name, speed in found.boards.items() if speed.slow}
        assert "b07" in slow
        wrong += len(slow - {"b07"})
    assert wrong <= 3


def test_without_noise_the_speeds_are_exact() -> None:
    found = ClassSpeeds.of(names(3), seen([1.0, 1.02, 0.97], 4, noise=1e-6))
    ratio = found.boards["b01"].factor / found.boards["b02"].factor
    assert ratio == pytest.approx(1.02 / 0.97, rel=2e-3)


def test_boards_that_share_no_subnet_are_taken_for_equal() -> None:
    apart = [SeenLatency(bytes([place]), name, math.log(1 + place), NOISE) for place, name in enumerate(names(4))]
    found = ClassSpeeds.of(names(4), apart)
    assert {speed.factor for speed in found.boards.values()} == {1.0}
    assert not any(speed.slow for speed in found.boards.values())


def test_a_board_that_is_far_too_fast_hides_no_slow_one() -> None:
    factors = np.exp(np.random.default_rng(5).normal(0.0, 0.03, 12)).tolist()
    found = ClassSpeeds.of(names(14), seen([*factors, 0.01, 1.2], 2))
    assert {name for name, speed in found.boards.items() if speed.slow} == {"b13"}


def test_of_two_boards_the_slow_one_is_found() -> None:
    found = ClassSpeeds.of(names(2), seen([1.0, 1.2], 3))
    assert (found.boards["b00"].slow, found.boards["b01"].slow) == (False, True)


def test_a_class_is_stated_at_the_speed_that_serves_nine_boards_in_ten() -> None:
    factors = [1.0 + 0.005 * place for place in range(20)]
    found = ClassSpeeds.of(names(20), seen(factors, 30, noise=0.003))
    served = sum(speed.factor <= found.served for speed in found.boards.values())
    assert served == 18


def test_speeds_do_not_depend_on_the_order_of_arrival() -> None:
    def learned(order: list[SeenLatency]) -> ClassSpeeds:
        speeds = BoardSpeeds()
        for one in order:
            speeds.add(one.subnet, one.board, math.exp(one.log_ms), one.noise)
        return speeds.now

    given = seen([1.0, 1.03, 0.98, 1.2], 3)
    forward, backward = learned(given), learned(given[::-1])
    assert forward == ClassSpeeds(dict(forward.boards), forward.deviation, forward.served)
    assert dict(forward.boards) == dict(backward.boards)
    assert (forward.deviation, forward.served) == (backward.deviation, backward.served)


def test_one_board_alone_has_no_factor() -> None:
    speeds = BoardSpeeds()
    speeds.add(b"a", "pi", 3.0, NOISE)
    assert (speeds.factor("pi"), speeds.error("pi"), speeds.is_slow("pi")) == (1.0, 0.0, False)


@pytest.mark.parametrize(
    ("met", "asked", "low", "high"),
    [(19, 20, 0.7513, 0.9987), (20, 20, 0.8316, 1.0), (0, 5, 0.0, 0.5218), (1, 2, 0.0126, 0.9874)],
)
def test_the_interval_is_that_of_clopper_and_pearson(met: int, asked: int, low: float, high: float) -> None:
    assert BoardShare(met, asked).interval == pytest.approx((low, high), abs=1e-4)


def test_the_interval_covers_the_share_in_at_least_95_percent_of_cases() -> None:
    rng = np.random.default_rng(1)
    intervals = [BoardShare(met, 12).interval for met in range(13)]
    for share in (0.05, 0.5, 0.9):
        drawn = rng.binomial(12, share, 4000)
        covered = sum(intervals[met][0] <= share <= intervals[met][1] for met in drawn.tolist())
        assert covered >= 0.945 * 4000
