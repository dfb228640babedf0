"""Words for a target of another kind than latency that was given up: they do not contradict themselves."""

from __future__ import annotations

import pytest

from fleetnas.coordinator.records.target_kinds import Target, three_digits
from fleetnas.coordinator.tuning.kind_verdicts import given_up_kind


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.2345, "1.23"), (999.4, "999"), (999.6, "1000"), (1190.4, "1190")]
)
def test_values_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_a_rate_that_is_expected_to_be_kept_is_not_called_too_fast() -> None:
    found = given_up_kind(Target.parse("fps:1000"), 1000.0 / 1190.0, "abc", "")
    assert not found.too_fast
    assert "1190 fps, within it" in found.text
    assert "ask for" not in found.text


def test_a_rate_out_of_reach_tells_what_to_ask_for() -> None:
    found = given_up_kind(Target.parse("fps:2000"), 1000.0 / 1190.0, "abc", "")
    assert found.too_fast
    assert "expected at 1190 fps; ask for at most" in found.text
