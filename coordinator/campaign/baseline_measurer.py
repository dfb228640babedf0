"""Measure baselines on every device setting whose search has ended, on the connection of the campaign.

A baseline is measured as often as a given subnet is, at the precision of a verification, all of a device's in turn. The
middle measurement counts. Everything is stored before it is acknowledged, so that a resumed run goes on where it was.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from fleetnas.coordinator.campaign.baseline_order import order_of
from fleetnas.coordinator.campaign.baseline_row import MAX_EXPIRED, MAX_FAILURES, BaselineRow, Preparation
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.task_dispatcher import LEASE_SLACK_S, MAX_HELD_S
from fleetnas.coordinator.records.baselines import Baseline, BaselineRecord
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.store.baseline_table import BaselineTable
from fleetnas.coordinator.store.circuit_breaker import CircuitBreaker
from fleetnas.fleet_protocol.error_text import first_fault, one_line
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.messages import Failed, Inventory, Progress, Rejected, Result, TaskKey, TaskUpdate

#: How long an agent that gives a task back is left alone.
_PAUSE_S = 5.0


@dataclass
class _Sent:
    """The task that an agent holds."""

    row: BaselineRow
    key: TaskKey
    lease_ends_s: float
    held_until_s: float

    def renew(self, ends_s: float) -> None:
        """Prolong the lease, at most to the end of the holding time."""
        self.lease_ends_s = min(ends_s, self.held_until_s)


class BaselineMeasurer:
    """The baselines of one campaign; a `TaskGuest` on its connection. Times are the clock's seconds."""

    def __init__(
        self,
        campaign: Campaign,
        table: BaselineTable,
        preparation: Preparation,
        clocks: Clocks,
        *,
        emit: Callable[[Event], None] = lambda event: None,
        token: str | None = None,
    ) -> None:
        """`emit` is given an event for each baseline that is measured, or cannot be.

        `token` tells the tasks of this process from those of an earlier one; by default a random one.
        """
        self._campaign, self._table, self._preparation = campaign, table, preparation
        self._clock, self._wall, self._emit = clocks.elapsed, clocks.wall, emit
        #: Rows that are decided and not emitted yet: a view's exception must not leave a tick half done.
        self._unemitted: list[BaselineRow] = []
        self._token = token or secrets.token_hex(3)
        self._stored = {
            (each.device, each.setting_label, each.baseline): each for each in table.of_run(campaign.identity.run_id)
        }
        self._rows: dict[tuple[str, str], list[BaselineRow]] = {}
        self._sent: dict[str, _Sent] = {}
        #: Every task that was sent; results of some come twice.
        self._known: dict[str, tuple[str, BaselineRow]] = {}
        self._arrived: dict[TaskKey, tuple[str, BaselineRow, Result]] = {}
        self._ended: list[BaselineRow] = []
        self._pause_until_s: dict[str, float] = {}
        self._number = 0
        self._breaker = CircuitBreaker(clocks.elapsed, self._note, lambda seconds: None)
        campaign.connection.admit(self)

    @property
    def finished(self) -> bool:
        """Whether all baselines of all device settings are measured or given up, and stored."""
        campaign = self._campaign
        if not campaign.membership.is_open or self._arrived or self._ended:
            return False
        return all(
            key in self._rows and all(row.record.done for row in self._rows[key]) for key in campaign.setting_runs
        )

    @property
    def rows(self) -> list[BaselineRow]:
        """All baselines of all device settings that have begun."""
        return [row for rows in self._rows.values() for row in rows]

    def on_tick(self) -> None:
        """Begin with device settings whose search has ended, store results, and send tasks."""
        now = self._clock()
        for key, setting_run in self._campaign.setting_runs.items():
            if key not in self._rows and setting_run.status is not SettingStatus.RUNNING:
                self._rows[key] = [self._begin(setting_run, baseline) for baseline in self._campaign.plan.baselines]
        self._store()
        searching = {run.device for run in self._campaign.setting_runs.values() if run.status is SettingStatus.RUNNING}
        waiting: dict[str, list[BaselineRow]] = {}
        for row in self.rows:
            if not row.record.done and row.setting_run.device not in searching:
                waiting.setdefault(row.setting_run.device, []).append(row)
        for agent, rows in waiting.items():
            self._supply(agent, rows, now)
        while self._unemitted:
            self._emit(self._unemitted.pop(0).event(self._wall()))

    def stop(self) -> None:
        """Cancel the tasks that agents hold; a resumed run measures these baselines."""
        self._store()
        for agent, sent in self._sent.items():
            self._cancel(agent, sent.key)
        self._sent.clear()

    # -- the campaign's messages -------------------------------------------------------------------------------

    def take(self, agent: str, update: TaskUpdate) -> bool:
        """Take an update; False where it is about no task of these."""
        found = self._known.get(update.task.task_id)
        if found is None or found[0] != agent:
            return False
        row, sent = found[1], self._sent.get(agent)
        now = self._clock()
        entry = self._campaign.registry.on_message(agent, now)
        held = sent is not None and sent.key == update.task
        if sent is not None and held:
            sent.renew(self._lease_end_s(now))
        if isinstance(update, Progress):
            entry.progress(update.task, update.phase, update.fraction)
        elif isinstance(update, Result):
            self._arrived.setdefault(update.task, (agent, row, update))
            self._campaign.registry.end_task(agent, update.task.task_id)
        elif isinstance(update, Failed):
            self._acknowledge(agent, update.task)
            if held and update.reason != "cancelled":
                self._fail(agent, row, f"{update.reason}: {update.detail}" if update.detail else update.reason)
        elif isinstance(update, Rejected) and held:
            self._reject(agent, row, update, now)
        return True

    def reconcile(self, agent: str, held: Inventory) -> Inventory:
        """Send a task again that its agent does not hold any more; returns the inventory without these tasks."""
        ours = {key for key in _keys(held) if key.task_id in self._known}
        sent = self._sent.get(agent)
        if sent is not None and sent.key not in ours and sent.key not in self._arrived:
            del self._sent[agent]
        running = None if held.running in ours else held.running
        queued = tuple(key for key in held.queued if key not in ours)
        return held.model_copy(update={"running": running, "queued": queued})

    # -- rows --------------------------------------------------------------------------------------------------

    def _begin(self, setting_run: SettingRun, baseline: Baseline) -> BaselineRow:
        run_id, device, label = self._campaign.identity.run_id, setting_run.device, setting_run.setting.label
        record = self._stored.get((device, label, baseline.name)) or BaselineRecord(
            run_id,
            device,
            label,
            baseline.name,
            predicted_accuracy=self._preparation.predict(baseline),
            accuracy=baseline.accuracy,
        )
        if record.reason:  # of an earlier coordinator: the device may be back, or its agent takes model files now
            record = replace(record, reason="", done=False)
        row = BaselineRow(setting_run, baseline, record)
        entry = self._campaign.registry.agents.get(device)
        info = entry.info if entry is not None and entry.info is not None else setting_run.info
        objection = row.objection(info)
        if objection and not record.done:
            self._end(row, objection)
        return row

    def _end(self, row: BaselineRow, reason: str) -> None:
        row.end(reason)
        self._ended.append(row)
        self._unemitted.append(row)

    def _fail(self, agent: str, row: BaselineRow, reason: str) -> None:
        self._sent.pop(agent, None)
        if row.count_failure() >= MAX_FAILURES:
            self._end(row, reason)

    def _reject(self, agent: str, row: BaselineRow, update: Rejected, now: float) -> None:
        self._sent.pop(agent, None)
        if update.reason in ("busy", "expired", "leaving"):
            self._pause_until_s[agent] = now + _PAUSE_S
            if update.reason != "expired" or row.count_expired() < MAX_EXPIRED:
                return
        self._end(row, update.detail or update.reason)

    # -- storing -----------------------------------------------------------------------------------------------

    def _store(self) -> None:
        """Store results that arrived and rows that ended, then acknowledge; nothing while the store is unavailable."""
        if not (self._arrived or self._ended) or not self._breaker.may_try:
            return
        arrived = [(key, *found) for key, found in self._arrived.items()]
        renewed = {id(row): (row, row.record) for row in self._ended}
        for _, _, row, result in arrived:
            record = renewed.get(id(row), (row, row.record))[1]
            if not record.done:
                renewed[id(row)] = row, row.renewed(record, result)
        with self._breaker.guard():
            self._table.put([record for _, record in renewed.values()])
            self._breaker.reset()
            self._arrived.clear()
            self._ended.clear()
            for row, record in renewed.values():
                row.put(record)
            for key, agent, row, _ in arrived:
                self._complete(agent, row, key)

    def _complete(self, agent: str, row: BaselineRow, key: TaskKey) -> None:
        self._acknowledge(agent, key)
        sent = self._sent.get(agent)
        if sent is not None and sent.key == key:
            del self._sent[agent]
        if row.record.done and row not in self._unemitted:
            self._unemitted.append(row)

    def _acknowledge(self, agent: str, key: TaskKey) -> None:
        try:
            self._campaign.connection.link.acknowledge(agent, key)
        except TransportError as error:  # the agent sends it again
            self._note(str(error))

    # -- sending -----------------------------------------------------------------------------------------------

    def _supply(self, agent: str, rows: list[BaselineRow], now: float) -> None:
        """Send an agent, all searches on which have ended, its next task."""
        if not self._is_free(agent, rows, now):
            return
        for row in sorted(rows, key=lambda each: len(each.record.measurements)):
            try:
                ready = row.prepare(self._preparation)
            except Exception as error:  # noqa: BLE001 - one baseline without a file; the others go on
                self._end(row, f"its file cannot be made: {one_line(error)}")
                continue
            if ready:
                self._send(agent, row, now)
                return

    def _is_free(self, agent: str, rows: list[BaselineRow], now: float) -> bool:
        """Whether an agent is there and holds no task of these; one that is gone for good ends its rows."""
        entry = self._campaign.registry.agents.get(agent)
        if entry is None or not entry.present:
            self._sent.pop(agent, None)
            since_s = entry.lost_since_s if entry is not None else now
            if since_s is not None and now - since_s >= self._campaign.plan.grace_s:
                for row in rows:
                    self._end(row, f"the device is lost: {entry.reason if entry is not None else 'it is gone'}")
            return False
        sent = self._sent.get(agent)
        if sent is not None and now > sent.lease_ends_s and sent.key not in self._arrived:
            self._cancel(agent, sent.key)
            del self._sent[agent]
            if sent.row.count_expired() >= MAX_EXPIRED and not sent.row.record.done:
                self._end(sent.row, f"{MAX_EXPIRED} attempts ended without a result")
            return False
        return sent is None and now >= self._pause_until_s.get(agent, 0.0) and self._campaign.connection.is_open

    def _send(self, agent: str, row: BaselineRow, now: float) -> None:
        self._number += 1
        key = TaskKey(task_id=f"{self._campaign.identity.run_id}.b{self._token}-{self._number}", attempt=1)
        try:
            order = order_of(row, key, self._campaign.identity, self._campaign.plan, self._campaign.connection.blobs)
            self._campaign.connection.link.send_task(agent, order)
        except ValidationError as error:
            self._end(row, f"no order can be made: {first_fault(error)}")
            return
        except TransportError as error:  # the queue to the broker is full: at the next tick
            self._note(str(error))
            return
        if row.prepared is not None and row.prepared.remark and not row.record.measurements:
            self._note(f"{row.label} has no accuracy: {row.prepared.remark}")
        self._known[key.task_id] = agent, row
        held_until_s = now + self._campaign.plan.deadline_s + LEASE_SLACK_S + MAX_HELD_S
        self._sent[agent] = _Sent(row, key, self._lease_end_s(now), held_until_s)

    def _lease_end_s(self, now: float) -> float:
        return now + self._campaign.plan.deadline_s + LEASE_SLACK_S

    def _cancel(self, agent: str, key: TaskKey) -> None:
        try:
            self._campaign.connection.link.cancel(agent, key)
        except TransportError as error:
            self._note(str(error))

    def _note(self, line: str) -> None:
        self._campaign.note(line)


def _keys(held: Inventory) -> tuple[TaskKey, ...]:
    return (*held.queued, *held.unacknowledged, *([held.running] if held.running is not None else []))
