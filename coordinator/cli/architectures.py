"""Parse the architectures that a command line names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

if TYPE_CHECKING:
    from fleetnas.fleet_protocol.architecture import Architecture
    from fleetnas.supernet_export.spaces.base import DesignSpace

_NAMES = ("smallest", "largest")
#: Help of an argument that `parse_architecture` reads.
ARCHITECTURE_HELP = "JSON with OFA's keys, a file of it, a winner's card, `smallest`, `largest` or `random:SEED`."


def parse_architecture(space: DesignSpace, text: str) -> Architecture:
    """Parse an architecture: JSON, a file of it, a winner's card, `smallest`, `largest` or `random:SEED`.

    Raises:
        UsageError: the text is none of these.
        ArchitectureError: the architecture is not in the space; the message names the entry.
    """
    import numpy as np

    from fleetnas.fleet_protocol.architecture import Architecture

    if text in ("smallest", "largest"):
        return space.decode(space.smallest() if text == "smallest" else space.largest())[0]
    seed = text.removeprefix("random:")
    if seed != text and seed.isdecimal():
        return space.decode(space.sample(1, np.random.default_rng(int(seed))))[0]
    try:
        # JSON first: a whole architecture is longer than a file's name may be.
        is_file = not text.lstrip().startswith("{") and Path(text).is_file()
        fields = json.loads(read_text(Path(text)) if is_file else text)
        # A winner's card holds its architecture beside other things.
        found = Architecture.model_validate(fields.get("architecture", fields))
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"architecture {text[:80]!r} cannot be read ({_fault(error)}){did_you_mean(text[:80], _NAMES)} give "
            "JSON with the keys ks, e, d and r, a file of it, `smallest`, `largest` or `random:SEED`"
        ) from None
    return space.decode(space.encode([found]))[0]


def _fault(error: OSError | ValueError | AttributeError) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return first_fault(error)
    return "it is no JSON, and no such file exists" if isinstance(error, json.JSONDecodeError) else str(error)
