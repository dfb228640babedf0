"""A dataclass in a command's signature stands for one option per field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fleetnas.coordinator.cli.option_groups import command, names


@dataclass(frozen=True)
class Login:
    name: Annotated[str | None, typer.Option("--name")] = None
    times: Annotated[int, typer.Option("--times", min=1)] = 1


def greet(
    file: Annotated[Path, typer.Argument()], login: Login, loud: Annotated[bool, typer.Option("--loud")] = False
) -> None:
    """Greet somebody."""
    typer.echo(f"{file} {login} {loud}")


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command("greet")(command(greet))
    made.command("other")(lambda: None)
    return made


def test_fields_are_options_with_their_defaults_and_checks(app: typer.Typer) -> None:
    found = CliRunner().invoke(app, ["greet", "a.txt", "--times", "3", "--loud"])
    assert found.output.strip() == f"a.txt {Login(None, 3)} True"
    assert CliRunner().invoke(app, ["greet", "a.txt"]).output.strip() == f"a.txt {Login()} False"
    assert CliRunner().invoke(app, ["greet", "a.txt", "--times", "0"]).exit_code == 2


def test_help_is_that_of_the_function(app: typer.Typer) -> None:
    assert "Greet somebody." in CliRunner().invoke(app, ["greet", "--help"]).output
    assert names(Login) == ("name", "times")


def test_a_field_without_a_default_value_must_be_given() -> None:
    @dataclass(frozen=True)
    class Needed:
        count: Annotated[int, typer.Option("--count", metavar="N")]

    def show(needed: Needed) -> None:
        typer.echo(needed.count)

    app = typer.Typer()
    show.__annotations__["needed"] = Needed  # as this class is not in the module
    app.command("show")(command(show))
    app.command("other")(lambda: None)
    assert CliRunner().invoke(app, ["show", "--count", "3"]).output.strip() == "3"
    refused = CliRunner().invoke(app, ["show"])
    assert (refused.exit_code, "--count" in refused.output) == (2, True)
