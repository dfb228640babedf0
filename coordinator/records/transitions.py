"""State machines as data: the transitions that are allowed, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import Enum
from typing import Generic, TypeVar

State = TypeVar("State", bound=Enum)


class InvalidTransitionError(RuntimeError):
    """A state changed in a way that its state machine does not allow: a defect of this program."""


class BrokenInvariantError(AssertionError):
    """A `validate` method found state that contradicts itself: a defect of this program."""


class StateMachine(Generic[State]):
    """States of one kind of thing, and the states that may follow each of them."""

    def __init__(self, kind: str, allowed: Mapping[State, Set[State]]) -> None:
        """`kind` names the thing in error messages; a state that `allowed` lacks is final."""
        self._kind = kind
        self._allowed = {state: frozenset(following) for state, following in allowed.items()}

    def check(self, present: State, following: State) -> State:
        """Return `following`; `InvalidTransitionError` where it may not follow `present`."""
        allowed = self._allowed.get(present, frozenset())
        if following not in allowed:
            names = ", ".join(sorted(state.value for state in allowed)) or "nothing"
            raise InvalidTransitionError(
                f"{self._kind} cannot become {following.value!r}: it is {present.value!r}, after which may come {names}"
            )
        return following


def require(holds: bool, broken: str, *values: object) -> None:
    """Raise `BrokenInvariantError` with the text `broken`, formatted with `values`, unless an invariant `holds`."""
    if not holds:
        raise BrokenInvariantError(broken.format(*values))
