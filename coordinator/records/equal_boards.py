"""The rule by which two agents are boards of one class: docs/pooling.md has it in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.fleet_protocol.messages import AgentInfo

#: Begins a tag that names an agent's class.
CLASS_TAG = "class:"
#: The class of an agent that is searched alone.
NO_CLASS = "none"
#: Micro-benchmarks of equal boards differ by at most this factor: they are short, and a slow board is to be found.
MOST_APART = 1.3
#: Memory of boards of one model differs by what their firmware reserves, at most by this factor.
_MEMORY_APART = 1.1


def class_tag(info: AgentInfo) -> str:
    """Return the class that an agent's tags name; empty where they name none."""
    return next((tag.removeprefix(CLASS_TAG) for tag in info.tags if tag.startswith(CLASS_TAG)), "")


def may_pool(info: AgentInfo) -> bool:
    """Whether an agent may be of a class: agents of one machine measure in turn, so the machine must be known.

    A tag `class:NAME` vouches for it.
    """
    named = class_tag(info)
    return named != NO_CLASS and bool(named or info.host)


def are_equal(one: AgentInfo, other: AgentInfo) -> bool:
    """Whether two agents, which may pool, are boards of one class.

    With a tag `class:NAME` on either, that name decides; else the profiles, versions and micro-benchmarks do.
    """
    if one.agent == other.agent or (one.host and one.host == other.host):
        return False
    named = class_tag(one), class_tag(other)
    if any(named):
        return named[0] == named[1]
    return one.versions == other.versions and _are_alike(one.profile, other.profile)


def classes_of(agents: Iterable[AgentInfo]) -> dict[str, tuple[str, ...]]:
    """Return the agents that are of one class with each agent, itself included; those alone are left out."""
    classes: list[list[AgentInfo]] = []
    for info in agents:
        if may_pool(info):
            mine = next((members for members in classes if joins(members, info)), None)
            if mine is None:
                classes.append([info])
            else:
                mine.append(info)
    return {
        info.agent: tuple(member.agent for member in members)
        for members in classes
        for info in members
        if len(members) > 1
    }


def joins(members: Sequence[AgentInfo], info: AgentInfo) -> bool:
    """Whether an agent is of the class of these agents: equal to the first one, and on a machine of its own."""
    return are_equal(members[0], info) and all(
        member.agent != info.agent and (not info.host or member.host != info.host) for member in members
    )


def class_name(info: AgentInfo) -> str:
    """Return the name of an agent's class: that of its tag, or its model."""
    return class_tag(info) or info.profile.model


def _are_alike(one: DeviceProfile, other: DeviceProfile) -> bool:
    """Whether two profiles are of one model of board."""
    varying = {"micro_benchmarks", "memory_mb"}
    if one.model_dump(exclude=varying) != other.model_dump(exclude=varying):
        return False
    return _near(one.memory_mb, other.memory_mb, _MEMORY_APART) and _benchmarks_near(
        one.micro_benchmarks, other.micro_benchmarks
    )


def _benchmarks_near(one: MicroBenchmarks, other: MicroBenchmarks) -> bool:
    theirs = other.model_dump()
    return all(_near(value, theirs[name], MOST_APART) for name, value in one.model_dump().items())


def _near(one: float | None, other: float | None, factor: float) -> bool:
    """Whether two positive numbers are within a factor of each other; one that is not known is near another only."""
    if one is None or other is None:
        return one is other
    return abs(math.log(one / other)) <= math.log(factor)
