"""The ways to name a run: its id, its name, `latest`, or the beginning of one of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.records.stored import RunRecord

#: In place of a run's id: the newest run; to resume, the newest that was interrupted.
LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
#: Names that begin as the ids of runs do, with a date, or are the beginning of a date: as beginnings of ids they would
#: mean several runs.
_LIKE_AN_ID = re.compile(r"\d{8}-\d{6}|2\d{7}|2\d{0,6}$", re.ASCII)
_MOST_LISTED = 5


def check_run_name(name: str) -> str:
    """Return a name for a run; `UsageError` where it cannot be one."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"a run cannot be named {name[:80]!r}: a name has up to 64 letters, digits, dots, underscores and hyphens, "
            "and begins with a letter or digit; choose another, such as pi-shelf"
        )
    if name == LATEST:
        raise UsageError(f"a run cannot be named {name!r}, which means another run; choose another name")
    if _LIKE_AN_ID.match(name):
        raise UsageError(
            f"a run cannot be named {name!r}: the ids of runs begin with a date in the same way, and a run may be "
            "named by the beginning of its id; choose another name, such as pi-shelf"
        )
    return name


def no_run_in(where: str) -> str:
    """Return the message about a store without a run."""
    return (
        f"the store {where} holds no run yet; give the --store of the search (of `fleetnas demo`: "
        "fleetnas-out/demo/runs.sqlite)"
    )


def find_run(
    runs: Sequence[RunRecord], text: str, where: str, fits: Callable[[RunRecord], bool] = lambda run: True
) -> RunRecord:
    """Return the run that `text` names: by id, name, `latest` or a beginning that only one run has.

    Args:
        runs: oldest first.
        text: as the user gave it.
        where: the store, for messages.
        fits: `latest` is the newest run that this is true of; a run that is named is taken in any case.

    Raises:
        UsageError: no run or several runs are meant; the message lists some.
    """
    if not runs:
        raise UsageError(no_run_in(where))
    if text == LATEST:
        return next((run for run in reversed(runs) if fits(run)), runs[-1])
    for run in runs:
        if text == run.run_id:
            return run
    for run in runs:
        if text == run.name:
            return run
    meant = [run for run in runs if text and (run.run_id.startswith(text) or (run.name or "").startswith(text))]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UsageError(
            f"{text!r} is the beginning of {len(meant)} runs: {_listed(meant)}; give more of its id, or its whole name"
        )
    raise UsageError(f"the store {where} holds no run {text!r}; the latest are {_listed(runs)}")


def _listed(runs: Sequence[RunRecord]) -> str:
    """List the newest of some runs, the newest first."""
    newest = [
        run.run_id if run.name is None else f"{run.run_id} ({run.name})" for run in runs[: -_MOST_LISTED - 1 : -1]
    ]
    return ", ".join(newest) + (", ..." if len(runs) > _MOST_LISTED else "")
