"""On-device architecture search for fleets of edge devices over once-for-all supernets.

```python
import fleetnas

plan = fleetnas.CampaignPlan(targets="auto:4")
for event in fleetnas.search_fleet("digits.supernet", "192.168.1.10:1883", plan, out="results"):
    print(event.event)
```

All names load on first use: `import fleetnas` alone imports neither numpy nor any runtime. Latencies are milliseconds,
accuracies are fractions in [0, 1], and every error that the package raises itself is a `FleetnasError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetnas.api.fine_tuning import FineTuningRecipe, fine_tune
    from fleetnas.api.fleet_search import CampaignPlan, search_fleet
    from fleetnas.api.offline_search import design_space, search
    from fleetnas.api.predictor import LatencyPredictor
    from fleetnas.api.results import plot_fronts, plot_results, read_results
    from fleetnas.api.subnets import Architecture, emit_subnet, export_digits, open_bundle, slice_subnet
    from fleetnas.api.tuner import Tuner
    from fleetnas.fleet_protocol.errors import FleetnasError

    __version__: str

__all__ = [
    "Architecture",
    "CampaignPlan",
    "FineTuningRecipe",
    "FleetnasError",
    "LatencyPredictor",
    "Tuner",
    "__version__",
    "design_space",
    "emit_subnet",
    "export_digits",
    "fine_tune",
    "open_bundle",
    "plot_fronts",
    "plot_results",
    "read_results",
    "search",
    "search_fleet",
    "slice_subnet",
]

_MODULES = {
    "Architecture": "fleetnas.api.subnets",
    "CampaignPlan": "fleetnas.api.fleet_search",
    "FineTuningRecipe": "fleetnas.api.fine_tuning",
    "FleetnasError": "fleetnas.fleet_protocol.errors",
    "LatencyPredictor": "fleetnas.api.predictor",
    "Tuner": "fleetnas.api.tuner",
    "design_space": "fleetnas.api.offline_search",
    "emit_subnet": "fleetnas.api.subnets",
    "export_digits": "fleetnas.api.subnets",
    "fine_tune": "fleetnas.api.fine_tuning",
    "open_bundle": "fleetnas.api.subnets",
    "plot_fronts": "fleetnas.api.results",
    "plot_results": "fleetnas.api.results",
    "read_results": "fleetnas.api.results",
    "search": "fleetnas.api.offline_search",
    "search_fleet": "fleetnas.api.fleet_search",
    "slice_subnet": "fleetnas.api.subnets",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("fleetnas")
    elif name in _MODULES:
        found = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'fleetnas' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
