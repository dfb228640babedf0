"""Curves of portfolios, computed one at a time in the background: each takes seconds to minutes."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from fleetnas.coordinator.dashboard.figures import CurvePoint
from fleetnas.coordinator.dashboard.run_state import RunState
from fleetnas.fleet_protocol.error_text import one_line

#: A curve, and the number of targets of its run.
Curve = tuple[Sequence[CurvePoint], int]
#: Computes the curve of a run. It runs in another process: it and its values are pickled.
CurveOf = Callable[[str], Curve]
#: Curves that are kept.
_MOST_KEPT = 20

_log = logging.getLogger("fleetnas.coordinator")


class Background(Protocol):
    """Runs functions elsewhere."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a function of a module."""


@dataclass(frozen=True)
class PortfolioJob:
    """The curve of one run as far as it is known."""

    measurements: int
    """Stored measurements that it rests on."""
    curve: tuple[CurvePoint, ...] = ()
    targets: int = 0
    error: str = ""


class PortfolioJobs:
    """Computes curves on demand and keeps them; safe to use from several threads."""

    def __init__(self, background: Background, curve_of: CurveOf) -> None:
        self._background, self._curve_of = background, curve_of
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, tuple[int, Future[Curve]]] = OrderedDict()

    def job(self, state: RunState, *, renew: bool) -> PortfolioJob:
        """Return the curve of a run; begins to compute it where none is known, with `renew` also after measurements.

        One that is being computed is waited for first: a run at work would begin ever new ones.
        """
        measurements = sum(map(len, state.points.values()))
        with self._lock:
            known = self._jobs.get(state.run_id)
            if known is None or (renew and known[1].done() and known[0] != measurements):
                known = measurements, self._background.submit(self._curve_of, state.run_id)
                self._jobs[state.run_id] = known
                while len(self._jobs) > _MOST_KEPT:
                    self._jobs.popitem(last=False)[1][1].cancel()
        counted, future = known
        if not future.done():
            return PortfolioJob(counted)
        error = future.exception()
        if error is not None:
            _log.debug("the portfolio of %s cannot be computed", state.run_id, exc_info=error)
            return PortfolioJob(counted, error=one_line(error))
        curve, targets = future.result()  # it is done
        return PortfolioJob(counted, tuple(curve), targets)
