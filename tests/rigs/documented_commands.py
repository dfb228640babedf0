"""The commands of the documents, as they are written: in fenced `sh` blocks, in unnamed ones, and indented.

Besides the programs of this project these are Dask's, variables that a later command reads, and loops.

A comment `<!-- not run here: REASON -->` above a block, or above the sentence before it, marks commands that need
hardware or hosts which a test does not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Programs of this project, with or without `sudo`, another machine, variables and a folder; and what is around them.
_OURS = re.compile(
    r"^(?:sudo |ssh \S+ )?(?:[A-Z_]+=\S+ )*(?:\S+/)?fleetnas(?:-agent)?(?= |$)"
    r"|^dask (?:scheduler|worker)\b|^export FLEETNAS_\w+=|^card=|^for \w+ in .*; do\n(?s:.*)fleetnas"
)
_FENCE = re.compile(r"^\s*```(\w*)\s*$")
_INDENTED = re.compile(r"^ {4,}\S")
_MARK = re.compile(r"^\s*<!-- not run here: (.+) -->$")
_COMMENT = re.compile(r"\s{2,}#.*$")


@dataclass(frozen=True)
class Command:
    """One command line; `mark` says why it is not run, where it is not."""

    page: str
    line: int
    text: str
    mark: str | None = None


def pages() -> list[Path]:
    """Return every document with commands for users."""
    found = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "devices").glob("*.md")),
    ]
    return [page for page in found if commands(page)]


def commands(page: Path) -> list[Command]:
    """Return the commands of one page, in their order."""
    name = page.relative_to(ROOT).as_posix()
    found: list[Command] = []
    fence: str | None = None
    mark: str | None = None
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    in_block = False
    for number, line in lines:
        if marked := _MARK.match(line):
            mark, in_block = marked[1], False
            continue
        if edge := _FENCE.match(line):
            if fence is not None:
                mark = None
            fence = edge[1] if fence is None else None
            continue
        code = fence in ("", "sh") if fence is not None else bool(_INDENTED.match(line))
        if not code:
            if in_block and line.strip():
                mark, in_block = None, False
            continue
        in_block = True
        text = _COMMENT.sub("", line.strip())
        while text.endswith("\\"):
            text = f"{text[:-1].rstrip()} {_COMMENT.sub('', next(lines)[1].strip())}"
        if text.endswith("; do"):
            while not text.endswith("\ndone"):
                text = f"{text}\n{next(lines)[1].strip()}"
        if _OURS.match(text):
            found.append(Command(name, number, text, mark))
    return found
