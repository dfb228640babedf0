"""Errors as one line for people."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from fleetnas.fleet_protocol.error_text import first_fault, one_line
from fleetnas.fleet_protocol.errors import UsageError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("give another\n  --store"), "give another --store"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
        (OSError(28, "No space left on device", "out/results.json"), "out/results.json: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("closed"), "OSError: closed"),
        (ValueError("a\x1b[2Jb"), "ValueError: a?[2Jb"),
    ],
)
def test_an_error_is_one_printable_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_a_long_error_is_cut() -> None:
    assert len(one_line(ValueError("word " * 1000))) == 300


class Inner(BaseModel):
    budget: int


class Outer(BaseModel):
    plan: Inner


def test_the_first_fault_has_its_path_and_on_request_its_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"plan": {"budget": "many"}})
    assert first_fault(caught.value).startswith("plan.budget: it must be a whole number")
    assert first_fault(caught.value, with_value=True).startswith("plan.budget 'many': it must be")
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(7)
    assert first_fault(caught.value).startswith("it: ")
