"""The demonstration on a machine that is busy otherwise, beside the same on the machine as it is.

`fleetnas demo` runs twice as a user starts it, its output going to a file: once alone, once with one process per core
that never rests. Everything that it prints is checked against the measurements that it leaves (`tests/rigs/claims.py`).
benchmarks/README.md explains the figures. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rigs.claims import contradictions
from rigs.claims_files import ResultFiles

_DEMO = "from fleetnas.coordinator.cli import main; main()"
_NEIGHBOUR = "import os\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
#: So wide that no line of the summary is broken.
_COLUMNS = "400"
_MOST_S = 1800.0


@dataclass(frozen=True)
class Demo:
    """One run of the demonstration."""

    printed: str
    folder: Path
    seconds: float

    @property
    def problems(self) -> list[str]:
        """Printed claims that the measurements contradict."""
        return contradictions(self.printed, self.folder)

    @property
    def targets(self) -> list[list[dict[str, Any]]]:
        """Targets by device setting."""
        return [setting.targets for setting in ResultFiles.read(self.folder).settings.values()]

    @property
    def accuracies(self) -> list[float]:
        """Evaluated accuracy of every winner, a fraction."""
        every = [target for targets in self.targets for target in targets]
        return [target["accuracy"] for target in every if target["met"] and target["accuracy"] is not None]

    @property
    def met(self) -> int:
        """Number of targets met."""
        return sum(target["met"] for targets in self.targets for target in targets)

    @property
    def ranges(self) -> list[float]:
        """Highest over lowest target of each device setting; 1 where there is none."""
        return [max(known, default=1.0) / min(known, default=1.0) for known in map(_known, self.targets)]


def _known(targets: list[dict[str, Any]]) -> list[float]:
    return [target["target_ms"] for target in targets]


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """One process per core that never rests, each in a session of its own as another user's program is."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    commands = [[sys.executable, "-c", _NEIGHBOUR.format(core=core)] for core in cores]
    neighbours = [subprocess.Popen(command, start_new_session=True) for command in commands]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def demo(folder: Path, seed: int) -> Demo:
    """Run the demonstration into `folder`."""
    begin_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", _DEMO, "demo", "--out", str(folder), "--seed", str(seed)],
        capture_output=True,
        text=True,
        timeout=_MOST_S,
        check=False,
        env={**os.environ, "COLUMNS": _COLUMNS},
        start_new_session=True,
    )
    seconds = time.monotonic() - begin_s
    (folder / "printed.txt").write_text(ended.stdout)
    if not (folder / "results.json").is_file():
        raise SystemExit(f"the demonstration left no results:\n{ended.stdout}{ended.stderr}")
    return Demo(ended.stdout, folder, seconds)


def main() -> int:
    """Run both, and print the figures."""
    arguments = parser(__doc__)
    arguments.add_argument("--seed", type=int, default=0, help="of both runs")
    arguments.add_argument("--keep", type=Path, help="keep results and output of both runs in this folder")
    options = arguments.parse_args()
    figures = Figures()
    figures.add("load_average_before", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as folder:
        directory = options.keep or Path(folder)
        undisturbed = demo(directory / "undisturbed", options.seed)
        with busy_cores():
            disturbed = demo(directory / "disturbed", options.seed)
        problems = [*undisturbed.problems, *disturbed.problems]
        for problem in problems:
            print(problem, file=sys.stderr)
        figures.add("false_statements", len(problems), "== 0")
        figures.add("least_range_of_targets", min(disturbed.ranges, default=0.0), ">= 3")
        # Without a winner on one side there is nothing to compare: that misses the bar.
        quiet, busy = ([100.0 * share for share in run.accuracies] or [0.0] for run in (undisturbed, disturbed))
        lost = statistics.fmean(quiet) - statistics.fmean(busy)
        figures.add("accuracy_difference_points", lost if disturbed.accuracies else 100.0, "<= 1")
        figures.add("targets_met_undisturbed", undisturbed.met)
        figures.add("targets_met_disturbed", disturbed.met)
        figures.add("seconds_undisturbed", undisturbed.seconds)
        figures.add("seconds_disturbed", disturbed.seconds)
    return figures.report(as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
