"""Interface of the tuner of one device setting, as a campaign drives it: pure ask and tell."""

from __future__ import annotations

from typing import Literal, Protocol

from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement
from fleetnas.supernet_export.spaces.base import DesignSpace

TunerPhase = Literal["initial-design", "search", "verification", "done"]


class LoneSetting:
    """Part of a `SettingTuner` that shares its search with no other device setting."""

    @property
    def targets(self) -> list[TargetState]:
        """Every known target."""
        raise NotImplementedError

    @property
    def targets_known(self) -> int | None:
        """Number of targets that it has; None before they are known."""
        return len(self.targets) or None

    measurements: int

    @property
    def measured_together(self) -> int:
        """Measurements that count against the budget."""
        return self.measurements

    @property
    def board(self) -> BoardPlace | None:
        """Return that it is of no class."""
        return None

    def leave(self) -> None:
        """Do nothing: no other device takes over its work."""

    def take_remarks(self) -> list[str]:
        """Return no lines for the log."""
        return []


class SettingTuner(Protocol):
    """Searches subnets for latency targets, or measures given ones.

    Proposals are a function of the outcomes told, whatever their order within a round. So telling a stored run again
    resumes it.
    """

    @property
    def space(self) -> DesignSpace:
        """The design space of its subnets."""

    @property
    def failure_reason(self) -> str:
        """Why the device setting is given up; empty otherwise."""

    @property
    def targets_note(self) -> str:
        """A remark on the targets as a whole."""

    @property
    def measurements(self) -> int:
        """Measurements that count against the budget, failed ones included."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask."""

    @property
    def phase(self) -> TunerPhase:
        """Present phase."""

    @property
    def needs_planning(self) -> bool:
        """Whether the next `ask` has to think rather than return a planned round."""

    @property
    def targets(self) -> list[TargetState]:
        """Every known target with its best subnet so far."""

    @property
    def decided(self) -> list[TargetState]:
        """Every target once nothing is left to ask; none before."""

    @property
    def quarantined(self) -> int:
        """Number of subnets that failed twice and are left alone."""

    @property
    def fastest_ms(self) -> float | None:
        """The least latency that was measured, as it ran."""

    def target_of(self, proposal: Proposal) -> TargetState | None:
        """Return the target that a proposal is for, as its verifications left it; None where it is for none."""

    def predict_targets(self) -> None:
        """Renew the predictions of the subnets that targets stand at."""

    def held_out_error(self) -> HeldOutError:
        """Return the predictor's own error."""

    def ask(self, count: int) -> list[Proposal]:
        """Return up to `count` subnets to measure next; none while a round's last ones are being measured."""

    def expect(self, proposal: Proposal) -> None:
        """Take in a proposal of an earlier coordinator that has no outcome yet."""

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the outcome of a proposal, also of one that a stored run asked for."""

    def wanted_accuracies(self) -> list[Architecture]:
        """Return the subnets among which nothing is chosen before `tell_accuracy` was called for them."""

    def tell_accuracy(self, architecture: Architecture, accuracy: float | None) -> None:
        """Take the evaluated accuracy of a wanted subnet, a fraction; None: the prediction stands."""

    def abandon(self, reason: str) -> None:
        """End at once, without computing anything: it raised an exception, which `reason` describes."""

    @property
    def measured_together(self) -> int:
        """Measurements that count against the budget, those of its whole class of boards."""

    @property
    def board(self) -> BoardPlace | None:
        """Its place in a class of equal boards; None: it is searched by itself."""

    def leave(self) -> None:
        """Let others do the work of this device setting, where there are any: its device is gone."""

    def take_remarks(self) -> list[str]:
        """Return the lines for the log that came up since the last call."""

    @property
    def targets_known(self) -> int | None:
        """Number of targets that it has; None before they are known."""

    def validate(self) -> None:
        """Check targets and proposals; `BrokenInvariantError` names the first contradiction. For tests."""
