"""Classes of commands: options that were not given cost nothing, and a command group suggests what was meant."""

from __future__ import annotations

import copy
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from fleetnas.coordinator.cli.help_sections import NO_BREAK, argument_word, write_options
from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

try:  # typer has had a click of its own since 0.28
    from typer._click.shell_completion import CompletionItem
except ImportError:
    from click.shell_completion import CompletionItem  # type: ignore[assignment, no-redef, import-not-found, unused-ignore]

_MOST_CHARACTERS = 80


class _Option(TyperOption):
    """An option whose default value is taken as it is."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Return the value, parsed where it was given."""
        return super().process_value(ctx, value) if _is_parsed(self, ctx, value) else _unparsed_value(self, value)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what a shell may complete a value to."""
        return _stored(self, ctx, incomplete) or super().shell_complete(ctx, incomplete)


class _Argument(TyperArgument):
    """An argument whose default value is taken as it is."""

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the argument as the usage line shows it."""
        return [argument_word(self)]

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Return the value, parsed where it was given."""
        return super().process_value(ctx, value) if _is_parsed(self, ctx, value) else _unparsed_value(self, value)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what a shell may complete a value to."""
        return _stored(self, ctx, incomplete) or super().shell_complete(ctx, incomplete)


def _is_parsed(parameter: Any, context: Any, value: Any) -> bool:
    """Whether a value is parsed: one that was given and is more than a text, and a missing one, which is an error.

    typer parses default values and texts too, and loads pydantic for that, which takes longer than all of a help text.
    """
    if context.resilient_parsing or (isinstance(value, str) and _takes_any_text(parameter)):
        return False
    source = getattr(context.get_parameter_source(parameter.name), "name", "")
    return source not in ("DEFAULT", "DEFAULT_MAP") or bool(parameter.required)


def _takes_any_text(parameter: Any) -> bool:
    """Whether a parameter is a text as it was given, known of the typer that has descriptors of types."""
    descriptor = getattr(parameter, "type_descriptor", None)
    if descriptor is None or descriptor.annotation is not str or parameter.callback is not None:
        return False
    own = (getattr(descriptor.parameter_info, name, None) for name in ("parser", "click_type"))
    return not parameter.multiple and parameter.nargs == 1 and all(each is None for each in own)


def _unparsed_value(parameter: Any, value: Any) -> Any:
    return () if value is None and (parameter.multiple or parameter.nargs == -1) else value


def _stored(parameter: Any, context: Any, incomplete: str) -> list[Any]:
    """Return completions from the store: names of runs or devices, where the parameter is of these."""
    from fleetnas.coordinator.cli.name_completion import stored_names

    return [CompletionItem(name) for name in stored_names(parameter, context, incomplete)]


class _Helping:
    """Mixin of commands: `--help` is an option of this module."""

    _own_help: Any = None

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option `--help`, the same object each time."""
        if self._own_help is None:
            found = super().get_help_option(ctx)  # type: ignore[misc]
            self._own_help = None if found is None else _with_class(found)
        return self._own_help

    def get_help(self, ctx: Any) -> str:
        """Return the help text, in which no option's name is broken at a hyphen."""
        return str(super().get_help(ctx)).replace(NO_BREAK, "-")  # type: ignore[misc]


class Command(_Helping, TyperCommand):
    """A command with its options in groups."""

    def __init__(self, name: str | None, *, params: list[Any] | None = None, **settings: Any) -> None:
        super().__init__(name, params=_of_own_classes(params), **settings)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options in their groups."""
        write_options(self, ctx, formatter)


class Group(_Helping, TyperGroup):
    """A command with commands below it."""

    def __init__(self, *, params: list[Any] | None = None, **settings: Any) -> None:
        super().__init__(params=_of_own_classes(params), **settings)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in their groups, and the commands."""
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that arguments begin with; `UsageError` suggests one where there is none."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            path, word = ctx.command_path, plain(name)[:_MOST_CHARACTERS]
            near = did_you_mean(word, self.list_commands(ctx))
            raise UsageError(f"`{path}` has no command {word!r}{near} `{path} --help` lists all")
        return super().resolve_command(ctx, args)


class CommandApp(typer.Typer):
    """An application, or a part of one, all of whose commands are of this module's classes."""

    def __init__(self, *, cls: type[TyperGroup] = Group, **settings: Any) -> None:
        super().__init__(
            cls=cls, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **settings
        )

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Return a decorator that adds a command."""
        return super().command(name, cls=Command, **settings)


def _of_own_classes(parameters: list[Any] | None) -> list[Any]:
    return [_with_class(parameter) for parameter in parameters or []]


def _with_class(parameter: Any) -> Any:
    """Return the same parameter as one of this module; one that is not typer's, as it is."""
    own = next(
        (own for kind, own in ((TyperArgument, _Argument), (TyperOption, _Option)) if type(parameter) is kind), None
    )
    if own is None:
        return parameter
    found = copy.copy(parameter)
    found.__class__ = own
    return found
