"""What every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from rigs import brokers

# The same examples in every run: a test that fails by luck says nothing about the change under test.
hypothesis.settings.register_profile("same-every-run", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same-every-run")

# Shells start background jobs with Ctrl-C ignored, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A worker of these tests has about one core; threads that wait for each other on a busy one take many times as long.
# Read by torch and OpenBLAS when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests and stand-ins import onnxruntime by themselves; see supernet_export/interpreters/onnxruntime.py.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# The configuration of the user who runs the tests names a broker and a store of theirs.
os.environ["FLEETNAS_CONFIG"] = ""

# Workers of a test run have one; tests expect the width of no terminal.
os.environ.pop("COLUMNS", None)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def mosquitto_broker(tmp_path: Path) -> Iterator[brokers.Mosquitto]:
    """A real mosquitto on a free port."""
    with brokers.mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public reference data (`FLEETNAS_DATA`); skips where there is none."""
    folder = Path(os.environ.get("FLEETNAS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ofa_mbv3").is_dir():
        pytest.skip(f"no public reference data at {folder}; set FLEETNAS_DATA to its folder")
    return folder
