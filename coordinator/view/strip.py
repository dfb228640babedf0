"""Styled lines of an exact width: cheaper to lay out, many times a second, than nested tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from fleetnas.device_profiles.plain_text import PRINTABLE

PLAIN = Style.null()
DIM = Style(dim=True)
BOLD = Style(bold=True)
#: Cyan, yellow, magenta and vermilion stay apart for every common form of colour blindness; a word stands beside.
GOOD = Style(color="cyan")
WARN = Style(color="yellow", bold=True)
BAD = Style(color="magenta", bold=True)
FAILED = Style(color="#d55e00", bold=True, reverse=True)

Strip = list[Segment]


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` cells, its end replaced by an ellipsis where it is longer."""
    if width <= 0:
        return ""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def left(text: str, width: int) -> str:
    """`text` in exactly `width` cells, flush left."""
    return set_cell_size(shortened(text, width), max(0, width))


def right(text: str, width: int) -> str:
    """`text` in exactly `width` cells, flush right."""
    short = shortened(text, width)
    return " " * max(0, width - cell_len(short)) + short


def strip_width(strip: Iterable[Segment]) -> int:
    """Cells that a strip takes."""
    return sum(cell_len(segment.text) for segment in strip)


def padded(strip: Strip, width: int) -> Strip:
    """The strip cut or filled to exactly `width` cells."""
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
    return [*kept, Segment(" " * room)] if room > 0 else kept


def spread(start: Strip, end: Strip, width: int) -> Strip:
    """`start` flush left and `end` flush right; where both do not fit, the start gives way."""
    tail = padded(end, min(width, strip_width(end)))
    return padded(start, width - strip_width(tail) - (1 if tail else 0)) + ([Segment(" ")] if tail else []) + tail


def bar(fraction: float, width: int) -> Strip:
    """A progress bar."""
    filled = round(min(1.0, max(0.0, fraction)) * width)
    return [Segment("█" * filled, GOOD), Segment("░" * (width - filled), DIM)]


def boxed(title: Strip, body: Sequence[Strip], width: int, height: int) -> list[Strip]:
    """`body` in a frame of `width` x `height` cells with `title` in its upper edge."""
    top_left, top_right, low_left, low_right, across, down = "╭╮╰╯─│"
    head = padded(title, min(strip_width(title), width - 6))
    rule = across * (width - 5 - strip_width(head))
    frame = [[Segment(f"{top_left}{across} ", DIM), *head, Segment(f" {rule}{top_right}", DIM)]]
    for index in range(height - 2):
        inner = body[index] if index < len(body) else []
        frame.append([Segment(f"{down} ", DIM), *padded(inner, width - 4), Segment(f" {down}", DIM)])
    frame.append([Segment(low_left + across * (width - 2) + low_right, DIM)])
    return frame


def side_by_side(blocks: Sequence[Sequence[Strip]], widths: Sequence[int], gap: int) -> list[Strip]:
    """Blocks in columns, the shorter ones filled up with blanks."""
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
    """The strip for a terminal that cannot show anything else, as wide as before."""
    return [Segment(segment.text.encode("ascii", PRINTABLE).decode(), segment.style) for segment in strip]
