"""Names of the methods that predict latency, for studies; apart from their code, which takes long to import."""

from __future__ import annotations

from typing import Literal, TypeAlias

MethodName: TypeAlias = Literal["bayesian", "hardware", "fine-tuned", "block-table", "rescaled-table", "macs"]
