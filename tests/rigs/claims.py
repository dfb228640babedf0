"""Checker of a finished search: reads every claim that it printed against the files that it left.

`contradictions` takes the plain lines and the summary as one text, printed so wide that no line is broken, and the
folder with `results.json`, `measurements.csv` and the model files. It reads them by itself, without the product's
readers and wording. A line that says anything of latencies, targets or measurements in words that are not known here
is reported as well, so that no new kind of claim goes unchecked.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

from rigs.claims_files import ResultFiles, Setting, results_problems
from rigs.claims_summary import SUMMARY_CLAIMS, SummaryReading
from rigs.claims_view import VIEW_CLAIMS, ViewReading

_TIME = re.compile(r"\d\d:\d\d:\d\d ")
_CLAIM_WORDS = re.compile(
    r"\bms\b|%|\bmet\b|\bmissed\b|infeasible|slowed|slow-down|\bmeasure|\btargets?\b|fastest|verified|winner"
)
_LEAST_APART = 1.05


def contradictions(printed: str, folder: Path) -> list[str]:
    """Everything in `printed` and in the results under `folder` that the measurements there contradict."""
    files = ResultFiles.read(folder)
    reading = _Reading(files)
    for line in printed.splitlines():
        reading.take(line)
    reading.end()
    return [*reading.problems, *results_problems(files)]


class _Reading(ViewReading, SummaryReading):
    """Reads the whole output, one line after the other."""

    def take(self, line: str) -> None:
        """Check one line."""
        self.line = line.strip()
        timed = _TIME.match(line)
        text = (line[timed.end() :] if timed else line).strip()
        for pattern, check in VIEW_CLAIMS if timed else SUMMARY_CLAIMS:
            found = pattern.fullmatch(text)
            if found is not None:
                check(self, {name: value or "" for name, value in found.groupdict().items()})
                return
        if _CLAIM_WORDS.search(text):
            self.report("not understood")

    def end(self) -> None:
        """Check what should have been printed."""
        self.line = "the end"
        self.require(self.ends == 1, f"{self.ends} lines on the end of the run")
        self.require(self.totals_told >= 2, "view and summary do not both count the targets")
        slowed = {label for label, setting in self.files.settings.items() if setting.often_slowed}
        self.require(self.warned_at_the_end == bool(slowed), "the end is loud exactly if a device was slowed often")
        self.require(
            (self.warned_in_summary or set()) == slowed,
            f"the summary warns of {self.warned_in_summary}, not {slowed}",
        )
        for label, said in self.said.items():
            setting = self.files.settings[label]
            self.line = label
            self.require(said.measured == len(setting.counted), f"{said.measured} measurements were printed")
            self.require(said.failed == len(setting.failures), f"{said.failed} failures were printed")
            self.require(said.headed and said.quality, "the summary leaves it out")
            fewest, most = setting.lasting_speeds - 1, max(0, len(setting.regime_starts) - 1)
            self.require(fewest <= said.regime_changes <= most, "regimes changed unsaid, or not at all")
            decided = Counter(target["target_ms"] for target in setting.targets if not target["open"])
            if setting.record["status"] == "finished":
                self.require(said.decided == decided, f"ends of {sorted(said.decided)} were printed")
            self.require(said.rows == Counter(t["target_ms"] for t in setting.targets), "table and results differ")
            if self.automatic:
                self._check_apart(setting)

    def _check_apart(self, setting: Setting) -> None:
        targets = [target["target_ms"] for target in setting.targets]
        for tighter, looser in itertools.pairwise(targets):
            apart = looser >= tighter * _LEAST_APART * (1 - 1e-9)
            self.require(apart, f"automatic targets {tighter} and {looser} are less than 5 % apart")
