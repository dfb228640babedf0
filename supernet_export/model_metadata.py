"""What a model file says about itself: its classes, its images, and the origin of its weights.

It is made from the bundle's manifest alone, so that the coordinator and the device write the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Metadata of a model file. `preprocessing` and `provenance` have the fields and the order of the manifest's."""

    dataset: str
    class_names: tuple[str, ...] | None
    preprocessing: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def fields(self) -> dict[str, Any]:
        """Return everything as plain values; `class_names` only where they are known."""
        named = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {
            "dataset": self.dataset,
            **named,
            "preprocessing": dict(self.preprocessing),
            "provenance": dict(self.provenance),
        }

    def properties(self) -> dict[str, str]:
        """Return everything as text: what is no text already is JSON, with letters of any script as they are."""
        return {name: value if isinstance(value, str) else to_json(value) for name, value in self.fields().items()}


def to_json(value: object) -> str:
    """Return compact JSON, the same text from every Python."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
