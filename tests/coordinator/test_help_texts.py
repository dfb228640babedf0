"""Help texts: options in groups, lines that fit, names that stay whole; and what a shell completes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rigs import waiting
from rigs.command_line import fleetnas

from fleetnas.coordinator.cli.app import COMMANDS, app
from fleetnas.coordinator.cli.command_classes import Command, Group
from fleetnas.coordinator.cli.help_sections import OTHERS, groups_of

#: Options from which a help text is long.
LONG = 10


def walk(command: Any, *names: str) -> dict[str, Any]:
    found = {" ".join(names): command}
    for name, below in getattr(command, "commands", {}).items():
        found |= walk(below, *names, name)
    return found


EVERY = walk(typer.main.get_command(app), "fleetnas")


def test_the_list_of_commands_says_what_each_command_says_of_itself() -> None:
    for name, entry in COMMANDS.items():
        assert EVERY[f"fleetnas {name}"].get_short_help_str(200) == entry.summary


def test_every_command_is_of_our_classes() -> None:
    assert all(isinstance(command, Command | Group) for command in EVERY.values())


@pytest.mark.parametrize("path", EVERY)
def test_a_help_text_has_80_columns_and_whole_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a wide terminal changes nothing
    code, out, err = fleetnas(capsys, *path.split()[1:], "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "\u2011" not in out
    for option in (each for each in EVERY[path].params if each.param_type_name == "option"):
        assert re.search(rf"(?<![\w-]){re.escape(option.opts[-1])}(?![\w-])", out)


@pytest.mark.parametrize("path", EVERY)
def test_the_options_of_a_long_help_text_are_in_groups(capsys: pytest.CaptureFixture[str], path: str) -> None:
    options = [each for each in EVERY[path].params if each.param_type_name == "option"]
    if len(options) < LONG:
        return
    _, out, _ = fleetnas(capsys, *path.split()[1:], "--help")
    titles = re.findall(r"^(\w.*):$", out, re.MULTILINE)
    assert groups_of(path), f"{path} has {len(options)} options; name their groups in help_sections.py"
    assert len(titles) > 2
    assert OTHERS not in titles, f"name the groups of the options of {path} in help_sections.py"


def test_a_group_lists_options_in_its_own_order(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = fleetnas(capsys, "search", "--help")
    begin = out.partition("What to search or measure:\n")[2].partition("\n\n")[0]
    listed = re.findall(r"^  (--[a-z-]+)", begin, re.MULTILINE)
    order = groups_of("fleetnas search")["What to search or measure"]
    assert listed == [name for name in order if name in listed]
    assert listed[0] == "--supernet"


@pytest.mark.parametrize("path", EVERY)
def test_a_help_text_says_words_and_no_notation_of_a_library(capsys: pytest.CaptureFixture[str], path: str) -> None:
    """Braces around a needed argument, two brackets around another, `x>=1`."""
    _, out, _ = fleetnas(capsys, *path.split()[1:], "--help")
    usage = " ".join(out.partition("\n\n")[0].split())
    assert not re.search(r"[{}]|\[\[", usage)
    assert not re.search(r"\bx[<>]=|<=x\b", out)
    if groups_of(path):
        assert re.search(r"^Help:\n  --help ", out, re.MULTILINE)


def test_the_list_of_commands_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = fleetnas(capsys, "--help")
    titles = list(dict.fromkeys(entry.title for entry in COMMANDS.values()))
    assert re.findall(r"^(\w.*):$", out, re.MULTILINE) == ["Options", *titles]
    assert re.findall(r"^  ([a-z][\w-]+)  +\S", out, re.MULTILINE) == list(COMMANDS)
    names = re.findall(r"^  [a-z][\w-]+  +(?=\S)", out, re.MULTILINE)
    assert len({len(name) for name in names}) == 1


def test_an_option_that_a_command_cannot_use_is_not_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = fleetnas(capsys, "portfolio", "--help")
    assert "--mirror" in out
    assert "--devices" not in out


def completed(words: str, **variables: str) -> list[str]:
    """What a shell is offered for the last word."""
    place = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_FLEETNAS_COMPLETE": "complete_bash"}
    program = "from fleetnas.coordinator.cli import main; main()"
    run = waiting.run([sys.executable, "-c", program], env={**os.environ, **place, **variables})
    assert run.returncode == 0, run.stderr
    return str(run.stdout).split()


def test_names_of_runs_and_devices_are_completed(finished_run: Path) -> None:
    store = f"--store {finished_run}"
    assert completed(f"fleetnas results {store} ru") == ["run-1"]
    assert completed(f"fleetnas results {store} la") == ["latest"]
    assert completed(f"fleetnas search {store} --resume r") == ["run-1"]
    assert completed(f"fleetnas search {store} --devices pi0,p") == ["pi0,pi0", "pi0,pi1"]
    assert completed(f"fleetnas export-data {store} --device pi1") == ["pi1"]


def test_a_store_that_cannot_be_read_completes_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a store " * 100)
    assert completed(f"fleetnas results --store {tmp_path}/notes.txt r") == []
    assert completed("fleetnas results r", XDG_DATA_HOME=str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_installed_in_its_home(tmp_path: Path, shell: str) -> None:
    program = (
        "import shellingham; shellingham.detect_shell = lambda *_: "
        f"({shell!r}, '/bin/{shell}'); from fleetnas.coordinator.cli import main; main()"
    )
    home = {**os.environ, "HOME": str(tmp_path)}
    run = waiting.run([sys.executable, "-c", program, "--install-completion"], env=home)
    assert run.returncode == 0, run.stderr
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_FLEETNAS_COMPLETE" in written
    run = waiting.run([sys.executable, "-c", program, "--show-completion"], env=home)
    assert run.returncode == 0, run.stderr
    assert "_FLEETNAS_COMPLETE" in run.stdout
