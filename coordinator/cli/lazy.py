"""Commands whose modules are loaded when they run, or when their own help is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer

from fleetnas.coordinator.cli.command_classes import Command, CommandApp, Group


@dataclass(frozen=True)
class CommandEntry:
    """One command as the list of commands shows it, and the module that has it."""

    module: str
    """Name of a module of this room, whose `register` adds the command to a `typer.Typer`."""
    summary: str
    """First sentence of the command's help."""
    title: str = "Commands"
    """Of the commands among which the list shows it; commands of one title stand together."""


class LazyCommands(Mapping[str, Any]):
    """The commands by name, in the order of the list; a command is loaded when it is taken out."""

    def __init__(self, entries: Mapping[str, CommandEntry]) -> None:
        self.entries = entries
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded |= _commands_of(self.entries[name].module)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class UnloadedCommand(Command):
    """A command's name and summary; the command itself is loaded when arguments are parsed for it."""

    def __init__(self, name: str, commands: LazyCommands) -> None:
        super().__init__(name, short_help=commands.entries[name].summary, rich_markup_mode=None)
        self._commands = commands

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Load the command, and parse its arguments."""
        return self._commands[self.name or ""].make_context(info_name, args, parent=parent, **extra)


class LazyGroup(Group):
    """A group whose list of commands is known without loading them."""

    #: Set by a subclass.
    entries: Mapping[str, CommandEntry] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = LazyCommands(self.entries)  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of the list."""
        return list(self.entries)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under their titles, all summaries in one column."""
        titles = dict.fromkeys(entry.title for entry in self.entries.values())
        width = max(map(len, self.entries))
        for title in titles:
            found = {name: entry for name, entry in self.entries.items() if entry.title == title}
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.summary) for name, entry in found.items()])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name, not loaded yet; None where there is none."""
        return UnloadedCommand(cmd_name, self.commands) if cmd_name in self.entries else None  # type: ignore[arg-type]


def _commands_of(module: str) -> dict[str, Any]:
    """Load a module of this room; returns the commands that it registers, by name."""
    app = CommandApp()
    app.callback()(_nothing)  # so that the application has commands below it, also where there is one alone
    import_module(f"{__package__}.{module}").register(app)
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def _nothing() -> None:
    """Do nothing."""
