"""The rules of the house: which way imports go, and what stays light."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rigs import waiting
from rigs.extras import declared_extras

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "rich",
    "fleetnas.api",
    "fleetnas.coordinator",
    "onnxruntime",
    "ai_edge_litert",
    "sklearn",
    "matplotlib",
    "sqlalchemy",
    "amqtt",
)


def modules_after(statement: str) -> set[str]:
    """Modules that a new interpreter holds after `statement`."""
    program = f"{statement}\nimport sys; print(*sorted(sys.modules))"
    run = waiting.run([sys.executable, "-c", program])
    run.check_returncode()
    return set(run.stdout.split())


def test_imports_go_one_way() -> None:
    # In a process of its own: on pytest's path the folders of tests go before the packages of the same names.
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = waiting.run([sys.executable, "-c", lint], cwd=ROOT)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("statement", ["import fleetnas.agent.cli.main", "import fleetnas.agent.service.service"])
def test_the_agent_loads_nothing_heavy(statement: str) -> None:
    assert not modules_after(statement) & set(HEAVY)


def test_exporting_and_slicing_load_no_torch() -> None:
    statement = "import fleetnas.api.subnets, fleetnas.supernet_export.emitters.onnx"
    assert "torch" not in modules_after(statement)


def test_only_exporting_and_training_ask_for_torch() -> None:
    assert {extra for extra, packages in declared_extras().items() if "torch" in packages} == {"export", "train"}
