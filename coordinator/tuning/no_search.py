"""A device setting on which nothing is searched, because baselines alone are measured on it."""

from __future__ import annotations

from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.setting_tuner import LoneSetting, TunerPhase
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement
from fleetnas.supernet_export.spaces.base import DesignSpace


class NoSearch(LoneSetting):
    """A `SettingTuner` that has ended when it begins."""

    targets_note = ""
    measurements = 0
    finished = True
    phase: TunerPhase = "done"
    needs_planning = False
    quarantined = 0
    fastest_ms: float | None = None

    def __init__(self, space: DesignSpace) -> None:
        self.space = space
        self.failure_reason = ""

    @property
    def targets(self) -> list[TargetState]:
        """Return none."""
        return []

    @property
    def decided(self) -> list[TargetState]:
        """Return none."""
        return []

    def target_of(self, proposal: Proposal) -> TargetState | None:
        """Return that a proposal is for no target."""
        del proposal
        return None

    def predict_targets(self) -> None:
        """Do nothing: there are no targets."""

    def held_out_error(self) -> HeldOutError:
        """Return that there is no predictor."""
        return HeldOutError(None, None, 0)

    def ask(self, count: int) -> list[Proposal]:
        """Return none."""
        del count
        return []

    def expect(self, proposal: Proposal) -> None:
        """Do nothing: nothing was proposed."""

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Do nothing: nothing is learned."""

    def wanted_accuracies(self) -> list[Architecture]:
        """Return none."""
        return []

    def tell_accuracy(self, architecture: Architecture, accuracy: float | None) -> None:
        """Do nothing: no accuracy is wanted."""

    def abandon(self, reason: str) -> None:
        """Note why the device setting ended."""
        self.failure_reason = reason

    def validate(self) -> None:
        """Find nothing to check."""
