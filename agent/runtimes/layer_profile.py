"""Read onnxruntime's profile of a session's runs as the time of each layer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from fleetnas.fleet_protocol.layer_times import MAX_LAYERS, LayerTime

#: Runs before those that count, the fewest that count, and seconds until no more are begun.
WARM_UP, _FEWEST, _LIMIT_S = 2, 5, 1.0
#: Share of the slowest runs of a layer that are left out: stalls.
_SLOWEST = 0.1
_MARK = "_kernel_time"
_MOST_CHARACTERS = 64


def run_to_profile(infer: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> None:
    """Run inferences for a profile: a warm-up, then at least 5, for about a second."""
    for _ in range(WARM_UP):
        infer()
    end_s = clock() + _LIMIT_S
    runs = 0
    while runs < _FEWEST or clock() < end_s:
        infer()
        runs += 1


def read_layers(profile: Path, *, warm_up: int = WARM_UP) -> tuple[LayerTime, ...]:
    """Return the layers in the file that `InferenceSession.end_profiling` names, in the order of execution.

    The first `warm_up` runs of each layer do not count. `ValueError` or `OSError` where it is no such file.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(profile.read_text()):
        name = str(event.get("name", "")) if isinstance(event, Mapping) else ""
        if name.endswith(_MARK) and event.get("cat") == "Node":
            key = name.removesuffix(_MARK), str(event.get("args", {}).get("op_name", ""))
            times.setdefault(key, []).append(float(event["dur"]))
    layers = [
        LayerTime(name=_shown(name), op=_shown(op), mean_us=_mean(found[warm_up:] or found))
        for (name, op), found in times.items()
    ]
    return _within_bounds(layers)


def _within_bounds(layers: list[LayerTime]) -> tuple[LayerTime, ...]:
    """Return the layers; of too many the slowest ones in their order, and the sum of the others."""
    if len(layers) <= MAX_LAYERS:
        return tuple(layers)
    slowest = sorted(range(len(layers)), key=lambda index: -layers[index].mean_us)[: MAX_LAYERS - 1]
    rest = [layer for index, layer in enumerate(layers) if index not in set(slowest)]
    others = LayerTime(name=f"{len(rest)} other layers", op="", mean_us=sum(layer.mean_us for layer in rest))
    return (*(layers[index] for index in sorted(slowest)), others)


def _mean(times_us: list[float]) -> float:
    kept = sorted(times_us)[: max(1, len(times_us) - int(_SLOWEST * len(times_us)))]
    return float(f"{fmean(kept):.5g}")


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_MOST_CHARACTERS]
