"""Give up tasks that get no result, and device settings whose devices are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fleetnas.coordinator.campaign.endings import SettingEndings
from fleetnas.coordinator.campaign.result_intake import ResultIntake
from fleetnas.coordinator.campaign.roster import Roster
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.coordinator.fleet.task import Task
from fleetnas.coordinator.fleet.task_dispatcher import TaskDispatcher
from fleetnas.coordinator.fleet.work_queue import WorkQueue
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.task_state import TaskState
from fleetnas.fleet_protocol.messages import Rejected

#: Leases of one task that may end without a result before its subnet counts as failed, and of one agent in a row before
#: it counts as lost: more, so that neither one subnet nor an unlucky network is taken for a dead device.
MAX_EXPIRED_LEASES, MAX_UNANSWERED = 3, 6
#: Tasks of one device setting that may come back undone in a row before it is given up.
MAX_RETURNED = 50
#: How long an agent that gives a task back is left alone, for each task in a row, and at most.
_BUSY_AGENT_S, _MOST_BUSY_S = 5.0, 60.0


class LossMonitor:
    """Watches leases, rejections and absent devices. Times are seconds of the campaign's clock."""

    def __init__(
        self,
        plan: CampaignPlan,
        registry: FleetRegistry,
        dispatcher: TaskDispatcher,
        roster: Roster,
        intake: ResultIntake,
        endings: SettingEndings,
        note: Callable[[str], None],
        started_s: float,
    ) -> None:
        """`started_s` is the time from which a device of a resumed run is waited for."""
        self._plan, self._registry, self._dispatcher, self._roster = plan, registry, dispatcher, roster
        self._intake, self._endings, self._note, self._started_s = intake, endings, note, started_s
        self._unanswered: dict[str, int] = {}
        self._pause_until_s: dict[str, float] = {}

    def takes_work(self, agent: str, now_s: float) -> bool:
        """Whether an agent is there and did not just give a task back."""
        entry = self._registry.agents.get(agent)
        return entry is not None and entry.present and now_s >= self._pause_until_s.get(agent, 0.0)

    def note_answers(self, agents: Iterable[str]) -> None:
        """Note that results of these agents came: they answer."""
        self._unanswered.update(dict.fromkeys(agents, 0))

    def expire_leases(self, now_s: float) -> None:
        """Requeue tasks whose leases have ended; after several in a row the task has failed or the agent is lost."""
        for queue, task in self._dispatcher.expire(now_s):
            agent = queue.device
            if task.expired_leases >= MAX_EXPIRED_LEASES:
                self._intake.fail(queue, task, f"{task.expired_leases} attempts ended without a word")
            self._unanswered[agent] = self._unanswered.get(agent, 0) + 1
            if self._unanswered[agent] >= MAX_UNANSWERED:
                self._unanswered[agent] = 0
                reason = f"it takes tasks and heartbeats, but {MAX_UNANSWERED} tasks in a row got no answer"
                self._registry.mark_lost(agent, now_s, reason)
                for setting_run in self._roster.of_device(agent):
                    if setting_run.status is SettingStatus.RUNNING:
                        self._endings.close(setting_run, SettingStatus.LOST, reason)

    def fail_used_up(self) -> None:
        """Count tasks as failed that were dispatched as often as a task may be."""
        for queue, task in self._dispatcher.used_up():
            if task.state is not TaskState.USED_UP:
                continue  # its device setting was given up over the task before
            self._intake.fail(queue, task, f"{task.record.attempt} attempts brought no result")

    def reject(self, queue: WorkQueue, task: Task, update: Rejected, now_s: float) -> None:
        """Requeue a task that its agent gives back; an agent that refuses tasks for good ends its setting."""
        if update.task != task.key or task.task_id not in queue.leased:
            return
        self._dispatcher.requeue(queue, task)
        if update.reason in ("busy", "expired", "leaving"):
            self._pause_until_s[queue.device] = now_s + min(_BUSY_AGENT_S * queue.returned, _MOST_BUSY_S)
            self._note(f"{queue.label} gives task {update.task.task_id} back: {update.detail or update.reason}")
        else:
            reason = f"it refuses tasks ({update.reason}): {update.detail}"
            self._endings.close(self._roster.of_queue(queue), SettingStatus.FAILED, reason)

    def give_up_absent(self, setting_run: SettingRun, now_s: float) -> bool:
        """End a device setting that has work left and whose device is gone for good, or does no task; True if so."""
        returned = setting_run.queue.returned
        if returned >= MAX_RETURNED:
            reason = f"{returned} tasks in a row came back undone; see the agent's log"
            self._endings.close(setting_run, SettingStatus.FAILED, reason)
            return True
        entry = self._registry.agents.get(setting_run.device)
        if (entry is not None and entry.present) or (setting_run.search.finished and setting_run.queue.is_empty):
            return False
        if entry is not None and entry.duplicate is not None:
            self._endings.close(setting_run, SettingStatus.FAILED, str(entry.duplicate))
        else:
            since = self._started_s if entry is None else entry.lost_since_s
            if since is not None and now_s - since >= self._plan.grace_s:
                reason = entry.reason if entry is not None else "it did not come back"
                self._endings.close(setting_run, SettingStatus.LOST, reason)
        return setting_run.status is not SettingStatus.RUNNING
