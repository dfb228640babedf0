"""Checks of the summary that a search prints at its end."""

from __future__ import annotations

import re
from collections import Counter

from fleetnas.coordinator.view.summary import LEGEND
from rigs import claims_of_targets
from rigs.claims_files import NUMBER, Setting, agrees, percent_agrees
from rigs.claims_reading import OFTEN, TOTAL, WARNING, Found, Reading, claim

_FEWEST_HELD_OUT = 8
_MOST_NAMED = 5


class SummaryReading(Reading):
    """Reads the lines without a time of day."""

    def heading(self, found: Found) -> None:
        self.in_summary = None
        here = self.setting(found)
        if here is None:
            return
        setting, said = here
        self.in_summary, said.headed = setting, True
        record = setting.record
        told = "running" if found["status"] == "not finished" else found["status"]
        self.require(told == record["status"], f"it is {record['status']}")
        self.require(found["reason"] == record["reason"], "the results give another reason")
        self.require(int(found["measurements"]) == setting.budget_used == record["measurements"], "another count")
        self.require(int(found["failures"] or 0) == len(setting.failures), f"{len(setting.failures)} failed")
        self._check_predictor(setting, found["error"])
        unknown = re.search(rf"all took from ({NUMBER}) to ({NUMBER}) ms", found["reason"])
        if unknown:
            medians = [row.median_ms for row in setting.counted]
            self.require(agrees(unknown[1], min(medians)), f"the fastest took {min(medians)} ms")

    def _check_predictor(self, setting: Setting, told: str) -> None:
        predictor = setting.record["predictor"]
        few = re.fullmatch(r"too few to tell \((\d+) held out\)", told)
        known = re.fullmatch(rf"({NUMBER}) % on (\d+) held out(?:, rank (-?[\d.]+))?", told)
        if predictor is None:
            self.require(told == "not known yet", "the results have no predictor error")
            return
        held_out = predictor["held_out"]
        subnets = len({row.fingerprint for row in setting.rows})
        self.require(held_out <= subnets, f"{held_out} held out of {subnets} measured subnets")
        if held_out < _FEWEST_HELD_OUT:
            self.require(bool(few) and int(few[1]) == held_out, f"{held_out} held out are too few to tell")
            return
        agreed = known and int(known[2]) == held_out and percent_agrees(known[1], predictor["mape_percent"])
        self.require(bool(agreed), f"the results say {predictor}")

    def quality(self, found: Found) -> None:
        setting = self.in_summary
        if setting is None:
            self.report("of no device setting")
            return
        self.said[setting.label].quality = True
        counts = Counter(row.quality for row in setting.counted)
        told = {name: int(found.get(name) or 0) for name in ("ok", "noisy", "slowed")}
        self.require(told == {name: counts[name] for name in told}, f"they were {dict(counts)}")
        known = [row.slowdown for row in setting.counted if row.slowdown is not None]
        self.check_slowdown(found.get("slowdown", ""), known)
        self.require(
            int(found.get("unknown") or 0) == len(setting.counted) - len(known), "the speed of others is unknown"
        )
        self.require(
            int(found.get("regimes") or 1) == max(1, setting.lasting_speeds), f"{setting.lasting_speeds} regimes"
        )

    def row(self, found: Found) -> None:
        setting = self.in_summary
        target = setting and self.target(setting, found["target"])
        if setting is None or target is None:
            return
        self.said[setting.label].rows[target["target_ms"]] += 1
        for name in ("predicted", "measured", "verified"):
            told, known = found[name], target[f"{name}_ms"]
            same = told == "–" if known is None else told != "–" and agrees(told, known)
            self.require(same, f"{name} is {known} ms in the results")
        measured = [row.median_ms for row in setting.of(target["architecture"])]
        self.require(target["measured_ms"] in (None, *measured), "it never took what it is said to have measured")
        if found["mark"] == "✓":
            self.require(target["met"], "the results say that it was missed")
            self.report_all(claims_of_targets.verdict(setting, target, found | {"ms": found["verified"]}))
            return
        self.require(not target["met"] and target["open"] == (found["mark"] == "·"), "the results say otherwise")
        self.require(found["reason"] == (target["reason"] or "not met"), "the results give another reason")
        self.report_all(claims_of_targets.typical(target, found["typical"]))
        self.report_all(claims_of_targets.reason(setting, target["target_ms"], found["reason"]))

    def fewer_targets(self, found: Found) -> None:
        setting = self.in_summary
        if setting is None:
            self.report("of no device setting")
            return
        targets = [target["target_ms"] for target in setting.targets]
        self.require(int(found["room"]) == len(targets) < int(found["asked"]), f"there are {len(targets)} targets")
        inside = all(0.9 * float(found["low"]) <= ms <= 1.1 * float(found["high"]) for ms in targets)
        self.require(inside, f"the targets are {targets}")

    def replaced_targets(self, found: Found) -> None:
        setting = self.in_summary
        if setting is None:
            self.report("of no device setting")
            return
        targets = [target["target_ms"] for target in setting.targets if target["target_ms"] is not None]
        raised, before = (found[name].split(", ") for name in ("raised", "before"))
        self.require(all(any(agrees(told, ms) for ms in targets) for told in raised), f"the targets are {targets}")
        lower = all(float(told) < float(raised[0]) and not any(agrees(told, ms) for ms in targets) for told in before)
        self.require(lower, f"the targets are {targets}")

    def none_chosen(self, found: Found) -> None:
        setting = self.in_summary
        told = setting is not None and not setting.targets and int(found["asked"]) == setting.record["targets_asked"]
        self.require(told, "the results have other targets")

    def warned_of_one(self, found: Found) -> None:
        here = self.setting(found)
        if here is not None:
            self.warned_in_summary = {found["label"]}
            self.check_warning(found, here[0], len(here[0].counted))

    def warned_of_several(self, found: Found) -> None:
        slowed = {label: setting for label, setting in self.files.settings.items() if setting.often_slowed}
        self.warned_in_summary = set(slowed)
        self.require(int(found["count"]) == len(slowed), f"{len(slowed)} were slowed")
        named = re.findall(r"(\S+) \((\d+) of (\d+)\)", found["places"])
        self.require(len(named) == min(len(slowed), _MOST_NAMED), "others are named")
        for label, count, measured in named:
            setting = slowed.get(label)
            counts = (setting.slowed, len(setting.counted)) if setting else None
            self.require(counts == (int(count), int(measured)), f"{label}: {counts}")

    def statuses(self, found: Found) -> None:
        known = Counter(setting.record["status"] for setting in self.files.settings.values())
        told = {status: int(count) for count, status in re.findall(r"(\d+) (\w+(?: \w+)?)", found["counts"])}
        told = {"running" if status == "not finished" else status: count for status, count in told.items()}
        self.require(told == known and int(found["all"]) == known.total(), f"they are {dict(known)}")

    def totals(self, found: Found) -> None:
        self.check_totals(found)


_ROW = (
    r"(?P<target>NUM)\s+(?P<predicted>–|NUM)\s+(?P<measured>–|NUM)\s+(?P<verified>–|NUM)\s+(?P<accuracy>–|~?NUM %)\s+"
)
SUMMARY_CLAIMS = [
    claim(
        r"(?P<label>[^\s:]+/[^\s:]+): (?P<status>running|not finished|finished|lost|failed)(?: \((?P<reason>.+)\))?, "
        r"(?P<measurements>\d+) measurements?(?:, (?P<failures>\d+) failed measurements?)?, "
        r"predictor error (?P<error>.+)",
        SummaryReading.heading,
    ),
    claim(r"data quality: nothing measured", SummaryReading.quality),
    claim(
        r"data quality: (?P<ok>\d+) ok, (?P<noisy>\d+) noisy, (?P<slowed>\d+) slowed(?:; largest slow-down "
        r"(?P<slowdown>NUM)x)?(?:; (?P<regimes>\d+) lasting speeds)?(?:; speed unknown in (?P<unknown>\d+))?",
        SummaryReading.quality,
    ),
    claim(r"\s*target ms\s+predicted\s+measured\s+verified\s+accuracy\s*", SummaryReading.nothing),
    claim(
        _ROW + r"(?P<mark>✓) met(?:; typical (?P<typical>NUM) ms)?(?:; (?P<note>.+))?",
        SummaryReading.row,
    ),
    claim(_ROW + r"(?P<mark>✗|·) (?P<reason>.+?)(?:; typical (?P<typical>NUM) ms)?", SummaryReading.row),
    claim(
        r"the subnets take from (?P<low>NUM) to (?P<high>NUM) ms here: there is room for (?P<room>\d+) of "
        r"(?P<asked>\d+) targets that are 5 % apart",
        SummaryReading.fewer_targets,
    ),
    claim(
        r"(?P<raised>NUM(?:, NUM)*) ms in place of (?P<before>NUM(?:, NUM)*) ms: the device became slower, and the "
        r"fastest subnet that was found has no room there any more",
        SummaryReading.replaced_targets,
    ),
    claim(r"(?P<asked>\d+) targets? asked for, none chosen", SummaryReading.none_chosen),
    claim(OFTEN + r"(?P<count>\d+) device settings: (?P<places>.+); ADVICE", SummaryReading.warned_of_several),
    claim(WARNING + r"; ADVICE", SummaryReading.warned_of_one),
    claim(r"(?P<all>\d+) device settings?: (?P<counts>(?:\d+ (?:not )?\w+(?:, )?)+)", SummaryReading.statuses),
    claim(TOTAL + r" by a fresh re-measurement", SummaryReading.totals),
    claim("|".join(map(re.escape, LEGEND)), SummaryReading.nothing),
    claim(
        r"every winner has at most .+|results and model files: .+|not every device finished\. .+",
        SummaryReading.nothing,
    ),
]
