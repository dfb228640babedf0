"""Find the execution providers on which the nodes of an onnxruntime session ran.

A session that names a provider first may still have given it no node, or all but one. onnxruntime's profile of a run
tells, in every build; its newer `get_provider_graph_assignment_info` tells what was planned, in recent ones only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path


def read_placement(profile: Path) -> Counter[str]:
    """Count executed nodes per provider in the file that `InferenceSession.end_profiling` names.

    Raises `ValueError` or `OSError` if it is no such file. Layers that TensorRT fused into an engine are one node.
    """
    events = json.loads(profile.read_text())
    providers = [
        event.get("args", {}).get("provider")
        for event in events
        if isinstance(event, Mapping)
        and event.get("cat") == "Node"
        and str(event.get("name", "")).endswith("_kernel_time")
    ]
    return Counter(str(provider) for provider in providers if provider)


def describe_placement(wanted: str, placement: Mapping[str, int]) -> str:
    """Return the active provider for the report: `wanted`, and how many nodes ran elsewhere."""
    others = sorted(item for item in placement.items() if item[0] != wanted)
    text = wanted + "".join(f" + {count} on {name.removesuffix('ExecutionProvider').lower()}" for name, count in others)
    return text[:64]
