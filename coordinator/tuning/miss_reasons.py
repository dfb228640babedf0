"""Explain, to people, why a target was missed or cannot be met."""

from __future__ import annotations

from dataclasses import dataclass

from fleetnas.coordinator.records.target_kinds import three_digits
from fleetnas.coordinator.tuning.observations import Observations
from fleetnas.coordinator.tuning.subnet_observations import Run
from fleetnas.coordinator.tuning.target_state import TargetState


@dataclass(frozen=True)
class GivenUpReason:
    """Explanation of a target within which no measured subnet is."""

    text: str
    too_fast: bool = False
    """The fastest measurement, on an undisturbed device as well, is beyond the target."""


def remeasured_beyond(
    state: TargetState, run: Run, typical_ms: float | None, *, disturbed: bool, caution: float = 0.0
) -> str:
    """Explain a re-measurement that missed; `typical_ms` is its latency at the typical speed of the run.

    `caution` is what that latency may be wrong by, relative.
    """
    if run.median_ms <= state.target_ms and typical_ms is not None:
        if typical_ms <= state.target_ms:
            return (
                f"within it when re-measured, at {three_digits(run.median_ms)} ms and "
                f"{three_digits(typical_ms)} ms at the typical speed, "
                f"which is known to within {100 * caution:.1f} % only"
            )
        return (
            f"within it when re-measured, at {three_digits(run.median_ms)} ms, while the device was faster than it "
            f"typically is: {three_digits(typical_ms)} ms at the typical speed"
        )
    slowed = ", while the device was slowed down" if disturbed else ""
    return f"over the target when re-measured, at {three_digits(run.median_ms)} ms{slowed}"


def remeasured_in_vain(state: TargetState) -> str:
    """Explain a target that no re-measurement met; a narrow view shows the first words only."""
    if not state.slowed_down:
        return f"not met in {state.verifications} re-measurements; the last: {state.reason}"
    every = state.slowed_down == state.verifications
    slowed = "all" if every else f"{state.slowed_down} of {state.verifications}"
    return (
        f"slowed down in {slowed} re-measurements, not met in any of {state.verifications}; let nothing else run on "
        "the device, keep it cool, and search again"
    )


def given_up(state: TargetState, observations: Observations, name: str, last_failure: str) -> GivenUpReason:
    """Explain a target that was given up, by all measurements; `name` is the fastest subnet's."""
    doubted = state.typical_ms is not None and max(state.verified_ms or 0.0, state.typical_ms) <= state.target_ms
    if doubted and state.reason:  # its re-measurement was within it, but not surely
        return GivenUpReason(state.reason)
    fastest = observations.fastest()
    if fastest is None or fastest.fastest_ms is None:
        return GivenUpReason(f"no measured subnet is left, the last failed with {last_failure}")
    if observations.quarantined_within(state.target_ms):
        return GivenUpReason(
            f"the subnets within it failed when they were measured again, the last with {last_failure}"
        )
    ran_ms = fastest.fastest_ms
    known = [
        ms for subnet in observations for run in subnet.runs if (ms := observations.undisturbed_ms(run)) is not None
    ]
    typical_ms = observations.latency_ms(fastest) or ran_ms
    ask = f"ask for at least {three_digits(1.05 * max(ran_ms, typical_ms))} ms"
    if not known:
        return GivenUpReason(
            f"the fastest measurement ({name}) took {three_digits(ran_ms)} ms, and the device was disturbed all the "
            "time; let nothing else run on it, keep it cool, and search again"
        )
    if state.slowed_down and state.slowed_down == state.verifications:
        return GivenUpReason(remeasured_in_vain(state))
    if ran_ms <= state.target_ms:
        return GivenUpReason(
            f"the fastest subnet found ({name}) took {three_digits(ran_ms)} ms at best, and takes "
            f"{three_digits(typical_ms)} ms at the typical speed of this run; {ask}"
        )
    if min(known) <= state.target_ms:
        return GivenUpReason(
            f"the fastest subnet found ({name}) took {three_digits(ran_ms)} ms; only an undisturbed device would be "
            f"within it, at {three_digits(min(known))} ms; {ask}"
        )
    return GivenUpReason(f"the fastest subnet found ({name}) takes {three_digits(ran_ms)} ms; {ask}", too_fast=True)


def first_ones_failed(failures: int, last: str) -> str:
    """Explain a device setting that is given up after that many failures; `last` describes the latest one."""
    return (
        f"its first {failures} measurements all failed, the last with {last}; run `fleetnas-agent doctor` on the device"
    )


def all_failed(last: str) -> str:
    """Explain a device setting whose initial design failed as a whole; `last` describes the latest failure."""
    return f"no measurement succeeded, the last failed with {last}; run `fleetnas-agent doctor` on the device"
