"""What the live view costs: processor time of a frame, and frames per second, of 12 device settings.

    python benchmarks/live_view.py

The frame is that of `tests/rigs/outcome_examples.py`, drawn on a terminal in memory. Every frame has another time in
its header, as in a running search, and one more line in its log.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rich.console import Console
from rigs.event_examples import EVENTS
from rigs.outcome_examples import STARTED_S, snapshot

from fleetnas.coordinator.view.live import LiveView

SETTINGS, FRAMES, ROUNDS = 12, 100, 5
REFRESH_PER_S = 4.0
SIZES = ((80, 24), (120, 40), (200, 50))


def frame_ms(width: int, height: int) -> float:
    """Return the processor time of one frame, ms: the median of several rounds."""
    event = next(event for event in EVENTS if event.event == "measurement")
    base = snapshot(SETTINGS)
    rounds = []
    for _ in range(ROUNDS):
        console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
        view = LiveView(console, clock=iter(range(10**6)).__next__)
        for _ in range(100):  # a log as long as it gets
            view.event(event)
        began_s = time.process_time()
        for number in range(FRAMES):
            view.event(event)
            view.update(replace(base, now_s=STARTED_S + number))
        rounds.append((time.process_time() - began_s) / FRAMES * 1e3)
        view.close()
    return statistics.median(rounds)


def main() -> int:
    """Print the figures of every size of terminal."""
    arguments = parser(__doc__).parse_args()
    figures = Figures()
    for width, height in SIZES:
        each_ms = frame_ms(width, height)
        figures.add(f"frame_{width}x{height}_processor_ms", each_ms)
        figures.add(f"frames_per_second_{width}x{height}", 1e3 / each_ms)
        figures.add(f"share_of_a_core_{width}x{height}", each_ms * REFRESH_PER_S / 1e3, "< 0.02")
    return figures.report(as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
