"""The interface through which a training shows itself to a user; it needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetnas.supernet_export.training.trainer import Progress
    from fleetnas.supernet_export.training.validation import Scores


class RunView:
    """Shows a training to a user; this one shows nothing."""

    def images_checked(self, done: int, total: int) -> None:
        """Show how many images were decoded."""

    def downloaded(self, done: int, total: int) -> None:
        """Show how many bytes of a published supernet were fetched."""

    def message(self, text: str, *, warning: bool = False) -> None:
        """Show a line."""

    def step(self, progress: Progress) -> None:
        """Show a step."""

    def epoch(self, progress: Progress, scores: Sequence[Scores]) -> None:
        """Show an epoch, with scores where it was validated."""
