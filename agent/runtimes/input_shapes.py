"""Choose the input shapes at which a user's own model is timed.

Only the leading axis, the batch, is 1 by default. A picture of one pixel runs ten thousand times faster than one of a
camera, and its time does not show why: the user has to choose every other axis that a model leaves open.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fleetnas.fleet_protocol.errors import UsageError

Shape = tuple[int, ...]
#: Shape of each input by name; empty if unknown. The empty name stands for the one input that has open sides.
InputShapes: TypeAlias = dict[str, Shape]

#: `1x3x224x224` or `1,3,224,224`, with the input's name and `=` or `:` before it where there are several.
_TEXT = re.compile(r"(?:(.+)[=:])?\[?([0-9]{1,9}(?:[x,][0-9]{1,9}){0,15})\]?", re.IGNORECASE)
#: Example of an open side: a picture's with four axes, a text's otherwise.
_EXAMPLE_PIXELS, _EXAMPLE_TOKENS = 224, 128


@dataclass(frozen=True, slots=True)
class DeclaredInput:
    """An input as the model declares it; None is a side that the caller may choose."""

    name: str
    sides: tuple[int | None, ...]

    def __str__(self) -> str:
        sides = "x".join("?" if side is None else str(side) for side in self.sides)
        return f"{self.name} ({sides or 'a scalar'})"


def parse_input_shape(text: str) -> tuple[str, Shape]:
    """Parse the name and shape of `--input-shape`; the name is empty if there is none."""
    found = _TEXT.fullmatch(text.strip())
    shape = tuple(int(side) for side in re.split("[x,]", found[2].lower())) if found else (0,)
    if found is None or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not [NAME=]SHAPE with sides of at least 1, such as 1x3x224x224")
    return found[1] or "", shape


def spell(shape: Sequence[int]) -> str:
    """Return a shape in the form of `--input-shape`."""
    return "x".join(map(str, shape)) or "scalar"


def choose_shapes(declared: Sequence[DeclaredInput], asked: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape of every input; `asked` has the chosen ones by name.

    The empty name in `asked` stands for the one input that has open sides.
    Raises `UsageError` if an open axis was not chosen, or a shape does not fit.
    """
    named = {name: shape for name, shape in asked.items() if name}
    unknown = sorted(set(named) - {each.name for each in declared})
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}; it has {_listed(declared)}")
    if "" in asked:
        left = [each for each in declared if each.name not in named]
        target = [each for each in left if None in each.sides[1:]] or left
        if len(target) != 1:
            raise UsageError(f"--input-shape must name its input, as NAME=SHAPE: there are {_listed(left)}")
        named[target[0].name] = asked[""]
    return {each.name: _shape_of(each, named.get(each.name)) for each in declared}


def _shape_of(declared: DeclaredInput, asked: Shape | None) -> Shape:
    if asked is None:
        if None in declared.sides[1:]:
            size = _EXAMPLE_PIXELS if len(declared.sides) == 4 else _EXAMPLE_TOKENS
            example = [side or (size if place else 1) for place, side in enumerate(declared.sides)]
            raise UsageError(
                f"the model leaves sides of input {declared} open, and only the first of them, the batch, is 1 by "
                f"itself; choose the shape with --input-shape, such as --input-shape {declared.name}={spell(example)}"
            )
        return tuple(side or 1 for side in declared.sides)
    pairs = zip(asked, declared.sides, strict=False)
    if len(asked) != len(declared.sides) or any(side is not None and side != own for own, side in pairs):
        raise UsageError(
            f"--input-shape {spell(asked)} does not fit input {declared}; change the sides that are ? only"
        )
    return asked


def _listed(declared: Sequence[DeclaredInput]) -> str:
    return ", ".join(map(str, declared)) or "none"
