"""Tables of text that fit a terminal and break at words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

#: Cells between two columns.
_GAP = 2


def word_table(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int, right: Sequence[str] = ()) -> Table:
    """Lay out rows without borders, in `width` cells.

    Where it is too narrow, columns become narrower, and a cell breaks between words. A word is folded only where the
    longest words of all columns have no room beside each other. The columns named in `right` are aligned there.
    """
    cells = [tuple(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for heading, column_width in zip(headings, _widths([tuple(headings), *cells], width), strict=True):
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(heading, overflow="fold", width=column_width, justify=justify)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the width of each column: all of its text if there is room, at least its longest word if there is less."""
    columns = list(zip(*rows, strict=True))
    natural = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    room = width - _GAP * (len(columns) - 1)
    if sum(natural) <= room:
        return natural
    least = [max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    while sum(least) > room and max(least) > 1:
        least[least.index(max(least))] -= 1
    # What is left goes to the column that lacks most, cell by cell.
    for _ in range(room - sum(least)):
        lacking = [have - full for have, full in zip(least, natural, strict=True)]
        least[lacking.index(min(lacking))] += 1
    return least
