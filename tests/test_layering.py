"""The rules of the house: which way imports go, and what stays light."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

import pytest
from importlinter.api import use_cases  # type: ignore[import-untyped]

HEAVY = (
    "torch",
    "rich",
    "coordinator",
    "onnxruntime",
    "ai_edge_litert",
    "sklearn",
    "matplotlib",
    "sqlalchemy",
    "amqtt",
)


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    program = f"{statement}\nimport sys; print(*sorted(name.split('.')[0] for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_imports_go_one_way() -> None:
    assert use_cases.lint_imports(is_debug_mode=False, show_timings=False, verbose=False) == use_cases.SUCCESS


@pytest.mark.parametrize("statement", ["import agent.cli", "import agent.service"])
def test_the_agent_loads_nothing_heavy(statement: str) -> None:
    assert not modules_after(statement) & set(HEAVY)


def test_exporting_and_slicing_load_no_torch() -> None:
    statement = "import supernet_export.bundle, supernet_export.subnet, supernet_export.onnx_emitter"
    assert "torch" not in modules_after(statement)


def test_only_the_export_extra_asks_for_torch() -> None:
    wanting = {
        line.rpartition("extra ==")[2].strip(" \"'") for line in requires("fleetnas") or [] if line.startswith("torch")
    }
    assert wanting == {"export"}
