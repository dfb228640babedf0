"""Write docs/cli.md, the reference of both command lines, from their own options: `python docs/cli_reference.py`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fleetnas.agent.cli.parsers import build_parser
from fleetnas.coordinator.cli.app import app
from fleetnas.coordinator.cli.help_sections import argument_word, groups_of, title_of

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """\
# Command lines

This page is made from the programs themselves, by `python docs/cli_reference.py`; a test compares it with them.
`fleetnas` runs where searches are coordinated, `fleetnas-agent` on each device. Both take `--help` behind a command.

## Exit codes

| code | meaning |
|---|---|
| 0 | done; of a search, a measurement, `watch` or `portfolio`: every target was met |
| 1 | a failure; a target was missed, a device did not finish, or `doctor` found something broken |
| 2 | wrong use: an option, a file or a value cannot be used, and nothing was begun |
| 130 | ended by Ctrl-C; what was measured is stored |
| 128 + N | `fleetnas train` was stopped by signal N, such as 143 for SIGTERM; `--resume` continues |

## Errors

An error is one line on standard error, `error: ` first: the rule, the value that breaks it, the next action. A command,
an option or a name that is not known is answered with the one that was probably meant:

```
error: `fleetnas search` has no option --bugdet; did you mean --budget? `fleetnas search --help` lists all
```

## Units

| option's value | may be written as | without a unit |
|---|---|---|
| latencies, such as of `--targets` | `20ms`, `0.02s`, `500us` | milliseconds |
| `TIME` | `90s`, `500ms`, `2h`, `1h30m` | seconds |
| counts, such as `--max-parameters` | `4M`, `300k`, `1.2G` | as it is |
| `SIZE` | `8MiB`, `20MB`, `4096` | bytes |

## Output

On a terminal, tables fit its width and break at words. Where standard output is no terminal, every row is one whole
line, for `grep`, `cut` and files; `COLUMNS=80` in the environment sets a width. `--json` prints JSON instead.
`NO_COLOR` switches colours off. Help texts have 80 columns at most.

## Completion

`fleetnas --install-completion` lets the shell (bash, zsh, fish, PowerShell) complete commands, options, values that are
chosen from a list, and names of runs and devices. It begins with the next shell. `fleetnas --show-completion` prints
the script for that.
"""


def page() -> str:
    """Return the whole page."""
    sections = [HEAD]
    for names, command in commands(typer.main.get_command(app), "fleetnas"):
        sections.append("\n".join(_typer_lines(names, command)))
    _, parsers = build_parser()
    for name, parser in parsers.items():
        sections.append("\n".join(_argparse_lines(f"fleetnas-agent {name}", parser)))
    return "\n".join(sections)


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with its words, those with commands below them too."""
    yield names, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


def _typer_lines(names: tuple[str, ...], command: Any) -> Iterator[str]:
    path = " ".join(names)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    words = [argument_word(each) for each in arguments]
    below = getattr(command, "commands", {})
    usage = " ".join([path, "[OPTIONS]", *words, *(["COMMAND ..."] if below else [])])
    yield from (f"## {path}", "", _markdown(_paragraphs(command.help or "")), "", "```text", usage, "```", "")
    if arguments:
        yield from ("| argument | |", "|---|---|")
        yield from (f"| `{argument_word(each)}` | {_cell(each.help or '')} |" for each in arguments)
        yield ""
    options = [each for each in command.params if each.param_type_name == "option"]
    groups = groups_of(path)
    titles = dict.fromkeys([*groups, *(title_of(each, groups) for each in options)])
    for title in titles:
        names_of_group = groups.get(title, ())
        found = [each for each in options if title_of(each, groups) == title]
        if found:
            yield from (f"| {title} | | default |", "|---|---|---|")
            ordered = sorted(found, key=lambda each: _place(each, names_of_group))
            yield from (f"| {_option_words(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in ordered)
            yield ""


def _place(option: Any, names: tuple[str, ...]) -> int:
    return next((names.index(name) for name in option.opts if name in names), len(names))


def _option_words(option: Any) -> str:
    metavar = "" if option.is_flag else f" {_metavar(option)}"
    names = ", ".join(sorted(option.opts, key=len))
    return _code("/".join([names, *option.secondary_opts]) + metavar)


def _metavar(option: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    descriptor = getattr(option, "type_descriptor", None)
    choices = getattr(descriptor, "choices", None) or getattr(getattr(option, "type", None), "choices", None)
    if choices:
        return "|".join(str(getattr(each, "value", each)) for each in choices)
    return "NUMBER"


def _default(option: Any) -> str:
    value = getattr(option.default, "value", option.default)
    if value is None or value is False or value == [] or option.required:
        return "*needed*" if option.required else ""
    if value is True:
        return "on"
    if option.metavar == "TIME":
        return f"{value:g}s"
    return _code(f"{value:g}" if isinstance(value, float) else str(value))


def _argparse_lines(path: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [each for each in vars(parser)["_actions"] if each.dest != "help"]
    words = [str(each.metavar or each.dest.upper()) for each in actions if not each.option_strings]
    yield from (f"## {path}", "", _markdown(_paragraphs(parser.description or "")), "")
    yield from ("```text", " ".join([path, "[OPTIONS]", *words]), "```", "")
    if actions:
        yield from ("| option | |", "|---|---|")
        for action in actions:
            yield f"| {_argparse_words(action)} | {_cell(_argparse_help(action))} |"
        yield ""
    if parser.epilog:
        yield from ("```", parser.epilog, "```", "")


def _argparse_words(action: Any) -> str:
    if not action.option_strings:
        return _code(str(action.metavar or action.dest.upper()))
    value = "|".join(map(str, action.choices)) if action.choices else action.metavar or action.dest.upper()
    return _code(", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}"))


def _argparse_help(action: Any) -> str:
    return str(action.help or "") % {**vars(action), "prog": "fleetnas-agent"}


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def _markdown(text: str) -> str:
    """Escape what Markdown would take for an HTML element."""
    return re.sub(r"<(?=\w)", r"\\<", text)


def _cell(text: str) -> str:
    return _markdown(" ".join(text.split())).replace("|", r"\|")


def _code(text: str) -> str:
    escaped = text.replace("|", r"\|")
    return f"`{escaped}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
