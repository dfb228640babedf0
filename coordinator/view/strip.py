"""Styled lines of an exact width, which are faster to lay out many times a second than nested tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from fleetnas.device_profiles.plain_text import PRINTABLE

PLAIN = Style.null()
DIM = Style(dim=True)
BOLD = Style(bold=True)
#: A sign or a word stands beside every colour: for common forms of colour blindness some of them are near each other.
GOOD = Style(color="cyan")
WARN = Style(color="yellow", bold=True)
BAD = Style(color="magenta", bold=True)
_RED = "#e5383b"
#: For a device that failed: its state, and the words about it.
FAILED = Style(color=_RED, bold=True, reverse=True)
FAILED_TEXT = Style(color=_RED, bold=True)

Strip = list[Segment]


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` cells, its end replaced by an ellipsis where it is longer."""
    if width <= 0:
        return ""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def left(text: str, width: int) -> str:
    """Return `text` in exactly `width` cells, flush left."""
    return set_cell_size(shortened(text, width), max(0, width))


def right(text: str, width: int) -> str:
    """Return `text` in exactly `width` cells, flush right."""
    short = shortened(text, width)
    return " " * max(0, width - cell_len(short)) + short


def strip_width(strip: Iterable[Segment]) -> int:
    """Return the number of cells that a strip takes."""
    return sum(cell_len(segment.text) for segment in strip)


def padded(strip: Strip, width: int) -> Strip:
    """Cut or fill a strip to exactly `width` cells."""
    room = width
    kept: Strip = []
    for segment in strip:
        cells = cell_len(segment.text)
        if cells > room:
            kept.append(Segment(shortened(segment.text, room), segment.style))
            room -= cell_len(kept[-1].text)
            break
        kept.append(segment)
        room -= cells
    if room > 0 and kept and not kept[-1].style:
        kept[-1] = Segment(kept[-1].text + " " * room)
        return kept
    return [*kept, Segment(" " * room)] if room > 0 else kept


def justified(start: Strip, end: Strip, width: int) -> Strip:
    """Return `start` flush left and `end` flush right; where both do not fit, the start is cut."""
    tail = padded(end, min(width, strip_width(end)))
    return padded(start, width - strip_width(tail) - (1 if tail else 0)) + ([Segment(" ")] if tail else []) + tail


def bar(fraction: float, width: int, style: Style = GOOD) -> Strip:
    """Return a progress bar; `fraction` is in [0, 1], and beyond it the bar is full."""
    filled = round(min(1.0, max(0.0, fraction)) * width)
    return [Segment("█" * filled, style), Segment("░" * (width - filled), DIM)]


def boxed(title: Strip, body: Sequence[Strip], width: int, height: int, edge: Style = DIM) -> list[Strip]:
    """Return `body` in a frame of `width` x `height` cells with `title` in its upper edge."""
    top_left, top_right, low_left, low_right, across, down = "╭╮╰╯─│"
    head = padded(title, min(strip_width(title), width - 6))
    rule = across * (width - 5 - strip_width(head))
    frame = [[Segment(f"{top_left}{across} ", edge), *head, Segment(f" {rule}{top_right}", edge)]]
    for index in range(height - 2):
        inner = body[index] if index < len(body) else []
        frame.append([Segment(f"{down} ", edge), *padded(inner, width - 4), Segment(f" {down}", edge)])
    frame.append([Segment(low_left + across * (width - 2) + low_right, edge)])
    return frame


def side_by_side(blocks: Sequence[Sequence[Strip]], widths: Sequence[int], gap: int) -> list[Strip]:
    """Lay out blocks in columns, the shorter ones filled up with blanks."""
    lines: list[Strip] = []
    for index in range(max(len(block) for block in blocks)):
        line: Strip = []
        for column, (block, width) in enumerate(zip(blocks, widths, strict=True)):
            if column:
                line.append(Segment(" " * gap))
            line += padded(list(block[index]) if index < len(block) else [], width)
        lines.append(line)
    return lines


def in_ascii(strip: Strip) -> Strip:
    """Return a strip in ASCII for a terminal that shows nothing else, as wide as before."""
    return [Segment(segment.text.encode("ascii", PRINTABLE).decode(), segment.style) for segment in strip]
