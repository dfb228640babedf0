"""Winners whose evaluated accuracies contradict the order of their targets, beyond what the images' number can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, TargetOutcome
from fleetnas.supernet_export.evaluation.answers import ClassAnswers, better_by_chance

#: Probability below which a difference of two winners on the same images is not taken for chance.
SIGNIFICANCE = 0.05
SELECTED_ON_REPORTED = (
    "WARNING: selected on the reported images: the winners were chosen by the same images that their accuracy is "
    "reported on, which makes it look better than it is; give --evaluation-images another folder"
)
_MEASURED_ADVICE = "to choose winners by images, search with --selection-images DIR --rerank K"
_SELECTED_ADVICE = "for a better choice give more selection images, or a larger --rerank"


@dataclass(frozen=True)
class Inversion:
    """A tighter target's winner that is more accurate than a looser one's on the same images."""

    tighter_ms: float
    looser_ms: float
    tighter_accuracy: float
    """Top-1, a fraction."""
    looser_accuracy: float
    images: int
    by_chance: float
    """Probability of so large a difference between equally good winners (McNemar's test, exact, one-sided)."""


def inversions(targets: Sequence[TargetOutcome]) -> list[Inversion]:
    """Return, for each target that is met, the most significant winner of a tighter one that is better than its own.

    Both are compared on evaluation images, or where there are none on selection images.
    """
    found = []
    # Given subnets have one target, or none, and targets of other kinds than latency are in no order with it.
    met = sorted(
        (target for target in targets if target.met and not target.subnet and not target.target), key=_target_ms
    )
    for place, looser in enumerate(met):
        better = [inversion for tighter in met[:place] if (inversion := _inversion(tighter, looser)) is not None]
        if better:
            found.append(min(better, key=lambda inversion: (inversion.by_chance, inversion.tighter_ms)))
    return found


def _inversion(tighter: TargetOutcome, looser: TargetOutcome) -> Inversion | None:
    if tighter.architecture == looser.architecture:
        return None
    pair = _comparable(tighter, looser)
    if pair is None or pair[0].accuracy <= pair[1].accuracy:
        return None
    by_chance = better_by_chance(*pair)
    if by_chance is None or by_chance >= SIGNIFICANCE:
        return None
    better, worse = pair
    return Inversion(_target_ms(tighter), _target_ms(looser), better.accuracy, worse.accuracy, better.images, by_chance)


def _target_ms(target: TargetOutcome) -> float:
    return target.target_ms or 0.0


def _comparable(one: TargetOutcome, other: TargetOutcome) -> tuple[ClassAnswers, ClassAnswers] | None:
    for mine, theirs in ((one.answers, other.answers), (one.selection, other.selection)):
        if mine is not None and theirs is not None:
            return mine, theirs
    return None


def inversion_warnings(device: DeviceOutcome, *, reranked: bool) -> list[str]:
    """Return a warning with advice for each inversion of a device setting; `reranked`: images chose its winners."""
    advice = _SELECTED_ADVICE if reranked else _MEASURED_ADVICE
    return [
        f"WARNING: on {device.label} the winner of {each.tighter_ms:g} ms is more accurate than that of "
        f"{each.looser_ms:g} ms: {100 * each.tighter_accuracy:.1f} % and {100 * each.looser_accuracy:.1f} % of "
        f"{each.images:,} images (by chance with probability {each.by_chance:.2g}, McNemar's test). It meets both "
        f"targets; {advice}"
        for each in inversions(device.targets)
    ]


def accuracy_warnings(outcome: CampaignOutcome) -> list[str]:
    """Return the warnings about the evaluated accuracies of a run, with their advice."""
    found = [SELECTED_ON_REPORTED] if outcome.selected_on_reported else []
    for device in outcome.devices:
        found += inversion_warnings(device, reranked=bool(outcome.rerank))
    return found
