"""Files that a finished search left, read without the product's readers, and what they contradict in each other."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
#: Below this share of the level that a latency was stated at, a reference's lower level restates it.
_SAME_LEVEL = 0.92
#: The typical slow-down may be extrapolated a little beyond the slow-downs that were measured.
_BEYOND = 1.1


def agrees(text: str, value_ms: float) -> bool:
    """Whether a printed latency is `value_ms` rounded: to the digits that are printed, or to three significant ones."""
    printed = 10.0 ** int(Decimal(text).as_tuple().exponent)
    third = max(10.0 ** (math.floor(math.log10(value_ms)) - 2), 0.001) if value_ms > 0 else 0.001
    return abs(float(text) - value_ms) <= 0.5 * min(printed, third) * (1 + 1e-6)


def target_agrees(text: str, target_ms: float) -> bool:
    """Whether a printed target is `target_ms` in four significant digits."""
    return abs(float(text) / target_ms - 1) < 6e-4


def percent_agrees(text: str, percent: float) -> bool:
    """Whether a printed percentage is `percent` with one decimal."""
    return abs(float(text) - percent) <= 0.05 * (1 + 1e-6)


@dataclass(frozen=True)
class Row:
    """One measurement of `measurements.csv`."""

    cells: dict[str, str]

    def _number(self, name: str) -> float | None:
        return float(self.cells[name]) if self.cells[name] else None

    @property
    def counted(self) -> bool:
        return self.cells["counted"] == "true"

    @property
    def purpose(self) -> str:
        return self.cells["purpose"]

    @property
    def fingerprint(self) -> str:
        return self.cells["fingerprint"]

    @property
    def quality(self) -> str:
        return self.cells["quality"]

    @property
    def sha256(self) -> str:
        return self.cells["model_sha256"]

    @property
    def architecture(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cells["architecture"])
        return found

    @property
    def median_ms(self) -> float:
        return float(self.cells["median_ms"])

    @property
    def half_width_percent(self) -> float:
        return float(self.cells["half_width_percent"])

    @property
    def undisturbed_ms(self) -> float | None:
        return self._number("undisturbed_ms")

    @property
    def slowdown(self) -> float | None:
        return None if self.undisturbed_ms is None else self.median_ms / self.undisturbed_ms

    @property
    def predicted_ms(self) -> float | None:
        return self._number("predicted_ms")

    @property
    def predicted_accuracy(self) -> float | None:
        return self._number("predicted_accuracy")

    @property
    def target_ms(self) -> float | None:
        return self._number("target_ms")

    @property
    def uses_budget(self) -> bool:
        return self.purpose != "verification" and self.target_ms is None

    @property
    def levels_ms(self) -> list[float]:
        return [float(level) for level in self.cells["levels_ms"].split()]

    @property
    def reference(self) -> int | None:
        """Place of the reference among the levels; None where the measurement had none."""
        reference_ms = self._number("reference_ms")
        if reference_ms is None or not self.levels_ms:
            return None
        return min(range(len(self.levels_ms)), key=lambda place: abs(self.levels_ms[place] - reference_ms))


@dataclass(frozen=True)
class Setting:
    """One device setting: its record in `results.json` and its rows of `measurements.csv`."""

    record: dict[str, Any]
    rows: list[Row]

    @property
    def label(self) -> str:
        return f"{self.record['device']}/{self.record['runtime']}"

    @property
    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.record["targets"]
        return found

    @property
    def counted(self) -> list[Row]:
        return [row for row in self.rows if row.counted]

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [failure for failure in self.record["failures"] if failure["counted"]]

    @property
    def budget_used(self) -> int:
        failed = sum(f["purpose"] != "verification" and f["target_ms"] is None for f in self.failures)
        return failed + sum(row.uses_budget for row in self.counted)

    @property
    def slowed(self) -> int:
        return sum(row.quality == "slowed" for row in self.counted)

    @property
    def often_slowed(self) -> bool:
        return 4 * self.slowed > len(self.counted)

    @property
    def regime_starts(self) -> set[float]:
        """When the device is said to have taken on a lasting speed."""
        return {float(row.cells["regime_unix_s"]) for row in self.counted} - {0.0}

    @property
    def lasting_speeds(self) -> int:
        """Regimes that are each at another speed than the one before; a restarted agent begins one at the same."""
        count, last = 0, None
        for start in sorted(self.regime_starts):
            rows = [row for row in self.counted if float(row.cells["regime_unix_s"]) == start]
            known = [row.median_ms / float(row.cells["undisturbed_ms"]) for row in rows if row.cells["undisturbed_ms"]]
            speed = statistics.median(known) if known else None
            same = count and (last is None or speed is None or max(last, speed) <= 1.05 * min(last, speed))
            if not same:
                count, last = count + 1, speed
            elif last is None:
                last = speed
        return count

    def of(self, architecture: dict[str, Any] | None) -> list[Row]:
        """The measurements of one subnet."""
        return [row for row in self.counted if row.architecture == architecture]

    def fingerprint(self, architecture: dict[str, Any] | None) -> str:
        """The short name of a measured subnet."""
        return next((row.fingerprint for row in self.of(architecture)), "never measured")

    def undisturbed_ms(self, row: Row) -> float | None:
        """A row's latency at undisturbed speed, restated at the least level that its reference turned out to have."""
        if row.undisturbed_ms is None or row.reference is None:
            return row.undisturbed_ms
        count = len(row.levels_ms)
        least = min(r.levels_ms[row.reference] for r in self.counted if len(r.levels_ms) == count)
        change = least / row.levels_ms[row.reference]
        return row.undisturbed_ms * change if change < _SAME_LEVEL else row.undisturbed_ms

    def may_be_typical(self, rows: list[Row], told_ms: float) -> bool:
        """Whether some run of `rows` would take `told_ms` at a slow-down within those that this setting has shown.

        A run at unknown speed is only an upper bound.
        """
        known = [(row, ms) for row in self.counted if (ms := self.undisturbed_ms(row)) is not None]
        slowdowns = [row.median_ms / ms for row, ms in known]
        if any(self.undisturbed_ms(row) is None and told_ms <= row.median_ms * 1.005 for row in rows):
            return True
        if any(agrees_closely(told_ms, row.median_ms) for row in rows):
            return True
        of_rows = [ms for row, ms in known if row in rows]
        return bool(of_rows) and (
            min(of_rows) * min(slowdowns) / _BEYOND <= told_ms <= max(of_rows) * max(slowdowns) * _BEYOND
        )


def agrees_closely(one: float, other: float) -> bool:
    """Whether two latencies are the same in three digits."""
    return abs(one / other - 1) <= 0.005


@dataclass(frozen=True)
class ResultFiles:
    """The folder that a finished search left."""

    folder: Path
    results: dict[str, Any]
    settings: dict[str, Setting]

    @classmethod
    def read(cls, folder: Path) -> ResultFiles:
        """Read `results.json` and `measurements.csv`."""
        results = json.loads((folder / "results.json").read_text())
        with (folder / "measurements.csv").open(newline="") as file:
            rows = [Row(cells) for cells in csv.DictReader(file)]
        settings = [
            Setting(
                record,
                [r for r in rows if (r.cells["device"], r.cells["runtime"]) == (record["device"], record["runtime"])],
            )
            for record in results["fleet"]
        ]
        return cls(folder, results, {setting.label: setting for setting in settings})

    @property
    def totals(self) -> tuple[int, int]:
        """Targets met, and asked for."""
        met = sum(target["met"] for setting in self.settings.values() for target in setting.targets)
        asked = sum(max(s.record["targets_asked"], len(s.targets)) for s in self.settings.values())
        return met, asked

    @property
    def status(self) -> str:
        """How the run ended."""
        met, asked = self.totals
        finished = all(setting.record["status"] == "finished" for setting in self.settings.values())
        return "failed" if not met else "complete" if finished and met == asked else "partial"


def results_problems(files: ResultFiles) -> list[str]:
    """Contradictions between `results.json`, `measurements.csv`, the model files and their cards."""
    problems = []
    results = files.results
    if (results["targets_met"], results["targets_asked"]) != files.totals:
        problems.append(
            f"results.json counts {results['targets_met']} of {results['targets_asked']}, not {files.totals}"
        )
    for setting in files.settings.values():
        problems += [f"{setting.label}: {problem}" for problem in _setting_problems(setting)]
        for target in setting.targets:
            where = f"{setting.label}, {target['target_ms']} ms"
            problems += [f"{where}: {problem}" for problem in met_problems(setting, target)]
            problems += [f"{where}: {problem}" for problem in _model_problems(files, setting, target)]
    return problems


def _setting_problems(setting: Setting) -> list[str]:
    problems, record = [], setting.record
    counts = Counter(row.quality for row in setting.counted)
    slowdowns = [row.slowdown for row in setting.counted if row.slowdown is not None]
    counted = {
        **{name: counts[name] for name in ("ok", "noisy", "slowed")},
        "unknown_speed": len(setting.counted) - len(slowdowns),
        "largest_slowdown": max(slowdowns, default=None),
    }
    if record["quality"] != counted:
        problems.append(f"quality in results.json is {record['quality']}, of the measurements {counted}")
    verifications = sum(row.purpose == "verification" for row in setting.counted)
    if (record["measurements"], record["verifications"]) != (setting.budget_used, verifications):
        problems.append(f"{setting.budget_used} measurements and {verifications} verifications are in the table")
    best: dict[str, Any] | None = None
    for target in setting.targets:
        if best is not None and not target["met"]:
            problems.append(f"{target['target_ms']} ms is not met, though {best['target_ms']} ms is")
        if target["met"]:
            if best is not None and (target["predicted_accuracy"] or 0.0) < (best["predicted_accuracy"] or 0.0):
                problems.append(f"the winner of {target['target_ms']} ms is worse than that of {best['target_ms']} ms")
            best = target
    return problems


def met_problems(setting: Setting, target: dict[str, Any]) -> list[str]:
    """Contradictions between a target of the results, met or not, and the measurements."""
    verified_ms, typical_ms, target_ms = target["verified_ms"], target["typical_ms"], target["target_ms"]
    within = verified_ms is not None and max(verified_ms, typical_ms or 0.0) <= target_ms
    doubted = not target["met"] and "which is known to within" in target["reason"]  # the reason is checked by itself
    agreed = doubted or target["met"] == within
    problems = [] if agreed else [f"met is {target['met']} at {verified_ms} ms, typically {typical_ms}"]
    if verified_ms is None:
        return problems
    rows = [
        row
        for row in setting.of(target["architecture"])
        if row.purpose == "verification" and row.median_ms == verified_ms
        if target["sha256"] in (None, row.sha256)
    ]
    if not rows:
        problems.append(f"no re-measurement of file {target['sha256']} took {verified_ms} ms")
    elif typical_ms is not None and not setting.may_be_typical(rows, typical_ms):
        problems.append(f"typically {typical_ms} ms is at no slow-down that was measured")
    return problems


def _model_problems(files: ResultFiles, setting: Setting, target: dict[str, Any]) -> list[str]:
    if not target["met"]:
        return [] if target["model"] is None else ["it is not met, and has a model"]
    if target["model"] is None:
        return ["its winner has no model file"]
    path = files.folder / target["model"]
    problems, content = [], path.read_bytes()
    if hashlib.sha256(content).hexdigest() != target["sha256"] or len(content) != target["model_bytes"]:
        problems.append(f"{target['model']} is another file than the one that was measured")
    card = json.loads(path.with_name(path.name.removesuffix(path.suffix) + ".json").read_text())
    about = {
        "device": setting.record["device"],
        "runtime": setting.record["runtime"],
        "run_id": files.results["run_id"],
    }
    wanted = {**target, "model": path.name, "condition": setting.record["condition"], **about}
    differing = sorted(name for name in wanted if card[name] != wanted[name])
    if differing:
        problems.append(f"card and results differ in {', '.join(differing)}")
    return problems
