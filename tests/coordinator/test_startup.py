"""A help text, a completion and the list of an empty store load nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from rigs import waiting

from fleetnas.coordinator.cli.app import COMMANDS
from fleetnas.coordinator.store.database import Database
from fleetnas.coordinator.store.empty_store import is_empty_file
from fleetnas.coordinator.store.schema import HEAD_REVISION
from fleetnas.coordinator.store.store import MeasurementStore

#: What none of them needs; each takes as long to load as the whole of a help text, or longer.
HEAVY = {
    *("numpy", "pydantic", "sqlalchemy", "alembic", "paho", "amqtt", "asyncio", "rich", "onnx", "onnxruntime", "torch"),
    *("PIL", "cryptography", "matplotlib", "safetensors", "sklearn", "jinja2", "prometheus_client", "psutil", "ssl"),
    *("ai_edge_litert", "tflite", "flatbuffers", "threadpoolctl", "pyarrow", "psycopg", "distributed"),
}
_PROGRAM = """
import atexit, sys
atexit.register(lambda: sys.stderr.write("LOADED " + " ".join(sorted(sys.modules)) + "\\n"))
sys.argv = [{name!r}, *{arguments!r}]
from fleetnas.{module} import main
main()
"""


def loaded(
    *arguments: str, module: str = "coordinator.cli", name: str = "fleetnas", **variables: str
) -> tuple[set[str], str]:
    """The modules that a program holds at its end, and what it printed."""
    program = _PROGRAM.format(name=name, arguments=list(arguments), module=module)
    run = waiting.run([sys.executable, "-c", program], env={**os.environ, **variables})
    assert run.returncode == 0, run.stderr
    return set(run.stderr.rpartition("LOADED ")[2].split()), run.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        *((*name.split(), "--help") for name in COMMANDS),
        ("accuracy", "evaluate", "--help"),
        ("predictor", "evaluate", "--help"),
        ("broker", "init", "--help"),
    ],
    ids=" ".join,
)
def test_a_help_text_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    found, out = loaded(*arguments)
    assert out
    assert found & HEAVY == set()


@pytest.mark.parametrize(("module", "name"), [("agent.cli.main", "fleetnas-agent")])
def test_the_agents_help_loads_nothing_heavy(module: str, name: str) -> None:
    found, out = loaded("--help", module=module, name=name)
    assert "install-service" in out
    assert found & (HEAVY | {"typer", "sqlite3"}) == set()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fleetnas sea", {"search"}),
        ("fleetnas search --strat", {"--strategy"}),
        ("fleetnas search --strategy top", {"top-down"}),
        ("fleetnas accuracy ev", {"evaluate"}),
    ],
)
def test_a_completion_loads_nothing_heavy(words: str, expected: set[str]) -> None:
    place = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_FLEETNAS_COMPLETE": "complete_bash"}
    found, out = loaded(**place)
    assert set(out.split()) == expected
    assert found & HEAVY == set()


def test_the_runs_of_an_empty_store_are_listed_without_opening_it(tmp_path: Path) -> None:
    found, out = loaded("runs", XDG_DATA_HOME=str(tmp_path))
    assert f"the store {tmp_path}/fleetnas/runs.sqlite holds no run yet" in out
    assert found & HEAVY == set()
    assert list(tmp_path.iterdir()) == []  # reading makes no store
    MeasurementStore.open(tmp_path / "runs.sqlite").close()
    found, out = loaded("runs", "--store", str(tmp_path / "runs.sqlite"))
    assert "holds no run yet" in out
    assert found & HEAVY == set()


class TestEmptyFile:
    def test_a_store_with_a_run_is_not_empty(self, finished_run: Path) -> None:
        assert not is_empty_file(str(finished_run))

    def test_a_store_of_this_version_without_a_run_is_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "a folder" / "runs ?#.sqlite"
        assert is_empty_file(str(path))
        MeasurementStore.open(path).close()
        assert is_empty_file(str(path))

    def test_whatever_is_not_certain_is_opened_as_a_store(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not a store " * 100)
        (tmp_path / "nothing").touch()
        for place in ("notes.txt", "nothing", "."):
            assert not is_empty_file(str(tmp_path / place))
        assert not is_empty_file("postgresql://somebody@somewhere/runs")
        assert not is_empty_file("~nobody-of-this-name/runs.sqlite")

    def test_a_store_of_another_version_is_opened_as_a_store(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.sqlite"
        MeasurementStore.open(path).close()
        database = Database(str(path))
        with database.changing_schema() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        database.close()
        assert HEAD_REVISION != "9999"
        assert not is_empty_file(str(path))
