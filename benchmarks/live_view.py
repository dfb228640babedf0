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

from rich.console import Console
from rigs.event_examples import EVENTS
from rigs.outcome_examples import STARTED_S, snapshot

from fleetnas.coordinator.view.live import LiveView

SETTINGS, FRAMES, ROUNDS = 12, 100, 5
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


def main() -> None:
    """Print a line per size of terminal."""
    for width, height in SIZES:
        each = frame_ms(width, height)
        share = each * 4.0 / 1e3
        print(
            f"{width}x{height}: {each:.2f} ms of processor time a frame, {1e3 / each:.0f} frames per second; "
            f"at 4 frames per second {100 * share:.1f} % of one core"
        )


if __name__ == "__main__":
    main()
