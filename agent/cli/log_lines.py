"""Write the agent's log as lines on standard error, which under systemd is the journal."""

from __future__ import annotations

import logging
import os
import sys

from fleetnas.fleet_protocol.errors import UsageError

LOG_LEVELS = ("debug", "info", "warning", "error")
#: Prefix of a line for the journal; `journalctl --priority` selects by it. Source: sd-daemon(3).
_PRIORITIES = {logging.DEBUG: "<7>", logging.INFO: "<6>", logging.WARNING: "<4>", logging.ERROR: "<3>"}


class JournalFormatter(logging.Formatter):
    """Formats priority and message; the journal adds time and process."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with the priority before every line, also of a traceback."""
        mark = _PRIORITIES.get(record.levelno, "<3>")
        return "\n".join(mark + line for line in super().format(record).splitlines())


def check_log_level(level: str) -> None:
    """Raise `UsageError` if there is no such level."""
    if level not in LOG_LEVELS:
        raise UsageError(f"log level {level!r} is not one of {', '.join(LOG_LEVELS)}")


def begin_logging(level: str) -> None:
    """Log messages of `level` and above; `UsageError` if there is no such level."""
    check_log_level(level)
    handler = logging.StreamHandler(sys.stderr)
    if goes_to_the_journal():
        handler.setFormatter(JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def write_error(text: str) -> None:
    """Write why the program ends, in one line."""
    mark = _PRIORITIES[logging.ERROR] if goes_to_the_journal() else ""
    sys.stderr.write(f"{mark}error: {text}\n")


def goes_to_the_journal() -> bool:
    """Whether standard error is the journal; programs started by a service inherit the variable, not the stream."""
    try:
        status = os.fstat(2)
    except OSError:  # closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
