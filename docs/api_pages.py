"""Build the pages of the Python interface from docstrings: `python docs/api_pages.py build/docs`, or `make docs`.

The first page is `import fleetnas`; the others are the values that its functions take and return. The exit status is 1
where pdoc warns, for example because a name cannot be imported.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

MODULES = (
    "fleetnas",
    "fleetnas.coordinator.records.events",
    "fleetnas.coordinator.records.plan",
    "fleetnas.coordinator.report.results",
    "fleetnas.coordinator.search.engine",
    "fleetnas.coordinator.tuning.proposal",
    "fleetnas.fleet_protocol.architecture",
    "fleetnas.fleet_protocol.errors",
    "fleetnas.supernet_export.bundle",
    "fleetnas.supernet_export.graph",
    "fleetnas.supernet_export.spaces.base",
)


def build(folder: Path) -> list[str]:
    """Write the pages into `folder`; returns pdoc's warnings."""
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=folder)
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    found = build(target)
    print(*found, f"written: {target / 'index.html'}", sep="\n")
    sys.exit(1 if found else 0)
