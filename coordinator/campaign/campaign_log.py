"""Lines of a campaign for people, in the views and in the program's log."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.fleet_protocol.error_text import one_line

_MOST_LINES = 200
#: Of these, the latest that a snapshot shows.
_SHOWN_LINES = 20

_log = logging.getLogger("fleetnas.coordinator")


class CampaignLog:
    """The latest lines of a campaign."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)

    @property
    def lines(self) -> Sequence[str]:
        """Latest lines, oldest first."""
        return self._lines

    @property
    def shown(self) -> tuple[str, ...]:
        """Lines that a snapshot shows."""
        return tuple(self._lines)[-_SHOWN_LINES:]

    def note(self, line: str) -> None:
        """Write a line."""
        self._lines.append(line)
        _log.info("%s", line)

    def note_unshown(self, setting_run: SettingRun, error: Exception) -> None:
        """Write, once per device setting, that its state cannot be shown; that is no reason to end its search."""
        if setting_run.mark_unshown():
            _log.error("%s cannot be shown", setting_run.label, exc_info=error)
            self.note(f"{setting_run.label} cannot be shown: {one_line(error)}; the log has the trace")
