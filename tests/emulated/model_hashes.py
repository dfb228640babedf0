"""SHA-256 of the model files that this machine builds, as one JSON object on standard output.

Runs on the host and inside an emulated board, each with its own Python:

    model_hashes.py BUNDLE ARCHITECTURES RUNTIME...
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model


def model_hashes(bundle: Path, architectures: Path, runtimes: list[str]) -> dict[str, str]:
    """By runtime, precision and the architecture's position in its file."""
    opened = SupernetBundle.open(bundle)
    wanted = [Architecture.model_validate(item) for item in json.loads(architectures.read_text())]
    found = {}
    for runtime in runtimes:
        for precision in ("fp32", "int8"):
            setting = RuntimeSetting.model_validate({"runtime": runtime, "precision": precision})
            for position, architecture in enumerate(wanted):
                model = build_model(opened, architecture, None, setting)
                found[f"{runtime} {precision} {position}"] = hashlib.sha256(model).hexdigest()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(model_hashes(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])) + "\n")
