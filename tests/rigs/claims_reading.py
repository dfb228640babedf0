"""State of reading what a search printed, shared by the checks of the view and of the summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rigs.claims_files import NUMBER, ResultFiles, Setting, target_agrees

ADVICE = (
    r"these latencies are those of a disturbed device: let nothing else run on it and keep it cool, or measure it "
    r"under --conditions sustained"
)
TOTAL = r"(?P<met>\d+) of (?P<asked>\d+) targets? met"
WARNING = (
    r"WARNING: (?P<slowed>\d+) of (?P<measured>\d+) measurements slowed down on (?P<label>\S+?)"
    r"(?:, up to (?P<slowdown>NUM)x)?"
)
OFTEN = r"WARNING: more than a quarter of the measurements slowed down on "

Found = dict[str, str]


@dataclass
class Said:
    """What was printed of one device setting so far."""

    measured: int = 0
    failed: int = 0
    budget: int = 0
    regime_changes: int = 0
    warned: bool = False
    decided: Counter[float] = field(default_factory=Counter)
    rows: Counter[float] = field(default_factory=Counter)
    headed: bool = False
    quality: bool = False


class Reading:
    """What was printed so far, and what contradicts the files; `problems` are the contradictions."""

    def __init__(self, files: ResultFiles) -> None:
        self.files, self.problems = files, list[str]()
        self.said = {label: Said() for label in files.settings}
        self.line = ""
        self.in_summary: Setting | None = None
        self.automatic = False
        self.totals_told = self.ends = self.share_told = 0
        self.warned_at_the_end = False
        self.warned_in_summary: set[str] | None = None

    def report(self, problem: str) -> None:
        """Note a contradiction of the present line."""
        self.problems.append(f"{problem}: {self.line!r}")

    def require(self, truth: bool, otherwise: str) -> None:
        """Note a contradiction unless `truth`."""
        if not truth:
            self.report(otherwise)

    def setting(self, found: Found) -> tuple[Setting, Said] | None:
        """The device setting that the line is about."""
        setting = self.files.settings.get(found["label"])
        if setting is None:
            self.report("no such device setting")
            return None
        return setting, self.said[found["label"]]

    def target(self, setting: Setting, text: str) -> dict[str, Any] | None:
        """The target of the results that the line is about."""
        for target in setting.targets:
            if target_agrees(text, target["target_ms"]):
                return target
        self.report("no such target in the results")
        return None

    def report_all(self, problems: list[str]) -> None:
        """Note contradictions of the present line."""
        for problem in problems:
            self.report(problem)

    def check_totals(self, found: Found) -> None:
        """Compare `met` of `asked` targets."""
        self.totals_told += 1
        met, asked = self.files.totals
        self.require((int(found["met"]), int(found["asked"])) == (met, asked), f"{met} of {asked} targets were met")

    def check_warning(self, found: Found, setting: Setting, measured: int) -> None:
        """Compare the loud line on one device setting with its first measurements."""
        rows = setting.counted[:measured]
        slowed = sum(row.quality == "slowed" for row in rows)
        told = (int(found["slowed"]), int(found["measured"]))
        self.require(told == (slowed, measured), f"{slowed} of {measured} were slowed")
        self.require(4 * slowed > measured, "that is not more than a quarter")
        self.check_slowdown(found["slowdown"], [row.slowdown for row in rows if row.slowdown is not None])

    def check_slowdown(self, told: str, known: list[float]) -> None:
        """Compare the largest slow-down; empty where none is known."""
        largest = f"{max(known):.2f}" if known else ""
        self.require(told == largest, f"the largest slow-down was {largest or 'unknown'}")

    def nothing(self, found: Found) -> None:
        """A line without a claim."""


def claim(pattern: str, check: Callable[[Any, Found], None]) -> tuple[re.Pattern[str], Callable[[Any, Found], None]]:
    """A kind of line and its check; `NUM` stands for a number and `ADVICE` for the advice on a disturbed device."""
    return re.compile(pattern.replace("NUM", NUMBER).replace("ADVICE", ADVICE)), check
