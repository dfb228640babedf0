"""What is printed of one target, checked against the measurements of its device setting: verdict, remarks, reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rigs.claims_files import NUMBER, Row, Setting, agrees, met_problems, percent_agrees, target_agrees

#: A typical latency is shown where it differs from the verified one by more than this, relative.
_SAME_LATENCY = 0.02

Target = dict[str, Any]
Found = dict[str, str]


def verdict(setting: Setting, target: Target, found: Found) -> list[str]:
    """A target that is said to be met: `found` has the printed `ms`, `accuracy`, `typical` and `note`."""
    problems = met_problems(setting, target) + typical(target, found["typical"]) + note(setting, target, found["note"])
    if target["verified_ms"] is None or not agrees(found["ms"], target["verified_ms"]):
        problems.append(f"it was verified at {target['verified_ms']} ms")
    told, known = found["accuracy"], target["accuracy"]
    if known is None and told.startswith("~"):
        told, known = told.removeprefix("~"), target["predicted_accuracy"]
    if (told == "–") != (known is None) or (known is not None and not _is_share(told, known)):
        problems.append(f"its accuracy is {target['accuracy']}, predicted {target['predicted_accuracy']}")
    return problems


def _is_share(text: str, share: float) -> bool:
    return text.endswith(" %") and text[0].isdigit() and percent_agrees(text.removesuffix(" %"), 100 * share)


def typical(target: Target, told: str) -> list[str]:
    """The remark on the typical latency, empty where there is none."""
    verified_ms, typical_ms = target["verified_ms"], target["typical_ms"]
    differs = None not in (verified_ms, typical_ms) and abs(typical_ms / verified_ms - 1) > _SAME_LATENCY
    if differs != bool(told) or (told and not agrees(told, typical_ms)):
        return [f"it was verified at {verified_ms} ms, typically {typical_ms} ms"]
    return []


def note(setting: Setting, target: Target, told: str) -> list[str]:
    """The remark on a target that is met."""
    problems = [] if told == target["note"] else [f"the note in the results is {target['note']!r}"]
    if not told:
        return problems
    free = re.fullmatch(rf"constrains nothing: the largest subnet takes ({NUMBER}) ms", told)
    adopted = re.fullmatch(rf"the winner of ({NUMBER}) ms, no better one was verified", told)
    if free:
        rows = _largest(setting)
        if not rows or not setting.may_be_typical(rows, float(free[1])):
            problems.append(f"the largest subnet took {[row.median_ms for row in rows]} ms")
        if float(free[1]) > 1.005 * target["target_ms"]:
            problems.append("so it does constrain")
    elif adopted:
        same = [
            other
            for other in setting.targets
            if target_agrees(adopted[1], other["target_ms"]) and other is not target
            if other["met"] and other["sha256"] == target["sha256"]
        ]
        if not same:
            problems.append("no other target has that winner")
    else:
        problems.append("not understood")
    return problems


def _largest(setting: Setting) -> list[Row]:
    """The measurements of the subnet that is as large as every other in every choice; none where no subnet is."""
    size = {row.fingerprint: _numbers(row.architecture) for row in setting.counted}
    most = max(size.values(), key=sum, default=[])
    return [row for row in setting.counted if sum(size[row.fingerprint]) == sum(most)]


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for _, item in sorted(value.items()) for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def infeasible(setting: Setting, target_ms: float) -> list[str]:
    """A target that is called infeasible: no run was within it, neither as it ran nor at undisturbed speed."""
    problems = []
    within = [row for row in setting.counted if row.median_ms <= target_ms]
    if within:
        problems.append(f"{within[0].fingerprint} took {within[0].median_ms} ms")
    undisturbed = [ms for row in setting.counted if (ms := setting.undisturbed_ms(row)) is not None]
    if not undisturbed or min(undisturbed) <= target_ms:
        problems.append(f"at undisturbed speed the fastest takes {min(undisturbed, default=None)} ms")
    return problems


# -- reasons ---------------------------------------------------------------------------------------------------------


def reason(setting: Setting, target_ms: float, text: str) -> list[str]:
    """Why a target is not met."""
    for pattern, check in _REASONS:
        found = pattern.fullmatch(text)
        if found is not None:
            told = {name: value or "" for name, value in found.groupdict().items()}
            return check(setting, target_ms, told)
    return ["reason not understood"]


def _verifications(setting: Setting, target_ms: float) -> list[Row]:
    def of_it(row: Row) -> bool:
        return row.target_ms is not None and target_agrees(f"{target_ms:.4g}", row.target_ms)

    return [row for row in setting.counted if row.purpose == "verification" and of_it(row)]


def _over(setting: Setting, target_ms: float, found: Found) -> list[str]:
    rows = [row for row in _verifications(setting, target_ms) if agrees(found["ms"], row.median_ms)]
    if not any(row.median_ms > target_ms * (1 - 6e-4) for row in rows):
        return [f"no re-measurement over {target_ms} ms took that"]
    if found["slowed"] and all(row.slowdown is not None and row.slowdown < 1 for row in rows):
        return ["the device was not slowed down"]
    return []


def _lucky(setting: Setting, target_ms: float, found: Found) -> list[str]:
    rows = [row for row in _verifications(setting, target_ms) if agrees(found["ms"], row.median_ms)]
    problems = [] if rows else ["no re-measurement took that"]
    if float(found["typical"]) < target_ms * 0.995:
        problems.append("typically it is within the target")
    if rows and not setting.may_be_typical(rows, float(found["typical"])):
        problems.append("the typical latency is at no slow-down that was measured")
    return problems


def _uncertain(setting: Setting, target_ms: float, found: Found) -> list[str]:
    rows = [row for row in _verifications(setting, target_ms) if agrees(found["ms"], row.median_ms)]
    typical, error = float(found["typical"]), float(found["percent"]) / 100
    problems = [] if rows else ["no re-measurement took that"]
    if rows and not setting.may_be_typical(rows, typical):
        problems.append("the typical latency is at no slow-down that was measured")
    if typical > target_ms * 1.005:
        problems.append("typically it is over the target")
    if typical * (1 + error) < target_ms * 0.99:
        problems.append("it is within the target by more than what it may be wrong by")
    return problems


def _missed_often(setting: Setting, target_ms: float, found: Found) -> list[str]:
    rows, count = _verifications(setting, target_ms), int(found["count"])
    problems = [] if len(rows) >= count else [f"there were {len(rows)} re-measurements"]
    slowed = found.get("slowed", "")
    over = sum(row.median_ms > target_ms * (1 - 6e-4) for row in rows)
    if slowed and over < (count if slowed == "all" else int(slowed)):
        problems.append(f"{over} re-measurements were over the target")
    return problems + (reason(setting, target_ms, found["last"]) if found.get("last") else [])


def _fastest(setting: Setting, target_ms: float, found: Found) -> list[str]:
    """The fastest subnet that was found, and what is to be asked for instead."""
    often_failed = {name for name in _failed_names(setting) if _failed_names(setting).count(name) >= 2}
    rows = [row for row in setting.counted if row.fingerprint not in often_failed]
    least = min(rows, key=lambda row: row.median_ms, default=None)
    if least is None:
        return ["nothing was measured"]
    problems = []
    if not agrees(found["ms"], least.median_ms) or found["fingerprint"] != least.fingerprint:
        problems.append(f"the least latency is that of {least.fingerprint}, {least.median_ms} ms")
    undisturbed = [ms for row in rows if (ms := setting.undisturbed_ms(row)) is not None]
    if found.get("ask") and not float(found["ask"]) > max(target_ms, 1.04 * float(found["ms"])):
        problems.append("that asks for too little")
    if found.get("typical"):
        own = [row for row in rows if row.fingerprint == found["fingerprint"]]
        if float(found["typical"]) <= target_ms * 0.995 or not setting.may_be_typical(own, float(found["typical"])):
            problems.append("it is not that at the typical speed")
    if found.get("undisturbed") and (not undisturbed or not agrees(found["undisturbed"], min(undisturbed))):
        problems.append(f"at undisturbed speed the fastest takes {min(undisturbed, default=None)} ms")
    if found.get("at_all"):
        problems += infeasible(setting, target_ms)
    if found.get("always") and undisturbed:
        problems.append("a speed is known")
    return problems


def _failed_names(setting: Setting) -> list[str]:
    return [setting.fingerprint(failure["architecture"]) for failure in setting.failures]


def _failures(setting: Setting, target_ms: float, found: Found) -> list[str]:
    failed = sum(failure["purpose"] == "verification" for failure in setting.failures)
    wanted = int(found.get("count") or 1)
    return [] if failed >= wanted or (setting.failures and wanted == 1) else [f"{failed} re-measurements failed"]


def _unreached(setting: Setting, target_ms: float, found: Found) -> list[str]:
    status = {"search over": "finished", "device lost": "lost", "device failed": "failed"}[found["why"]]
    return [] if setting.record["status"] == status else [f"its device is {setting.record['status']}"]


def _not_verified(setting: Setting, target_ms: float, found: Found) -> list[str]:
    return ["it was re-measured"] if _verifications(setting, target_ms) else []


_Check = Callable[[Setting, float, Found], list[str]]
_ASK = r"; ask for at least (?P<ask>NUM) ms"
_FOUND = r"the fastest subnet found \((?P<fingerprint>\w+)\) "
_QUIET = r"; let nothing else run on the device, keep it cool, and search again"


def _reason(pattern: str, check: _Check) -> tuple[re.Pattern[str], _Check]:
    return re.compile(pattern.replace("NUM", NUMBER)), check


_REASONS = [
    _reason(
        r"over the target when re-measured, at (?P<ms>NUM) ms(?P<slowed>, while the device was slowed down)?",
        _over,
    ),
    _reason(
        r"within it when re-measured, at (?P<ms>NUM) ms, while the device was faster than it typically is: "
        r"(?P<typical>NUM) ms at the typical speed",
        _lucky,
    ),
    _reason(
        r"within it when re-measured, at (?P<ms>NUM) ms and (?P<typical>NUM) ms at the typical speed, "
        r"which is known to within (?P<percent>NUM) % only",
        _uncertain,
    ),
    _reason(r"not met in (?P<count>\d+) re-measurements; the last: (?P<last>.+)", _missed_often),
    _reason(
        r"slowed down in (?P<slowed>all|\d+)(?: of \d+)? re-measurements, not met in any of "
        r"(?P<count>\d+)" + _QUIET,
        _missed_often,
    ),
    _reason(r"(?:infeasible: )?" + _FOUND + r"(?P<at_all>takes) (?P<ms>NUM) ms" + _ASK, _fastest),
    _reason(
        _FOUND + r"took (?P<ms>NUM) ms at best, and takes (?P<typical>NUM) ms at the typical speed of this run" + _ASK,
        _fastest,
    ),
    _reason(
        _FOUND
        + r"took (?P<ms>NUM) ms; only an undisturbed device would be within it, at (?P<undisturbed>NUM) ms"
        + _ASK,
        _fastest,
    ),
    _reason(
        r"the fastest measurement \((?P<fingerprint>\w+)\) took (?P<ms>NUM) ms, and the device was disturbed "
        r"(?P<always>all the time)" + _QUIET,
        _fastest,
    ),
    _reason(r"(?P<count>\d+) re-measurements failed, the last with .*", _failures),
    _reason(r"no measured subnet is left, the last failed with .*", _failures),
    _reason(r"the subnets within it failed when they were measured again, the last with .*", _failures),
    _reason(r"not reached: (?P<why>search over|device lost|device failed)", _unreached),
    _reason(r"it was not verified", _not_verified),
]
