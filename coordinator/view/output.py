"""Standard output of a command: a terminal's width on a terminal, and whole lines anywhere else."""

from __future__ import annotations

import os

from rich.console import Console

#: Cells of a line where standard output is no terminal: more than any table has.
WHOLE_LINES = 10_000


def output_console() -> Console:
    """Return a console on standard output.

    Tables fit the terminal. In a pipe or a file no line is broken, so that `grep` and `cut` find whole rows; `$COLUMNS`
    sets another width.
    """
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=WHOLE_LINES)
