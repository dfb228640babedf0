"""Every command that a document shows, in a block or within a sentence, names commands and options that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer
from rigs.documented_commands import ROOT, commands, pages

from fleetnas.agent.cli.parsers import build_parser
from fleetnas.coordinator.cli.app import app

_PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("*.md")])
#: Those that a sentence shows: between single backticks, perhaps over the end of a line.
_IN_SENTENCES = re.compile(r"(?<!`)`((?:sudo )?(?:[\w~/.]+/)?fleetnas(?:-agent)?(?: [^`]+)?)`(?!`)")
_PROGRAM = re.compile(r"(?:\S+/)?(fleetnas|fleetnas-agent)$")
#: What click and typer add to every command.
_EVERYWHERE = {"--help", "-h"}


@cache
def _coordinator() -> Any:
    return typer.main.get_command(app)


def _known(program: str, words: list[str]) -> tuple[str, set[str]]:
    """Return the command that `words` name, as far as they do, and its options."""
    if program == "fleetnas-agent":
        _, parsers = build_parser()
        parser = parsers.get(words[0]) if words else None
        actions = [] if parser is None else vars(parser)["_actions"]
        options = {name for action in actions for name in action.option_strings}
        return " ".join([program, *words[: parser is not None]]), options
    command, path = _coordinator(), [program]
    options = {name for each in command.params for name in each.opts}
    for word in words:
        below = getattr(command, "commands", {})
        if word not in below:
            break
        command, path = below[word], [*path, word]
        options |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return " ".join(path), options


def faults(text: str) -> Iterator[str]:
    """Yield what is wrong with the commands of some lines of shell."""
    lines = text.replace("\\\n", " ").replace("\n", " ; ")
    lexer = shlex.shlex(lines.replace("...", ""), posix=True, punctuation_chars="&|;()")
    lexer.whitespace_split = True
    program, words = "", []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;()"):
            yield from _faults_of(program, words) if program else ()
            program, words = "", []
        elif program:
            words.append(word)
        elif found := _PROGRAM.match(word):
            program = found[1]


def _faults_of(program: str, words: list[str]) -> Iterator[str]:
    path, options = _known(program, words)
    named = re.fullmatch(r"[a-z][a-z-]+", words[0]) if words else None
    if path == program and named:
        yield f"{program} has no command {words[0]}"
        return
    given = {word.partition("=")[0] for word in words if re.match(r"-{1,2}[A-Za-z]", word)}
    for option in sorted(given - options - _EVERYWHERE):
        yield f"{path} has no option {option}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_commands_of_blocks_name_options_that_there_are(page: Any) -> None:
    found = [f"{command.page}:{command.line}: {fault}" for command in commands(page) for fault in faults(command.text)]
    assert not found, "\n".join(found)


def test_commands_within_sentences_name_options_that_there_are() -> None:
    shown = [
        (page, " ".join(text.split())) for page in _PAGES for text in _IN_SENTENCES.findall(page.read_text("utf-8"))
    ]
    assert len(shown) > 100
    found = [f"{page.relative_to(ROOT)}: `{text}`: {fault}" for page, text in shown for fault in faults(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("fleetnas search ... --dry-run", []),
        ("fleetnas search --bugdet 3", ["fleetnas search has no option --bugdet"]),
        ("fleetnas runs --json && fleetnas serach --local", ["fleetnas has no command serach"]),
        ("fleetnas broker init x --host y", []),
        ("fleetnas broker --hots y", ["fleetnas broker has no option --hots"]),
        ("sudo /opt/fleetnas/bin/fleetnas-agent run --brokre h", ["fleetnas-agent run has no option --brokre"]),
        ("fleetnas-agent bench model.onnx --input-shape 1x3x8x8 || echo --other", []),
        ("fleetnas finetune --target=5", ["fleetnas finetune has no option --target"]),
    ],
)
def test_that_rule_finds_what_it_should(text: str, wrong: list[str]) -> None:
    assert list(faults(text)) == wrong
