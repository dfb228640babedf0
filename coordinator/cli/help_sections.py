"""Lay out a command's arguments and options in titled groups."""

from __future__ import annotations

from typing import Any

#: Title of the options that are in no group.
OPTIONS = "Options"


def write_options(command: Any, context: Any, formatter: Any) -> None:
    """Write a command's arguments and options; options with a `rich_help_panel` stand under its title."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            sections.setdefault(_title(parameter), []).append(record)
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl(rows)


def _title(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return parameter.rich_help_panel or OPTIONS
