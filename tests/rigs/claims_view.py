"""Checks of the lines that a search prints while it runs."""

from __future__ import annotations

from rigs import claims_of_targets
from rigs.claims_files import agrees, percent_agrees
from rigs.claims_reading import OFTEN, TOTAL, WARNING, Found, Reading, claim

#: Words for purposes that differ from the stored ones.
SHOWN_PURPOSES = {"initial-design": "exploring"}


def _seconds(told: str) -> int:
    """Seconds of a time that is told as `m:ss` or `h:mm:ss`."""
    seconds = 0
    for part in told.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


class ViewReading(Reading):
    """Reads the lines with a time of day."""

    def started(self, found: Found) -> None:
        results = self.files.results
        self.automatic = found["targets"].startswith("auto:")
        self.require(found["run"] == results["run_id"], "another run")
        self.require(found["strategy"] == results["strategy"], "another strategy")
        self.require(int(found["budget"]) == results["budget"], "another budget")
        self.require(set(found["devices"].split(", ")) == set(self.files.settings), "other device settings")
        if not self.automatic:
            asked = [float(target) for target in found["targets"].split(",")]
            for setting in self.files.settings.values():
                known = [target["target_ms"] for target in setting.targets]
                self.require(known == asked, f"the targets of {setting.label} are {known}")

    def measured(self, found: Found) -> None:
        here = self.setting(found)
        if here is None:
            return
        setting, said = here
        if said.measured >= len(setting.counted):
            self.report("more measurements than there are")
            return
        row = setting.counted[said.measured]
        said.measured += 1
        said.budget += row.uses_budget
        self.require(agrees(found["ms"], row.median_ms), f"it took {row.median_ms} ms")
        wide = found["half_width"] == "100 % or more"
        half_width = (
            row.half_width_percent >= 100 if wide else percent_agrees(found["half_width"], row.half_width_percent)
        )
        self.require(half_width, f"± {row.half_width_percent} %")
        self.require((found["quality"] or "ok") == row.quality, f"its quality is {row.quality}")
        self.require(found["fingerprint"] == row.fingerprint, f"it was {row.fingerprint}")
        self.require(found["purpose"] == SHOWN_PURPOSES.get(row.purpose, row.purpose), f"it was for {row.purpose}")
        if found["predicted"] or row.predicted_ms is not None:
            told = found["predicted"] and row.predicted_ms is not None and agrees(found["predicted"], row.predicted_ms)
            self.require(bool(told), f"predicted was {row.predicted_ms} ms")
        if row.purpose == "verification":
            self.require(not found["number"], "a verification does not count against the budget")
            return
        told = (int(found["number"] or 0), int(found["budget"] or 0))
        self.require(told == (said.budget, self.files.results["budget"]), f"{said.budget} count against the budget")

    def failed(self, found: Found) -> None:
        here = self.setting(found)
        if here is None:
            return
        setting, said = here
        if said.failed >= len(setting.failures):
            self.report("more failures than there are")
            return
        failure = setting.failures[said.failed]
        said.failed += 1
        said.budget += failure["purpose"] != "verification" and failure["target_ms"] is None
        self.require(found["reason"] == failure["reason"], f"it failed with {failure['reason']}")

    def regime_changed(self, found: Found) -> None:
        here = self.setting(found)
        if here is None:
            return
        setting, said = here
        said.regime_changes += 1
        latest = setting.counted[said.measured - 1]
        self.require(
            (latest.slowdown is None) == (not found["slowdown"])
            and (latest.slowdown is None or abs(latest.slowdown - float(found["slowdown"])) < 0.00501),
            f"its slow-down is {latest.slowdown}",
        )

    def warned(self, found: Found) -> None:
        here = self.setting(found)
        if here is None:
            return
        setting, said = here
        self.require(not said.warned, "warned twice")
        said.warned = True
        self.check_warning(found, setting, said.measured)

    def candidate(self, found: Found) -> None:
        here = self.setting(found)
        if here is None:
            return
        setting, said = here
        rows = [row for row in setting.counted[: said.measured] if row.fingerprint == found["fingerprint"]]
        self.require(any(agrees(found["ms"], row.median_ms) for row in rows), "it was not measured at that")
        self.require(
            any(percent_agrees(found["accuracy"], 100 * (row.predicted_accuracy or 0.0)) for row in rows),
            "its predicted accuracy differs",
        )

    def met(self, found: Found) -> None:
        here = self.setting(found)
        target = here and self.target(here[0], found["target"])
        if here is None or target is None:
            return
        setting, said = here
        said.decided[target["target_ms"]] += 1
        self.require(target["met"] is True, "the results say that it was missed")
        self.require(
            found["fingerprint"] == setting.fingerprint(target["architecture"]), "another subnet in the results"
        )
        self.report_all(claims_of_targets.verdict(setting, target, found))

    def missed(self, found: Found) -> None:
        here = self.setting(found)
        target = here and self.target(here[0], found["target"])
        if here is None or target is None:
            return
        here[1].decided[target["target_ms"]] += 1
        self.require(target["met"] is False, "the results say that it was met")
        reason = f"infeasible: {found['reason']}" if found["end"] == "infeasible" else found["reason"]
        self.require(reason == target["reason"], "the results give another reason")
        self.report_all(claims_of_targets.reason(here[0], target["target_ms"], reason))

    def not_met(self, found: Found) -> None:
        """Automatic targets may have been replaced since: only the measurements tell."""
        here = self.setting(found)
        if here is not None:
            self.report_all(claims_of_targets.reason(here[0], float(found["target"]), found["reason"]))

    def lost_or_given_up(self, found: Found) -> None:
        settings = [s for label, s in self.files.settings.items() if found["device"] in (label, s.record["device"])]
        self.require(bool(settings), "no such device")
        for setting in settings:
            self.require(setting.record["status"] in ("lost", "failed", "finished"), "it was not lost")

    def progress(self, found: Found) -> None:
        """The share that is done and the time left, while the search is at work."""
        share = int(found["share"])
        self.require(self.share_told <= share <= 99, f"{self.share_told} % was done before")
        self.share_told = share
        least, left, most = (_seconds(found[name]) for name in ("least", "left", "most"))
        self.require(least <= left <= most, "the time left is outside its interval")
        self.require(not self.ends, "the search is over")

    def ended(self, found: Found) -> None:
        self.ends += 1
        results = self.files.results
        self.require(found["run"] == results["run_id"], "another run")
        self.require(found["status"] == results["status"] == self.files.status, f"the run is {self.files.status}")
        self.check_totals(found)
        for status in ("lost", "failed"):
            told = set(filter(None, found[status].split(", ")))
            known = {label for label, s in self.files.settings.items() if s.record["status"] == status}
            self.require(told == known, f"{status} are {known or 'none'}")

    def warned_at_end(self, found: Found) -> None:
        self.warned_at_the_end = True
        slowed = {label for label, setting in self.files.settings.items() if setting.often_slowed}
        self.require(set(found["labels"].split(", ")) == slowed, f"slowed were {slowed}")


VIEW_CLAIMS = [
    claim(
        r"run (?P<run>\S+) starts: .+, (?P<strategy>\S+) search, targets (?P<targets>[\w:.,+-]+), at most "
        r"(?P<budget>\d+) measurements? on each of (?P<devices>.+)",
        ViewReading.started,
    ),
    claim(
        r"(?P<label>\S+) measured (?P<ms>NUM) ms ±(?P<half_width>100 % or more|NUM(?= %))(?: %)?"
        r"(?:, predicted (?P<predicted>NUM) beforehand)?"
        r"(?:, (?P<quality>noisy|slowed))?: (?P<purpose>\w+) (?P<fingerprint>\w+)"
        r"(?:, (?P<number>\d+) of (?P<budget>\d+))?",
        ViewReading.measured,
    ),
    claim(r"(?P<label>\S+) could not measure (?P<fingerprint>\w+): (?P<reason>[\w-]+)(?: \(.*\))?", ViewReading.failed),
    claim(
        r"(?P<label>\S+) runs at another lasting speed(?:: (?P<slowdown>NUM) times the latency at undisturbed speed)?; "
        r"measurements go on",
        ViewReading.regime_changed,
    ),
    claim(OFTEN + r"(?P<labels>.+); ADVICE", ViewReading.warned_at_end),
    claim(WARNING + r"; ADVICE", ViewReading.warned),
    claim(
        r"(?P<label>\S+) target (?P<target>NUM) ms candidate (?P<fingerprint>\w+): measured (?P<ms>NUM) ms, predicted "
        r"accuracy (?P<accuracy>NUM) %",
        ViewReading.candidate,
    ),
    claim(
        r"(?P<label>\S+) target (?P<target>NUM) ms met: (?P<fingerprint>\w+) verified at (?P<ms>NUM) ms, accuracy "
        r"(?P<accuracy>–|NUM %)(?:; typical (?P<typical>NUM) ms)?(?:; (?P<note>.+))?",
        ViewReading.met,
    ),
    claim(r"(?P<label>\S+) target (?P<target>NUM) ms not met by this subnet: (?P<reason>.+)", ViewReading.not_met),
    claim(r"(?P<label>\S+) target (?P<target>NUM) ms (?P<end>missed|infeasible): (?P<reason>.+)", ViewReading.missed),
    claim(r"(?P<device>\S+) (?:is |)(?:lost|given up): .*", ViewReading.lost_or_given_up),
    claim(
        r"run (?P<run>\S+) (?P<status>complete|partial|failed) after [\d:]+: " + TOTAL + r"(?:, lost (?P<lost>.+?))?"
        r"(?:, failed (?P<failed>.+?))?(?:, results in .+)?",
        ViewReading.ended,
    ),
    claim(
        r"progress: (?P<share>\d+) % done, about (?P<left>[\d:]+) left \((?P<least>[\d:]+) to (?P<most>[\d:]+)\)",
        ViewReading.progress,
    ),
    claim(r"phase: [\w ]+|\S+ joined: .+", ViewReading.nothing),
]
